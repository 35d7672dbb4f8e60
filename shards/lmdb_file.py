"""Reading the file of an LMDB without the library, which trusts what it maps: a damaged page kills the process.

The layout is that of LMDB 0.9 on 64-bit machines (mdb.c): pages of a size that is a power of two, of which the first
two say where the tree of the main database begins; branches and leaves with nodes in the order of their keys, and
values that are too large for a leaf on pages of their own. Every offset is checked against the file.
"""

import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from shards.errors import UserError

MAGIC = struct.pack("<I", 0xBEEFC0DE)  # 16 bytes from the beginning of the file
VERSION = 1
HEADER = 16  # bytes of a page before its content
BRANCH, LEAF, OVERFLOW = 1, 2, 4  # kinds of pages
LARGE, NESTED = 1, 6  # flags of nodes: the value has pages of its own; it is a database or has duplicates
NO_PAGE = 2**64 - 1
DEEPEST = 32  # levels of a tree, LMDB's own limit
_NODE = struct.Struct("<HHHH")  # the low and the high half of a size, flags, the length of the key


class Damaged(ValueError):
    """A page that is not as LMDB writes it."""


class LMDBFile:
    """The main database of an LMDB: values by key, and the keys in their order. Closed by `close` or a with block."""

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
            raise UserError(f"{path}: is not a whole LMDB ({error}); fetch it again") from None

    def _open(self, path: Path) -> None:
        metas = [self._meta(0)]
        self.page_size = metas[0][1]
        if self.page_size < 512 or self.page_size & (self.page_size - 1):
            raise Damaged(f"pages of {self.page_size} bytes")
        metas.append(self._meta(self.page_size))
        _, size, flags, self.root, last = max(metas)
        if flags or size != self.page_size:  # flags: other orders of keys, or several values of one
            raise Damaged(f"a database with the flags {flags}, which no published file has")
        needed = (last + 1) * self.page_size
        if len(self._data) < needed:
            raise UserError(
                f"{path}: has {len(self._data)} bytes and its own directory asks for {needed}; it was cut short, "
                "fetch it again"
            )

    def _meta(self, at: int) -> tuple[int, int, int, int, int]:
        """(transaction, size of a page, flags, page of the root, last page) of one of the first two pages."""
        if bytes(self._data[at + 16 : at + 20]) != MAGIC:
            raise Damaged("no LMDB at its beginning")
        (version,) = struct.unpack_from("<I", self._data, at + 20)
        if version != VERSION:
            raise Damaged(f"version {version}")
        (size,) = struct.unpack_from("<I", self._data, at + 40)
        (flags,) = struct.unpack_from("<H", self._data, at + 92)
        root, last, transaction = struct.unpack_from("<QQQ", self._data, at + 128)
        return transaction, size, flags, root, last

    def _page(self, number: int) -> tuple[int, int, list[int]]:
        """(its beginning in the file, its kind, the beginnings of its nodes in the page) of a branch or a leaf."""
        begin = number * self.page_size
        if begin + self.page_size > len(self._data):
            raise Damaged(f"page {number} is behind the end of the file")
        kind, lower, upper = struct.unpack_from("<HHH", self._data, begin + 10)
        if not HEADER <= lower <= upper <= self.page_size or kind not in (BRANCH, LEAF):
            raise Damaged(f"page {number} is damaged")
        count = (lower - HEADER) // 2
        return begin, kind, list(struct.unpack_from(f"<{count}H", self._data, begin + HEADER))

    def _node(self, begin: int, place: int) -> tuple[bytes, int, int, int]:
        """(key, size or, in a branch, page, flags, where the value begins) of a node of the page that begins there."""
        if place + _NODE.size > self.page_size:
            raise Damaged("a node is behind the end of its page")
        low, high, flags, length = _NODE.unpack_from(self._data, begin + place)
        key = begin + place + _NODE.size
        if key + length > begin + self.page_size:
            raise Damaged("a key is behind the end of its page")
        return bytes(self._data[key : key + length]), low | high << 16, flags, key + length

    def get(self, wanted: bytes) -> memoryview | None:
        """The value of a key, None where there is none.

        Raises:
            Damaged: a page on the way to it is.
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
        raise Damaged("its tree is too deep")

    def _search(self, begin: int, places: list[int], wanted: bytes) -> int | None:
        """The number of the last node whose key is not behind a key, None where all are."""
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
            raise Damaged("a value is a database of its own")
        end = begin + self.page_size
        if flags & LARGE:
            if value + 8 > end:
                raise Damaged("a value is behind the end of its page")
            (number,) = struct.unpack_from("<Q", self._data, value)
            page = number * self.page_size
            value, end = page + HEADER, len(self._data)
            if value > end or struct.unpack_from("<H", self._data, page + 10)[0] != OVERFLOW:
                raise Damaged(f"page {number} is damaged")
        if value + size > end:
            raise Damaged("a value is behind the end of its page or of the file")
        return self._data[value : value + size]

    def __iter__(self) -> Iterator[bytes]:
        """All keys in their order.

        Raises:
            Damaged: a page is.
        """
        left = len(self._data) // self.page_size
        waiting = [] if self.root == NO_PAGE else [self.root]
        while waiting:
            begin, kind, places = self._page(waiting.pop())
            if (left := left - 1) < 0:
                raise Damaged("its tree refers to the same pages again and again")
            nodes = [self._node(begin, place) for place in places]
            if kind == LEAF:
                yield from (node[0] for node in nodes)
            else:
                waiting += [page | flags << 32 for _, page, flags, _ in reversed(nodes)]

    def close(self) -> None:
        self._data.release()
        with contextlib.suppress(BufferError):  # a value is in use; the map goes with the last of them
            self._map.close()

    def __enter__(self) -> "LMDBFile":
        return self

    def __exit__(self, *_) -> None:
        self.close()
