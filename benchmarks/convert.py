"""Conversion of published features compared with reading them; access to one of 100,000 images in an LMDB.

    python benchmarks/convert.py [--images 10000] [--ids 100000]

The sources are written first, with random numbers. Before each reading and each conversion a source is dropped from the
page cache, so that all read the disk. What is compared is bytes of the source per second, with the time that processes
take to start.
"""

import base64
import hashlib
import os
import pickle
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import lmdb
import numpy as np

from shards.common.cli import command, flag
from shards.common.files import whole_file
from shards.config import ConvertConfig
from shards.creation.conversion import convert
from shards.importers import open_source
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader

REGIONS, WIDTH = 36, 2048
BEST_OF = 3
BLOCK, FILE = 1 << 20, 1 << 28  # bytes that are read at once, and those of which a file is made


@dataclass
class Config:
    """Flags of this benchmark."""

    images: int = flag(10_000, "images of each source", low=10)
    ids: int = flag(100_000, "images of the data set that is read at random", low=100)
    reads: int = flag(2000, "images that are read at random", low=1)
    folder: str | None = flag(None, "where to write, else a temporary folder")


def item(number: int, rng, width: int = WIDTH, regions: int = REGIONS) -> dict:
    corner = rng.random((regions, 2), dtype=np.float32) * 300
    return {
        "image_id": str(number),
        "image_h": 480,
        "image_w": 640,
        "num_boxes": regions,
        "boxes": np.concatenate([corner, corner + 100], 1),
        # A third is zero, as in real features, which are outputs of a ReLU.
        "features": np.maximum(rng.standard_normal((regions, width), np.float32) + np.float32(0.4), 0),
    }


def write_lmdb(path: Path, count: int, **sizes) -> None:
    rng = np.random.default_rng(0)
    with lmdb.open(str(path), map_size=1 << 40) as environment:
        for begin in range(0, count, 1000):
            with environment.begin(write=True) as writing:
                for number in range(begin, min(begin + 1000, count)):
                    writing.put(str(number).encode(), pickle.dumps(item(number, rng, **sizes)))
        with environment.begin(write=True) as writing:
            writing.put(b"keys", pickle.dumps([str(number).encode() for number in range(count)]))
        environment.sync()


def write_tsv(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for number in range(count):
            one = item(number, rng)
            arrays = (base64.b64encode(one[name].tobytes()).decode() for name in ("boxes", "features"))
            file.write("\t".join([str(number), "640", "480", str(REGIONS), *arrays]).encode() + b"\n")


def drop_from_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_to_read(path: Path) -> float:
    drop_from_cache(path)
    began = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.read(BLOCK):
            pass
    return time.perf_counter() - began


def seconds_to_decode(source: Path, file: Path) -> float:
    """Reading and decoding of all arrays, the minimum for any program."""
    drop_from_cache(file)
    began = time.perf_counter()
    opened = open_source(str(source))
    for part in opened.parts(200):
        for record in opened.records(part):
            opened.parse(record.raw)
    return time.perf_counter() - began


def seconds_to_copy(file: Path, folder: Path) -> float:
    """Reading, and writing half the bytes with a checksum, in files of the size of a shard: a lower bound."""
    drop_from_cache(file)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        began = time.perf_counter()
        with open(file, "rb", buffering=0) as source:
            for number in range(-(-file.stat().st_size // FILE)):
                sha256 = hashlib.sha256()
                with whole_file(Path(out) / str(number)) as copy:
                    for _ in range(FILE // BLOCK):
                        half = source.read(BLOCK)[: BLOCK // 2]
                        sha256.update(half)
                        copy.write(half)
        return time.perf_counter() - began


def seconds_to_convert(source: Path, file: Path, folder: Path, processes: int) -> float:
    drop_from_cache(file)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        began = time.perf_counter()
        convert(ConvertConfig((str(source),), out, processes=processes))
        return time.perf_counter() - began


def compare(source: Path, file: Path, folder: Path) -> None:
    size = file.stat().st_size
    print(f"{source.name}, {size / 1e6:.0f} MB")
    ways = {
        "the bytes alone": lambda: seconds_to_read(file),
        "read and decoded": lambda: seconds_to_decode(source, file),
        "half of it copied": lambda: seconds_to_copy(file, folder),
        "converted by 1": lambda: seconds_to_convert(source, file, folder, 1),
        "converted by 2": lambda: seconds_to_convert(source, file, folder, 2),
    }
    rates = {name: size / min(way() for _ in range(BEST_OF)) for name, way in ways.items()}
    bytes_alone, decoded, *_ = rates.values()
    print(f"{'':<20} {'MB/s':>8} {'of decoding':>12} {'of the bytes':>13}")
    for name, rate in rates.items():
        print(f"{name:<20} {rate / 1e6:8.0f} {rate / decoded:11.2f}x {rate / bytes_alone:12.2f}x")


class PublishedReader:
    """Reads an image by a search in the list of ids and a pickle, like the reference implementation."""

    def __init__(self, path: Path):
        self.environment = lmdb.open(str(path), readonly=True, lock=False)
        with self.environment.begin() as reading:
            self.ids = pickle.loads(reading.get(b"keys"))

    def __getitem__(self, image: str) -> np.ndarray:
        key = self.ids[self.ids.index(image.encode())]
        with self.environment.begin() as reading:
            return pickle.loads(reading.get(key))["features"]


def read_at_random(config: Config, folder: Path) -> None:
    write_lmdb(folder / "many.lmdb", config.ids, width=16, regions=10)
    convert(ConvertConfig((str(folder / "many.lmdb"),), str(folder / "many"), per_shard=5000))
    wanted = [str(number) for number in random.Random(0).sample(range(config.ids), config.reads)]
    ours, theirs = RegionReader(open_dataset(str(folder / "many"))), PublishedReader(folder / "many.lmdb")
    ours.number_of(wanted[0])  # builds the index of ids, once
    times = {}
    for name, read in (
        ("the published way", lambda image: theirs[image]),
        ("through the index", lambda image: ours[ours.number_of(image)].features),
    ):
        began = time.perf_counter()
        for image in wanted:
            np.asarray(read(image)).sum()
        times[name] = (time.perf_counter() - began) / len(wanted)
    print(f"one image of {config.ids}")
    for name, each in times.items():
        print(f"{name:<24} {each * 1e6:8.0f} us   {times['the published way'] / each:8.2f}x")


def run(config: Config) -> None:
    with tempfile.TemporaryDirectory(dir=config.folder) as name:
        folder = Path(name)
        write_lmdb(folder / "features.lmdb", config.images)
        compare(folder / "features.lmdb", folder / "features.lmdb" / "data.mdb", folder)
        write_tsv(folder / "features.tsv", config.images)
        compare(folder / "features.tsv", folder / "features.tsv", folder)
        read_at_random(config, folder)


if __name__ == "__main__":
    command(Config, run, "benchmarks/convert.py", __doc__.splitlines()[0], sys.argv[1:])
