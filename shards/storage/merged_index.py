"""The indexes of all shards of a folder in one file, which all processes map.

Three million samples in 3,100 shards have half a gigabyte of indexes (NAME.index.npz), which every process would read
and hold. Their rows are written once to `dataset.index` next to the tars. Later readers map this file: opening it takes
no time, and all ranks and data workers of a machine share its pages. It is used only for the same tars (names, sizes,
times and numbers of samples) and is made again otherwise; if the folder cannot be written, the rows stay in memory.

The file begins with MAGIC, the SHA-256 of the description of the tars, and the widths of keys and ids; the rows follow.
"""

import contextlib
import hashlib
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.untrusted_input import refuse_special_file
from shards.storage.index import ShardIndex, load_index
from shards.storage.sample import MEMBERS

NAME = "dataset.index"
MERGED_FROM = 100_000  # samples; fewer are read from the index of each shard in less than a second
MAGIC = b"12in1-index-1"
_START = struct.Struct("<16s32sII8x")


class CountedShard(Protocol):
    """A tar and its number of samples according to dataset.json."""

    path: str
    samples: int


def load_rows(shards: Sequence[CountedShard]) -> list[np.ndarray]:
    """The samples of each shard, as structured arrays (samples,) with the fields of `row_type`.

    Raises:
        UserError: a shard cannot be read, or contains another number of samples than in dataset.json.
    """
    folders: dict[Path, list[CountedShard]] = {}
    for shard in shards:
        folders.setdefault(Path(shard.path).parent, []).append(shard)
    rows: dict[str, np.ndarray] = {}
    for folder, inside in folders.items():
        counts = [shard.samples for shard in inside]
        if sum(counts) < MERGED_FROM:
            found = [_joined([_checked_index(shard)]) for shard in inside]
        else:
            found = np.split(_merged(folder / NAME, inside), np.cumsum(counts)[:-1])
        rows |= zip((shard.path for shard in inside), found, strict=True)
    return [rows[shard.path] for shard in shards]


def row_type(key: int, image: int) -> np.dtype:
    """The type of a row: offset and size of each of sample.MEMBERS, the key and the image id in UTF-8.

    key, image: largest number of bytes of a key and of an id.
    """
    return np.dtype([("members", "<i8", (len(MEMBERS), 2)), ("key", f"S{max(key, 1)}"), ("id", f"S{max(image, 1)}")])


def text_of(value: bytes) -> str:
    """The key or id in a row."""
    return value.decode("utf-8", "surrogatepass")


def _checked_index(shard: CountedShard) -> ShardIndex:
    index = load_index(shard.path)
    if shard.samples != len(index):
        raise UserError(
            f"{shard.path}: contains {len(index)} samples, but {shard.samples} according to dataset.json; make "
            "or fetch it again"
        )
    return index


def _merged(path: Path, shards: Sequence[CountedShard]) -> np.ndarray:
    """The rows of all shards of a folder, from the mapped file, which is written first if needed."""
    digest, count = _digest(shards), sum(shard.samples for shard in shards)
    found = _mapped(path, digest, count)
    if found is None:
        found = _joined([_checked_index(shard) for shard in shards])
        with contextlib.suppress(OSError, UserError):  # the folder cannot be written, or the disk is full
            widths = (found.dtype[name].itemsize for name in ("key", "id"))
            with whole_file(path) as file:
                file.write(_START.pack(MAGIC, digest, *widths))
                file.write(found.view(np.uint8).data)
            mapped = _mapped(path, digest, count)  # its pages are shared, those of `found` are not
            found = found if mapped is None else mapped
    return found


def _joined(indexes: Sequence[ShardIndex]) -> np.ndarray:
    """The rows of some shards, in order."""
    keys, ids = ([_in_utf8(getattr(index, name)) for index in indexes] for name in ("keys", "ids"))
    widths = (max(part.dtype.itemsize for part in parts) for parts in (keys, ids))
    rows = np.empty(sum(map(len, indexes)), row_type(*widths))
    begin = 0
    for index, *texts in zip(indexes, keys, ids, strict=True):
        part = rows[begin : begin + len(index)]
        part["members"], part["key"], part["id"] = index.members, *texts
        begin += len(index)
    return rows


def _in_utf8(texts: np.ndarray) -> np.ndarray:
    """Names in a tar that are not UTF-8 contain surrogates in Python."""
    return np.char.encode(texts, "utf-8", "surrogatepass")


def _digest(shards: Sequence[CountedShard]) -> bytes:
    """SHA-256 of names, sizes, times and numbers of samples of the tars."""
    digest = hashlib.sha256()
    for shard in shards:
        path = Path(shard.path)
        try:
            state = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        digest.update(repr((path.name, state.st_size, state.st_mtime_ns, shard.samples)).encode())
    return digest.digest()


def _mapped(path: Path, digest: bytes, count: int) -> np.ndarray | None:
    """The rows in a file; None if it does not exist, is incomplete, or belongs to other tars."""
    refuse_special_file(path)
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, known, *widths = _START.unpack_from(data)
    except (OSError, ValueError, struct.error):  # missing; empty; too short
        return None
    kind = row_type(*widths)
    if magic.rstrip(b"\0") != MAGIC or known != digest or len(data) != _START.size + count * kind.itemsize:
        return None
    return np.frombuffer(data, kind, count, _START.size)
