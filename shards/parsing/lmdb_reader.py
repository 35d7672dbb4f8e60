"""A reader of LMDB files without the library, which does not validate files: a damaged page crashes the process.

The format is that of LMDB 0.9 on 64-bit machines (mdb.c): pages with a power-of-two size, of which the first two
contain the root of the B-tree of the main database; branches and leaves with nodes sorted by key; overflow pages for
values that are too large for a leaf. Every offset is checked against the file size.
"""

import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from shards.common.errors import UserError

MAGIC = struct.pack("<I", 0xBEEFC0DE)  # at offset 16 of the file
VERSION = 1
HEADER = 16  # bytes of a page before its content
BRANCH, LEAF, OVERFLOW = 1, 2, 4  # kinds of pages
LARGE, NESTED = 1, 6  # node flags: value on overflow pages; sub-database or duplicate keys
NO_PAGE = 2**64 - 1
DEEPEST = 32  # maximum depth of a tree, the limit of LMDB
_NODE = struct.Struct("<HHHH")  # low and high half of the size, flags, length of the key


class Damaged(ValueError):
    """An invalid page."""


class LMDBFile:
    """The main database of an LMDB: values by key, and sorted keys. Closed by `close` or as a context manager.

    entries: number of keys, according to the header.
    """

    def __init__(self, path: Path):
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file is a ValueError
            raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        self._data = memoryview(self._map)
        try:
            self._open(path)
        except (Damaged, struct.error) as error:
            self.close()
            raise UserError(f"{path}: is not a complete LMDB ({error}); fetch it again") from None

    def _open(self, path: Path) -> None:
        metas = [self._meta(0)]
        self.page_size = metas[0][1]
        if self.page_size < 512 or self.page_size & (self.page_size - 1):
            raise Damaged(f"invalid page size of {self.page_size} bytes")
        metas.append(self._meta(self.page_size))
        _, size, flags, self.entries, self.root, last = max(metas)
        if flags or size != self.page_size:  # flags: another order of keys, or several values per key
            raise Damaged(f"unsupported database flags {flags}")
        needed = (last + 1) * self.page_size
        if len(self._data) < needed:
            raise UserError(
                f"{path}: has {len(self._data)} bytes, but its header requires {needed}; it was truncated, fetch it "
                "again"
            )

    def _meta(self, at: int) -> tuple[int, int, int, int, int, int]:
        """(transaction, page size, flags, number of entries, root page, last page) of one of the first two pages."""
        if bytes(self._data[at + 16 : at + 20]) != MAGIC:
            raise Damaged("not the header of an LMDB")
        (version,) = struct.unpack_from("<I", self._data, at + 20)
        if version != VERSION:
            raise Damaged(f"unsupported version {version}")
        (size,) = struct.unpack_from("<I", self._data, at + 40)
        (flags,) = struct.unpack_from("<H", self._data, at + 92)
        entries, root, last, transaction = struct.unpack_from("<QQQQ", self._data, at + 120)
        return transaction, size, flags, entries, root, last

    def _page(self, number: int) -> tuple[int, int, list[int]]:
        """(offset in the file, kind, offsets of the nodes in the page) of a branch or leaf page."""
        begin = number * self.page_size
        if begin + self.page_size > len(self._data):
            raise Damaged(f"page {number} is after the end of the file")
        kind, lower, upper = struct.unpack_from("<HHH", self._data, begin + 10)
        if not HEADER <= lower <= upper <= self.page_size or kind not in (BRANCH, LEAF):
            raise Damaged(f"page {number} is damaged")
        count = (lower - HEADER) // 2
        return begin, kind, list(struct.unpack_from(f"<{count}H", self._data, begin + HEADER))

    def _node(self, begin: int, place: int) -> tuple[bytes, int, int, int]:
        """(key, size, flags, offset of the value) of a node in the page at `begin`; in branches, size is a page."""
        if place + _NODE.size > self.page_size:
            raise Damaged("a node is after the end of its page")
        low, high, flags, length = _NODE.unpack_from(self._data, begin + place)
        key = begin + place + _NODE.size
        if key + length > begin + self.page_size:
            raise Damaged("a key is after the end of its page")
        return bytes(self._data[key : key + length]), low | high << 16, flags, key + length

    def get(self, wanted: bytes) -> memoryview | None:
        """The value of a key; None if the key does not exist.

        Raises:
            Damaged: a page on the path to it is invalid.
        """
        number = self.root
        for _ in range(DEEPEST):
            if number == NO_PAGE:
                return None
            begin, kind, places = self._page(number)
            if kind == LEAF:
                at = self._search(begin, places, wanted)
                if at is None:
                    return None
                key, size, flags, value = self._node(begin, places[at])
                return self._value(begin, size, flags, value) if key == wanted else None
            at = self._search(begin, places[1:], wanted)  # the first node of a branch has no key
            _, page, flags, _ = self._node(begin, places[0 if at is None else at + 1]) if places else (b"", 0, 0, 0)
            number = page | flags << 32
        raise Damaged("the tree is too deep")

    def _search(self, begin: int, places: list[int], wanted: bytes) -> int | None:
        """The number of the last node whose key is at most `wanted`; None if there is none."""
        low, high = 0, len(places)
        while low < high:
            middle = (low + high) // 2
            if self._node(begin, places[middle])[0] <= wanted:
                low = middle + 1
            else:
                high = middle
        return low - 1 if low else None

    def _value(self, begin: int, size: int, flags: int, value: int) -> memoryview:
        if flags & NESTED:
            raise Damaged("a value is a sub-database")
        end = begin + self.page_size
        if flags & LARGE:
            if value + 8 > end:
                raise Damaged("a value is after the end of its page")
            (number,) = struct.unpack_from("<Q", self._data, value)
            page = number * self.page_size
            value, end = page + HEADER, len(self._data)
            if value > end or struct.unpack_from("<H", self._data, page + 10)[0] != OVERFLOW:
                raise Damaged(f"page {number} is damaged")
        if value + size > end:
            raise Damaged("a value is after the end of its page or of the file")
        return self._data[value : value + size]

    def __iter__(self) -> Iterator[bytes]:
        """Yields all keys in order.

        Raises:
            Damaged: a page is invalid.
        """
        left = len(self._data) // self.page_size
        waiting = [] if self.root == NO_PAGE else [self.root]
        while waiting:
            begin, kind, places = self._page(waiting.pop())
            if (left := left - 1) < 0:
                raise Damaged("the tree contains a cycle")
            nodes = [self._node(begin, place) for place in places]
            if kind == LEAF:
                yield from (node[0] for node in nodes)
            else:
                waiting += [page | flags << 32 for _, page, flags, _ in reversed(nodes)]

    def close(self) -> None:
        self._data.release()
        with contextlib.suppress(BufferError):  # a value is still in use; the map is freed with the last one
            self._map.close()

    def __enter__(self) -> "LMDBFile":
        return self

    def __exit__(self, *_) -> None:
        self.close()
