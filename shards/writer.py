"""Writing a region shard: the tar under a temporary name, its checksum on the way, its index beside it."""

import functools
import hashlib
import os
import re
import tarfile
from pathlib import Path

import numpy as np

from shards.errors import UserError
from shards.files import whole_file
from shards.half import finite
from shards.index import ShardIndex
from shards.sample import MEMBERS, Sample, check_values, encode

MODE = 0o644  # of the files in a tar
AT_ONCE = 1 << 23  # bytes that are sent to the disk together


class _Hashing:
    """A file that is written once from front to back and hashed as it goes."""

    def __init__(self, file):
        self.file, self.sha256, self.position, self.sent = file, hashlib.sha256(), 0, 0

    def write(self, data: bytes) -> None:
        self.sha256.update(data)
        self.position += len(data)
        self.file.write(data)
        if self.position - self.sent >= AT_ONCE:
            self._send()

    def _send(self) -> None:
        """Has the system begin to write to the disk meanwhile: who syncs the whole file at the end waits for little."""
        self.file.flush()
        if hasattr(os, "posix_fadvise"):  # not needing pages that are not written yet means writing them
            os.posix_fadvise(self.file.fileno(), self.sent, self.position - self.sent, os.POSIX_FADV_DONTNEED)
        self.sent = self.position

    def add(self, name: str, data: bytes) -> int:
        """Adds a file to the tar; returns where its data begin."""
        self.write(_tar_header(name, len(data)))
        begin = self.position
        self.write(data)
        self.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return begin

    def finish(self) -> None:
        """Two empty blocks, and the rest of the last record, as tar programs write them."""
        self.write(bytes(2 * tarfile.BLOCKSIZE))
        self.write(bytes(-self.position % tarfile.RECORDSIZE))


def _tar_header(name: str, size: int) -> bytes:
    """The header of a file in a tar. tarfile's own, which takes as long as all the rest, serves long names alone."""
    encoded = name.encode()
    if len(encoded) > 100 or not name.isascii() or size >= 8**11:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, MODE
        return entry.tobuf(tarfile.PAX_FORMAT)
    header = bytearray(_empty_header())
    header[: len(encoded)] = encoded
    header[124:135] = b"%011o" % size
    header[148:156] = b"        "  # the checksum counts itself as spaces
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@functools.cache
def _empty_header() -> bytes:
    entry = tarfile.TarInfo("")
    entry.mode = MODE
    return entry.tobuf(tarfile.PAX_FORMAT)


def safe_key(image_id: str) -> str:
    """An image id as a webdataset key: no dots (they end a key) and no characters that shells trip over."""
    return re.sub(r"[^A-Za-z0-9_/+-]", "_", image_id).strip("/") or "_"


def check_sample(sample: Sample) -> None:
    """Refuses what no reader could use: regions that do not fit together, values that are not finite."""
    n = len(sample.features)
    if n == 0:
        raise UserError(f"{sample.key}: has no regions")
    if sample.boxes.shape != (n, 4):
        raise UserError(f"{sample.key}: has {n} features and boxes of shape {sample.boxes.shape}")
    if not finite(sample.features):
        raise UserError(f"{sample.key}: has features that are not finite in float16")
    check_values(sample)


def write_shard(path, samples) -> ShardIndex:
    """Writes `samples` (any iterable of Sample) as one tar; the file appears whole or not at all.

    The index is written beside it as NAME.index.npz. Equal samples give equal bytes.
    """
    path = Path(path)
    keys: dict[str, None] = {}
    ids, offsets = [], []
    with whole_file(path) as file:
        out = _Hashing(file)
        for sample in samples:
            check_sample(sample)
            if sample.key in keys:
                raise UserError(f"{path}: the key {sample.key} comes twice; keys must differ within a data set")
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
