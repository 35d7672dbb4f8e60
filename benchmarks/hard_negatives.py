"""The search for similar images, from which retrieval draws hard negatives: in blocks, and image by image.

    python benchmarks/hard_negatives.py [--images 113287] [--searched 2048]

Random mean features of width 2048 of the images of COCO's training split. The neighbours of some of them among all are
searched for in blocks of rows (as in training) and, fewer of them, image by image in float64. Printed are the processor
time per image, the time for all images computed from it, the peak memory of the process, and the share of neighbours
that are equal.
"""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np

from finetune.data.hard_negatives import NEAREST, neighbours
from shards.common.cli import command, flag

WIDTH, ALONE = 2048, 8  # width of the features; images that are searched one by one


@dataclass
class Config:
    """Flags of this benchmark."""

    images: int = flag(113_287, "number of images", low=200)
    searched: int = flag(2048, "images whose neighbours are searched in blocks", low=ALONE)


def peak() -> float:
    """The largest memory of this process until now, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def image_by_image(means: np.ndarray, count: int) -> np.ndarray:
    """The nearest images of the first `count`, by exact distances in float64 and a complete sort."""
    found = np.empty((count, NEAREST), np.int64)
    for row in range(count):
        distances = np.empty(len(means))
        for begin in range(0, len(means), 4096):
            difference = means[begin : begin + 4096].astype(np.float64) - means[row]
            distances[begin : begin + 4096] = np.einsum("ij,ij->i", difference, difference)
        distances[row] = np.inf
        found[row] = distances.argsort()[:NEAREST]
    return found


def run(config: Config) -> None:
    rng = np.random.default_rng(0)
    means = rng.random((config.images, WIDTH), np.float32)
    means -= means.mean(0)
    before, began = peak(), time.process_time()
    found = np.concatenate(list(neighbours(means, NEAREST, config.searched)))
    seconds = (time.process_time() - began) / len(found)
    after, began = peak(), time.process_time()
    expected = image_by_image(means, ALONE)
    alone = (time.process_time() - began) / ALONE
    print(f"{config.images} images of width {WIDTH}, {NEAREST} neighbours each")
    for title, one in (("image by image", alone), ("in blocks", seconds)):
        whole = one * config.images / 60
        print(f"{title:<16} {one * 1e3:9.3f} ms/image {alone / one:7.1f}x   {whole:7.0f} min for all (computed)")
    print(f"memory: {before:.2f} GB with the mean features, {after:.2f} GB at the peak of the search")
    same = np.mean([len(np.intersect1d(*rows)) for rows in zip(found[:ALONE], expected, strict=True)]) / NEAREST
    print(f"neighbours that are those of float64: {same:.2%}")


if __name__ == "__main__":
    command(Config, run, "benchmarks/hard_negatives.py", __doc__.splitlines()[0], sys.argv[1:])
