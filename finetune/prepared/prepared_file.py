"""The file format of prepared data: named arrays, from which sources they were made, and a checksum of it all.

The file begins with MAGIC, the length of the header and its SHA-256. The header is JSON (see Header); the arrays follow
at multiples of ALIGNED bytes, so that they can be used in the mapped file. A file is used only if it is whole, made by
the same code for the same key, and if its sources have not changed; otherwise it is made again.
"""

import hashlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from finetune.annotations.official_files import existing, find_file, find_files
from finetune.annotations.source_files import FileState, SourceFiles, checksum, file_state
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.untrusted_input import refuse_special_file

MAGIC = b"12in1-prepared-1"
ALIGNED = 64
_START = struct.Struct("<16sQ32s")  # MAGIC, length of the header, SHA-256 of the header


class SourceFile(msgspec.Struct):
    """A file that was read, relative to the task's folder, with its state and SHA-256."""

    path: str
    state: FileState
    sha256: str


class StoredArray(msgspec.Struct):
    """An array in the file. offset: of its first byte after the header."""

    dtype: str
    length: int
    offset: int


class Header(msgspec.Struct):
    """key: what the file contains and what made it; searched: name -> found paths, relative to the task's folder."""

    key: dict[str, str]
    sources: list[SourceFile]
    searched: dict[str, list[str]]
    arrays: dict[str, StoredArray]
    bytes: int  # of the arrays, with the gaps between them
    sha256: str  # of these bytes


@dataclass(frozen=True)
class MappedArrays:
    """The arrays of a file, mapped read-only. In another process it is mapped again and not copied.

    sha256: of the arrays; a file at this path with others is another one.
    """

    path: Path
    sha256: str
    arrays: dict[str, np.ndarray]

    def __reduce__(self):
        return _map_again, (self.path, self.sha256)


def _map_again(path: Path, sha256: str) -> MappedArrays:
    header, data = _read_header(path) or (None, None)
    if header is None or header.sha256 != sha256:
        raise UserError(f"{path}: was replaced while it was in use; start the command again")
    return _arrays(path, header, data)


def _arrays(path: Path, header: Header, data: memoryview) -> MappedArrays:
    arrays = {name: np.frombuffer(data, of.dtype, of.length, of.offset) for name, of in header.arrays.items()}
    return MappedArrays(path, header.sha256, arrays)


def save_arrays(
    path: Path, key: dict[str, str], folder: Path, used: SourceFiles, arrays: dict[str, np.ndarray]
) -> None:
    """Writes a file atomically.

    Args:
        path: file to write.
        key: see Header.
        folder: of the task's official files.
        used: files that the arrays were made from.
        arrays: arrays of one dimension, by name.

    Raises:
        UserError: a source has changed since it was read.
    """
    places, end = _layout(arrays)
    sources = [_source(folder, name, state) for name, state in used.read.items()]
    searched = {name: [os.path.relpath(one, folder) for one in found] for (_, name), found in used.searched.items()}
    header = msgspec.json.encode(Header(key, sources, searched, places, end, checksum_of(arrays)))
    header += b" " * (-(_START.size + len(header)) % ALIGNED)
    with whole_file(path) as file:
        file.write(_START.pack(MAGIC, len(header), hashlib.sha256(header).digest()) + header)
        for part in _parts(arrays, places):
            file.write(part)


def checksum_of(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of the bytes that a file has of these arrays, see Header."""
    digest = hashlib.sha256()
    for part in _parts(arrays, _layout(arrays)[0]):
        digest.update(part)
    return digest.hexdigest()


def _layout(arrays: dict[str, np.ndarray]) -> tuple[dict[str, StoredArray], int]:
    """(the place of each array, number of bytes of all with the gaps between them)"""
    places, end = {}, 0
    for name, values in arrays.items():
        begin = -(-end // ALIGNED) * ALIGNED
        places[name] = StoredArray(values.dtype.str, len(values), begin)
        end = begin + values.nbytes
    return places, end


def _source(folder: Path, path: str, state: FileState) -> SourceFile:
    found = checksum(path, state)
    if file_state(path) != state:
        raise UserError(f"{path}: was changed while it was read; run again when it is complete")
    return SourceFile(os.path.relpath(path, folder), state, found)


def _parts(arrays: dict[str, np.ndarray], places: dict[str, StoredArray]):
    """The bytes of the arrays and of the gaps before them."""
    end = 0
    for name, values in arrays.items():
        yield bytes(places[name].offset - end)
        yield memoryview(np.ascontiguousarray(values)).cast("B") if len(values) else b""
        end = places[name].offset + values.nbytes


def load_arrays(path: Path, key: dict[str, str], folder: Path) -> MappedArrays | None:
    """The arrays of a file; None if it does not exist, is damaged, or must be made again.

    The parameters are those of `save_arrays`.
    """
    found = _open(path, key, folder)
    if found is None:
        return None
    header, data = found
    if hashlib.sha256(data).hexdigest() != header.sha256:
        return None
    return _arrays(path, header, data)


def is_current(path: Path, key: dict[str, str], folder: Path) -> bool:
    """Whether `load_arrays` returns arrays, unless they are damaged, which is not checked."""
    return _open(path, key, folder) is not None


def _open(path: Path, key: dict[str, str], folder: Path) -> tuple[Header, memoryview] | None:
    """(header, bytes of the arrays) of a file that has the right length, key and sources, else None."""
    found = _read_header(path)
    return found if found and found[0].key == key and _unchanged(found[0], folder) else None


def _read_header(path: Path) -> tuple[Header, memoryview] | None:
    """(header, bytes of the arrays) of a file of the right length, else None."""
    refuse_special_file(path)
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        magic, size, digest = _START.unpack_from(data)
        begin = _START.size + size
        if magic != MAGIC or hashlib.sha256(data[_START.size : begin]).digest() != digest:
            return None
        header = msgspec.json.decode(data[_START.size : begin], type=Header)
    except (OSError, ValueError, struct.error):  # missing or empty; too short; not of this format
        return None
    return (header, data[begin:]) if len(data) == begin + header.bytes else None


def _unchanged(header: Header, folder: Path) -> bool:
    """Whether a search finds the same files as when the file was made, with the same content.

    A file of the same size, with another time (after a copy, for example), is compared by its checksum.
    """
    try:
        for name, found in header.searched.items():
            paths = find_files(folder, name) if "*" in name else existing(find_file(folder, name))
            if [os.path.relpath(path, folder) for path in paths] != found:
                return False
        for source in header.sources:
            path = folder / source.path
            state = file_state(path)
            if state.size != source.state.size:
                return False
            if state != source.state and checksum(path, state) != source.sha256:
                return False
    except (OSError, UserError):  # a file was removed meanwhile, or a second one was added
        return False
    return True
