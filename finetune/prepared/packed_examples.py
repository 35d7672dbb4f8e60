"""Compact storage of millions of examples.

Five million examples take four gigabytes as Python objects, and as much again in every data worker, which copies the
memory when it updates their reference counts. As bytes in one array they take a fifth of that, shared by all workers;
if the array is a mapped file, all processes of a machine share it.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from finetune.annotations.example import Example
from finetune.prepared.prepared_file import MappedArrays, checksum_of
from shards.common.errors import UserError
from shards.common.serialized_sequence import PackedSequence
from shards.common.untrusted_input import reason_of, shown

TUPLE = 1  # extension type of msgpack, which has lists only
_Number = int | float
_Row = tuple[
    int | str,
    str,
    tuple[str, ...],
    Any,
    tuple[tuple[_Number, _Number, _Number, _Number], ...],
    tuple[str, ...],
    dict[str, Any],
]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Row, ext_hook=lambda _, data: _plain_value(data)).decode
_plain_value = msgspec.msgpack.Decoder(tuple, ext_hook=lambda _, data: _plain_value(data)).decode
_image_sets = msgspec.msgpack.Decoder(list[tuple[str, ...]]).decode


class PackedExamples(PackedSequence):
    """A sequence of examples that are encoded in one array and decoded on access.

    Attributes:
        data: uint8 (bytes,), the examples in msgpack.
        ends: int64 (rows + 1,); row i has the bytes ends[i] to ends[i + 1] - 1.
        image_sets: uint8 (bytes,), the list of the different `Example.images` in msgpack.
        image_numbers: int32 (rows,), the place of each row's images in that list.
        rows: int64 (len,), the rows that belong to the sequence, in order; None for all.
        mapped: the file of the arrays, which is mapped again in another process; None for arrays in memory.
    """

    ARRAYS = ("data", "ends", "image_sets", "image_numbers")

    def __init__(
        self, arrays: dict[str, np.ndarray], rows: np.ndarray | None = None, mapped: MappedArrays | None = None
    ):
        self.data, self.ends, self.image_sets, self.image_numbers = (arrays[name] for name in self.ARRAYS)
        self.rows, self.mapped = rows, mapped

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in self.ARRAYS}

    def __reduce__(self):
        return _unpickled, (self.arrays if self.mapped is None else self.mapped, self.rows)

    @classmethod
    def of(cls, examples: Iterable[Example], where: str = "") -> "PackedExamples":
        """Raises UserError for a value that cannot be stored, such as an integer of over 64 bits.

        where: location for its message.
        """
        data, ends, numbers = bytearray(), array("q", [0]), array("i")
        sets: dict[tuple[str, ...], int] = {}
        for example in examples:
            data += _encoded(example, where)
            ends.append(len(data))
            numbers.append(sets.setdefault(example.images, len(sets)))
        arrays = data, ends, _encode(list(sets)), numbers
        kinds = np.uint8, np.int64, np.uint8, np.int32
        found = (np.frombuffer(one, kind) for one, kind in zip(arrays, kinds, strict=True))
        return cls(dict(zip(cls.ARRAYS, found, strict=True)))

    def __len__(self) -> int:
        return len(self.ends) - 1 if self.rows is None else len(self.rows)

    def item(self, number: int) -> Example:
        row = number if self.rows is None else int(self.rows[number])
        begin, end = self.ends[row : row + 2].tolist()
        return Example(*_decode(self.data[begin:end]))

    def __getitem__(self, number):
        """An example, or for a slice the packed examples in it."""
        if isinstance(number, slice):
            return self.select(np.arange(*number.indices(len(self))))
        return super().__getitem__(number)

    def __eq__(self, other) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Example.__eq__, self, other))

    __hash__ = None

    def select(self, numbers: np.ndarray) -> "PackedExamples":
        """The examples with these numbers, int (n,), or those whose value in bool (len,) is true."""
        rows = np.arange(len(self.ends) - 1) if self.rows is None else self.rows
        return PackedExamples(self.arrays, rows[numbers], self.mapped)

    def images(self) -> tuple[list[tuple[str, ...]], np.ndarray]:
        """(the different `Example.images`, in order of first appearance; the place of each example's, int (len,)).

        Examples need not be decoded for this.
        """
        sets = _image_sets(self.image_sets)
        if self.rows is None:
            return sets, self.image_numbers
        found, first, places = np.unique(self.image_numbers[self.rows], return_index=True, return_inverse=True)
        order = np.argsort(first)
        return [sets[number] for number in found[order].tolist()], np.argsort(order)[places]

    def with_images(self, wanted: Callable[[tuple[str, ...]], bool]) -> np.ndarray:
        """bool (len,): whether `wanted` is true of the images of each example; it is called once for equal ones."""
        sets, numbers = self.images()
        return np.array([wanted(images) for images in sets], bool)[numbers]

    def image_counts(self) -> Counter[tuple[str, ...]]:
        """Number of examples by their images."""
        sets, numbers = self.images()
        return Counter(dict(zip(sets, np.bincount(numbers, minlength=len(sets)).tolist(), strict=True)))

    def digest(self) -> str:
        """SHA-256 of all examples, by which ranks compare their data; that of a mapped file is known."""
        stored = self.mapped.sha256 if self.mapped else checksum_of(self.arrays)
        digest = hashlib.sha256(stored.encode())
        if self.rows is not None:
            digest.update(np.ascontiguousarray(self.rows))
        return digest.hexdigest()


def _unpickled(stored: dict[str, np.ndarray] | MappedArrays, rows: np.ndarray | None) -> PackedExamples:
    mapped = stored if isinstance(stored, MappedArrays) else None
    return PackedExamples(mapped.arrays if mapped else stored, rows, mapped)


def _encoded(example: Example, where: str) -> bytes:
    one = example
    try:
        target, facts = _packable(one.target), _packable(one.facts)
        return _encode((one.id, one.text, one.images, target, one.candidates, one.candidate_ids, facts))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # includes UnicodeEncodeError
        place = f"{where}, example" if where else "example"
        raise UserError(f"{place} {shown(one.id)}: cannot be stored ({reason_of(error)})") from None


def _packable(value):
    """A plain value with tuples as an extension type, so that they do not become lists."""
    if isinstance(value, dict):
        return {key: _packable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_packable(item) for item in value]
    if isinstance(value, tuple):
        return msgspec.msgpack.Ext(TUPLE, _encode([_packable(item) for item in value]))
    return value
