"""Millions of texts in little memory.

As Python strings, three million captions take half a gigabyte in every process: forked data workers get their own copy,
because reading a string changes its reference count. As bytes in one array they are as large as their file, and all
workers share them.
"""

import codecs
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise

import numpy as np

from shards.common.serialized_sequence import PackedSequence

NEWLINE, TAB = ord("\n"), ord("\t")
AT_ONCE = 1 << 24  # bytes of a file per decoding step
BLOCK = 4096  # texts per step of iteration


class PackedTexts(PackedSequence):
    """A sequence of texts, which are created on access.

    Attributes:
        data: uint8 (bytes,), the texts in UTF-8, each followed by one separator byte (a newline).
        ends: int64 (n + 1,), -1, then the position of the separator after each text.
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "PackedTexts":
        data, ends = bytearray(), array("q", [-1])
        for text in texts:
            data += text.encode()
            ends.append(len(data))
            data.append(NEWLINE)
        return cls(np.frombuffer(bytes(data), np.uint8), np.frombuffer(ends, np.int64))

    @classmethod
    def of_lines(cls, data: np.ndarray, tabs: bool = False) -> "PackedTexts":
        """The lines of a file, without a copy; text after the last newline is ignored.

        Args:
            data: uint8, the content of the file.
            tabs: TABs also separate texts.

        Raises:
            UnicodeDecodeError: it is not UTF-8.
        """
        decoder, found = codecs.getincrementaldecoder("utf-8")(), [np.array([-1])]
        for begin in range(0, len(data), AT_ONCE):
            part = data[begin : begin + AT_ONCE]
            decoder.decode(part.tobytes(), final=begin + AT_ONCE >= len(data))
            ends = (part == NEWLINE) | (part == TAB) if tabs else part == NEWLINE
            found.append(np.flatnonzero(ends) + begin)
        return cls(data, np.concatenate(found))

    @classmethod
    def joined(cls, parts: list["PackedTexts"]) -> "PackedTexts":
        """Concatenates sequences; a single one is not copied."""
        if len(parts) == 1:
            return parts[0]
        sizes = np.cumsum([0, *(len(part.data) for part in parts)])
        ends = [part.ends[1:] + size for part, size in zip(parts, sizes, strict=False)]
        return cls(np.concatenate([np.empty(0, np.uint8), *(p.data for p in parts)]), np.concatenate([[-1], *ends]))

    def part(self, begin: int, end: int) -> "PackedTexts":
        """Texts `begin` to `end` - 1, without a copy of their bytes."""
        first, last = int(self.ends[begin]) + 1, int(self.ends[end]) + 1
        return PackedTexts(self.data[first:last], self.ends[begin : end + 1] - first)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def item(self, number: int) -> str:
        before, end = self.ends[number : number + 2].tolist()
        return self.data[before + 1 : end].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), BLOCK):
            ends = self.ends[first : first + BLOCK + 1].tolist()
            block, shift = self.data[ends[0] + 1 : ends[-1]].tobytes(), ends[0] + 1
            for before, end in pairwise(ends):
                yield block[before + 1 - shift : end - shift].decode()

    def __eq__(self, other) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None


class TextLists(PackedSequence):
    """A sequence of lists of texts (the captions of each image), as tuples created on access.

    Attributes:
        texts: the texts of all lists. An empty list has one entry, the empty text.
        begins: int64 (n + 1,); list i has the entries begins[i] to begins[i + 1] - 1.
    """

    def __init__(self, texts: PackedTexts, begins: np.ndarray):
        self.texts, self.begins = texts, begins

    @classmethod
    def of(cls, lists: Iterable[str | Sequence[str]]) -> "TextLists":
        """From lists of texts; a text instead of a list is a list with one element."""
        begins = array("q", [0])

        def flat() -> Iterator[str]:
            for item in lists:
                texts = (item,) if isinstance(item, str) else tuple(item) or ("",)
                begins.append(begins[-1] + len(texts))
                yield from texts

        return cls(PackedTexts.of(flat()), np.frombuffer(begins, np.int64))

    @classmethod
    def of_lines(cls, data: np.ndarray, tabs: bool) -> "TextLists":
        """The lines of a file, without a copy: one text per line, or several separated by TABs.

        Raises:
            UnicodeDecodeError: it is not UTF-8.
        """
        texts = PackedTexts.of_lines(data, tabs)
        begins = np.arange(len(texts) + 1)
        if tabs:
            begins = np.concatenate([[0], np.flatnonzero(data[texts.ends[1:]] == NEWLINE) + 1])
        return cls(texts, begins)

    @classmethod
    def joined(cls, parts: list["TextLists"]) -> "TextLists":
        """Concatenates sequences; a single one is not copied."""
        if len(parts) == 1:
            return parts[0]
        sizes = np.cumsum([0, *(part.begins[-1] for part in parts)])
        begins = [part.begins[1:] + size for part, size in zip(parts, sizes, strict=False)]
        return cls(PackedTexts.joined([part.texts for part in parts]), np.concatenate([[0], *begins]))

    def part(self, begin: int, end: int) -> "TextLists":
        """Lists `begin` to `end` - 1, without a copy of their bytes."""
        first, last = int(self.begins[begin]), int(self.begins[end])
        return TextLists(self.texts.part(first, last), self.begins[begin : end + 1] - first)

    def __len__(self) -> int:
        return len(self.begins) - 1

    def item(self, number: int) -> tuple[str, ...]:
        begin, end = self.begins[number : number + 2].tolist()
        return tuple(text for text in map(self.texts.item, range(begin, end)) if text)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        texts = iter(self.texts)
        for size in map(int, np.diff(self.begins)):
            yield tuple(text for text in islice(texts, size) if text)

    def __eq__(self, other) -> bool:
        return (
            isinstance(other, Sequence) and len(self) == len(other) and all(map(tuple.__eq__, self, map(tuple, other)))
        )

    __hash__ = None
