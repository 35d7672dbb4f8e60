"""Samples per second from region shards: iteration by webdataset, our streaming, and local random access.

    python benchmarks/shards.py [--samples 600] [--repeats 5]
    python benchmarks/shards.py --tars 3100 [--samples 100]

Samples of 36 x 2048 float16 features with boxes, classes and captions. "Copied" copies every array to a batch, like
training; without it, local access returns views and reads only the accessed pages.

With --tars, that many tars of small samples are opened under a limit of 1,024 file descriptors, by random access with
the index of each tar and with the merged index, and as a stream. Each is a process of its own.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
import webdataset

from benchmarks.timing import print_table, time_in_turn
from shards.common.cli import command, flag
from shards.common.counter_rng import permutation
from shards.storage import merged_index
from shards.storage.dataset import finish_dataset, open_dataset
from shards.storage.reader import RegionReader
from shards.storage.sample import Sample
from shards.storage.stream import read_stream
from shards.storage.writer import write_shard

REGIONS, FEATURES, PER_REGION = 36, 2048, 20
SMALL = 2, 4  # regions and feature size of the samples of many tars
DESCRIPTORS = 1024
READS = 5000  # random or streamed samples that are timed
PROBE = "import sys; from benchmarks.shards import probe; probe(*sys.argv[1:])"


@dataclass
class Config:
    """Flags of this benchmark."""

    samples: int = flag(600, "samples in a shard", low=1)
    repeats: int = flag(5, "timed passes of each variant", low=1)
    tars: int | None = flag(None, "number of tars to open", unset="one tar is read", low=2)


def make_samples(count: int):
    rng = np.random.default_rng(0)
    for number in range(count):
        corner = rng.random((REGIONS, 2)) * 0.7
        yield Sample(
            key=f"{number:08d}",
            features=rng.random((REGIONS, FEATURES), np.float32).astype(np.float16),
            boxes=np.concatenate([corner, corner + 0.2], 1).astype(np.float32),
            class_ids=rng.integers(0, 1601, (REGIONS, PER_REGION)),
            class_probs=np.full((REGIONS, PER_REGION), 0.99 / PER_REGION),
            info={"id": str(number), "width": 640, "height": 480, "source": ""},
            captions=("a person on a horse jumps over a broken down airplane",),
        )


def compare_readers(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "regions-00000.tar"
        write_shard(path, make_samples(config.samples))
        finish_dataset(folder, [path], detector="random", num_classes=1601, extra={})
        reader = RegionReader(open_dataset(folder))
        order = permutation(0, config.samples).tolist()
        features = np.zeros((REGIONS, FEATURES), np.float16)
        boxes = np.zeros((REGIONS, 4), np.float32)

        def copied(samples):
            for sample in samples:
                features[:] = sample.features
                boxes[:] = sample.boxes

        def all_of(samples):
            for _ in samples:
                pass

        def webdataset_copied():
            for sample in webdataset.WebDataset(str(path), shardshuffle=False).decode():
                features[:] = sample["features.npy"]
                boxes[:] = sample["boxes.npy"]

        variants = {
            "webdataset with .decode(), copied": webdataset_copied,
            "our streaming, copied": lambda: copied(read_stream(str(path))),
            "in place, random order, copied": lambda: copied(reader[number] for number in order),
            "webdataset with .decode()": lambda: all_of(webdataset.WebDataset(str(path), shardshuffle=False).decode()),
            "our streaming": lambda: all_of(read_stream(str(path))),
            "in place, random order": lambda: all_of(reader[number] for number in order),
        }
        seconds = time_in_turn(variants, config.repeats)
        print(f"{config.samples} samples, {path.stat().st_size / 1e6:.0f} MB, in the page cache")
        for group in (list(seconds)[:3], list(seconds)[3:]):
            print_table({name: seconds[name] for name in group}, group[0], config.samples * 1e-3, "ms/sample")


def write_many(folder: Path, tars: int, samples: int) -> None:
    features, boxes = np.zeros(SMALL, np.float16), np.tile(np.float32([0.1, 0.1, 0.5, 0.5]), (SMALL[0], 1))
    paths = [folder / f"part-{tar:05d}.tar" for tar in range(tars)]
    for tar, path in enumerate(paths):
        keys = (f"{number:08d}" for number in range(tar * samples, (tar + 1) * samples))
        write_shard(path, (Sample(key, features, boxes, info={"id": key}, captions=("a cat",)) for key in keys))
    finish_dataset(folder, paths, detector="none", num_classes=0, extra={})


def private() -> int:
    """Bytes of this process that are its own: pages of mapped files are not."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


def probe(folder: str, kind: str) -> None:
    """Opens many tars and reads samples of them; prints what was measured, as JSON.

    kind: "each": random access by the index of each tar; "merged": by the merged index; "stream".
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    merged_index.MERGED_FROM = 0 if kind == "merged" else sys.maxsize
    before, began = private(), time.perf_counter()
    dataset = open_dataset(folder)
    if kind == "stream":
        samples = (sample for shard in dataset.shards for sample in read_stream(shard.path))
    else:
        reader = RegionReader(dataset)
        numbers = np.random.default_rng(0).integers(0, len(reader), READS + 1).tolist()
        samples = (reader[number] for number in numbers)
    first, opened = next(samples), time.perf_counter() - began
    began = time.perf_counter()
    read = sum(len(sample.features) == len(first.features) for sample in islice(samples, READS))
    seconds, files = time.perf_counter() - began, len(os.listdir("/proc/self/fd")) - 1  # one lists the folder
    maps = sum(".tar" in line for line in Path("/proc/self/maps").read_text().splitlines())
    print(json.dumps([opened, private() - before, files, maps, read / seconds]))


def open_many(tars: int, samples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_many(Path(folder), tars, samples)
        (Path(folder) / merged_index.NAME).unlink(missing_ok=True)
        print(f"{tars} tars of {samples} samples, at most {DESCRIPTORS} file descriptors")
        print(f"{'':<32} {'first sample':>20} {'private memory':>20}  descriptors  tars mapped  samples/s")
        baseline = None
        ways = {
            "an index per tar": "each",
            "dataset.index, written": "merged",
            "dataset.index, mapped": "merged",
            "stream": "stream",
        }
        for title, kind in ways.items():
            argv = [sys.executable, "-c", PROBE, folder, kind]
            child = subprocess.run(argv, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], check=True)
            opened, memory, files, maps, rate = json.loads(child.stdout)
            baseline = baseline or (opened, memory)
            print(
                f"{title:<32} {opened:9.2f} s {baseline[0] / opened:7.1f}x {memory / 1e6:8.0f} MB "
                f"{baseline[1] / memory:7.1f}x {files:12} {maps:12} {rate:10.0f}",
                flush=True,
            )


def run(config: Config) -> None:
    if config.tars:
        open_many(config.tars, config.samples)
    else:
        compare_readers(config)


if __name__ == "__main__":
    command(Config, run, "benchmarks/shards.py", __doc__.splitlines()[0], sys.argv[1:])
