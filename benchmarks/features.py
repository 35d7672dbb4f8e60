"""The steps of converting features: base64 by pybase64 and float16 by torch, compared with the usual functions.

python benchmarks/features.py [--region_count 36] [--width 2048]
"""

import base64
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
import pybase64
import torch

from benchmarks.timing import print_table, time_in_turn
from shards.common.cli import command, flag
from shards.common.fp16 import to_half

REPEATS = 100


@dataclass
class Config:
    """Flags of this benchmark."""

    region_count: int = flag(36, "number of regions of an image", low=1, formerly="regions")
    width: int = flag(2048, "number of features of a region", low=1)


def run(config: Config) -> None:
    torch.set_num_threads(1)  # as in a worker process of shards.convert
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((config.region_count, config.width), np.float32)
    features = np.maximum(drawn, 0)  # like outputs of a ReLU
    text = base64.b64encode(features.tobytes())
    for title, ways in {
        "base64": {
            "the standard library": lambda: base64.b64decode(text, validate=True),
            "pybase64": lambda: pybase64.b64decode(text, validate=True),
        },
        "float32 to float16": {
            "numpy's astype": lambda: features.astype(np.float16),
            "by torch": lambda: to_half(features),
        },
    }.items():
        print(title)
        print_table(time_in_turn(ways, REPEATS), next(iter(ways)), per=1e-6, unit="us/image")


if __name__ == "__main__":
    command(Config, run, "benchmarks/features.py", __doc__.splitlines()[0], sys.argv[1:])
