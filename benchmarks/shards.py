"""Samples per second from region shards: iteration by webdataset, our streaming, and local random access.

    python benchmarks/shards.py [--samples 600] [--repeats 5]

Samples of 36 x 2048 float16 features with boxes, classes and captions. "Copied" copies every array to a batch, like
training; without it, local access returns views and reads only the accessed pages.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
import webdataset

from benchmarks.timing import print_table, time_in_turn
from shards.common.cli import command, flag
from shards.common.counter_rng import permutation
from shards.storage.dataset import finish_dataset, open_dataset
from shards.storage.reader import RegionReader
from shards.storage.sample import Sample
from shards.storage.stream import read_stream
from shards.storage.writer import write_shard

REGIONS, FEATURES, PER_REGION = 36, 2048, 20


@dataclass
class Config:
    """Flags of this benchmark."""

    samples: int = flag(600, "samples in the shard", low=1)
    repeats: int = flag(5, "timed passes of each variant", low=1)


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


def run(config: Config) -> None:
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


if __name__ == "__main__":
    command(Config, run, "benchmarks/shards.py", __doc__.splitlines()[0], sys.argv[1:])
