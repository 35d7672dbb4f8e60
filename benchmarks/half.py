"""float32 to float16: shards.half against numpy's astype.

python benchmarks/half.py [--regions 36] [--width 2048]
"""

import sys
import timeit
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
import torch

from shards.flags import command, flag
from shards.half import to_half

REPEATS = 100


@dataclass
class Config:
    """Flags of this benchmark."""

    regions: int = flag(36, "of an image", low=1)
    width: int = flag(2048, "of a region's features", low=1)


def run(config: Config) -> None:
    torch.set_num_threads(1)  # as in a working process of shards.convert
    rng = np.random.default_rng(0)
    features = np.maximum(rng.standard_normal((config.regions, config.width), np.float32), 0)  # as behind a ReLU
    ways = {"numpy's astype": lambda: features.astype(np.float16), "by torch": lambda: to_half(features)}
    times = {name: median(timeit.repeat(way, number=1, repeat=REPEATS)) for name, way in ways.items()}
    base = times["numpy's astype"]
    for name, seconds in times.items():
        print(f"{name:<16} {1000 * seconds:7.3f} ms/image  {base / seconds:5.2f}x")


if __name__ == "__main__":
    command(Config, run, "benchmarks/half.py", "float32 to float16, against numpy.")
