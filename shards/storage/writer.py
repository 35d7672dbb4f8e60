"""Writing of region shards: an atomic write of the tar with its checksum, and its index."""

import functools
import hashlib
import os
import re
import tarfile
from pathlib import Path

import numpy as np

from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.fp16 import finite
from shards.storage.index import ShardIndex
from shards.storage.sample import MEMBERS, Sample, check_values, encode

MODE = 0o644  # mode of the files in a tar
AT_ONCE = 1 << 23  # bytes after which writing to disk is started


class _Hashing:
    """A tar that is hashed while it is written sequentially."""

    def __init__(self, file):
        self.file, self.sha256, self.position, self.sent = file, hashlib.sha256(), 0, 0

    def write(self, data: bytes) -> None:
        self.sha256.update(data)
        self.position += len(data)
        self.file.write(data)
        if self.position - self.sent >= AT_ONCE:
            self._send()

    def _send(self) -> None:
        """Makes the system start writing to disk, so that the final fsync does not take long."""
        self.file.flush()
        if hasattr(os, "posix_fadvise"):  # dropping dirty pages from the cache means writing them
            os.posix_fadvise(self.file.fileno(), self.sent, self.position - self.sent, os.POSIX_FADV_DONTNEED)
        self.sent = self.position

    def add(self, name: str, data: bytes) -> int:
        """Adds a file to the tar and returns the offset of its data."""
        self.write(_tar_header(name, len(data)))
        begin = self.position
        self.write(data)
        self.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return begin

    def finish(self) -> None:
        """Writes two empty blocks and fills the last record, like tar programs."""
        self.write(bytes(2 * tarfile.BLOCKSIZE))
        self.write(bytes(-self.position % tarfile.RECORDSIZE))


def _tar_header(name: str, size: int) -> bytes:
    """The header of a file in a tar; tarfile, which takes as long as everything else, is used only for long names."""
    encoded = name.encode()
    if len(encoded) > 100 or not name.isascii() or size >= 8**11:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, MODE
        return entry.tobuf(tarfile.PAX_FORMAT)
    header = bytearray(_empty_header())
    header[: len(encoded)] = encoded
    header[124:135] = b"%011o" % size
    header[148:156] = b"        "  # the checksum is computed with spaces in its field
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@functools.cache
def _empty_header() -> bytes:
    entry = tarfile.TarInfo("")
    entry.mode = MODE
    return entry.tobuf(tarfile.PAX_FORMAT)


def safe_key(image_id: str) -> str:
    """An image id as a webdataset key, without dots, which end a key, and special characters of shells."""
    return re.sub(r"[^A-Za-z0-9_/+-]", "_", image_id).strip("/") or "_"


def check_sample(sample: Sample) -> None:
    """Raises UserError for inconsistent shapes and for values that are not finite or out of range."""
    n = len(sample.features)
    if n == 0:
        raise UserError(f"{sample.key}: has no regions")
    if sample.boxes.shape != (n, 4):
        raise UserError(f"{sample.key}: has {n} features, but boxes of shape {sample.boxes.shape}")
    if not finite(sample.features):
        raise UserError(f"{sample.key}: has features that are not finite in float16")
    check_values(sample)


def write_shard(path, samples) -> ShardIndex:
    """Writes `samples` (any iterable of Sample) atomically as one tar, and its index NAME.index.npz.

    Equal samples give equal bytes.
    """
    path = Path(path)
    keys: dict[str, None] = {}
    ids, offsets = [], []
    with whole_file(path) as file:
        out = _Hashing(file)
        for sample in samples:
            check_sample(sample)
            if sample.key in keys:
                raise UserError(f"{path}: duplicate key {sample.key}; keys must be unique in a data set")
            keys[sample.key] = None
            places = np.zeros((len(MEMBERS), 2), np.int64)
            for name, data in encode(sample).items():
                places[MEMBERS.index(name)] = out.add(f"{sample.key}.{name}", data), len(data)
            ids.append(str(sample.info.get("id", sample.key)))
            offsets.append(places)
        out.finish()
    index = ShardIndex(
        path=str(path),
        bytes=out.position,
        sha256=out.sha256.hexdigest(),
        keys=np.array(list(keys), dtype=np.str_),
        ids=np.array(ids, dtype=np.str_),
        members=np.array(offsets, np.int64).reshape(-1, len(MEMBERS), 2),
    )
    index.save()
    return index
