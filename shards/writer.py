"""Writing a region shard: the tar under a temporary name, its checksum on the way, its index beside it."""

import hashlib
import re
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np

from shards.errors import UserError
from shards.files import whole_file
from shards.index import ShardIndex
from shards.sample import MEMBERS, Sample, encode


class _Hashing:
    """A file that is written once from front to back and hashed as it goes."""

    def __init__(self, file):
        self.file, self.sha256, self.position = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.position += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.position


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
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(sample.features, np.float16)).all()
    if not finite:
        raise UserError(f"{sample.key}: has features that are not finite in float16")
    if not np.isfinite(sample.boxes).all():
        raise UserError(f"{sample.key}: has boxes that are not finite")


def write_shard(path, samples) -> ShardIndex:
    """Writes `samples` (any iterable of Sample) as one tar; the file appears whole or not at all.

    The index is written beside it as NAME.index.npz. Equal samples give equal bytes.
    """
    path = Path(path)
    keys: dict[str, None] = {}
    ids, offsets = [], []
    with whole_file(path) as file:
        out = _Hashing(file)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for sample in samples:
                check_sample(sample)
                if sample.key in keys:
                    raise UserError(f"{path}: the key {sample.key} comes twice; keys must differ within a data set")
                keys[sample.key] = None
                places = np.zeros((len(MEMBERS), 2), np.int64)
                for name, data in encode(sample).items():
                    entry = tarfile.TarInfo(f"{sample.key}.{name}")
                    entry.size, entry.mode = len(data), 0o644
                    header = len(entry.tobuf(tar.format, tar.encoding, tar.errors))
                    places[MEMBERS.index(name)] = tar.offset + header, len(data)
                    tar.addfile(entry, BytesIO(data))
                ids.append(str(sample.info.get("id", sample.key)))
                offsets.append(places)
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
