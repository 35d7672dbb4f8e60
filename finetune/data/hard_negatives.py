"""Negatives of retrieval training: a 4-way choice per caption, with one hard negative."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from finetune.data.regions import Regions
from finetune.prepared.packed_examples import PackedExamples
from finetune.prepared.prepare_data import derived_arrays
from shards.common import counter_rng
from shards.common.errors import UserError
from shards.common.progress_bar import progress_bar
from shards.common.random_purposes import EpochPurpose
from shards.storage.dataset import fingerprint

NEAREST = 100  # nearest images from which a hard negative is drawn
BLOCK = 1 << 25  # distances at a time: 128 MB, and 256 MB while they are ordered
WORTH_A_BAR = 10_000  # images from which progress bars are shown


def nearest_images(means: np.ndarray, count: int = NEAREST) -> np.ndarray:
    """Exact k-nearest-neighbour search by Euclidean distance, in blocks of rows.

    Args:
        means: float (n, D), mean features of each image.
        count: number of neighbours k; at most n - 1.

    Returns:
        int32 (n, k): the nearest other images of each image, nearest first.
    """
    count = min(count, len(means) - 1)
    found, done = np.empty((len(means), count), np.int32), 0
    with _bar(total=len(means), desc="nearest images") as bar:
        for block in neighbours(means, count, len(means)):
            found[done : done + len(block)] = block
            done += len(block)
            bar.update(len(block))
    return found


def neighbours(means: np.ndarray, count: int, searched: int) -> Iterator[np.ndarray]:
    """Yields the nearest images of the first `searched` images in blocks of rows, int64 (rows, count)."""
    means = np.asarray(means, np.float32)
    squares, rows = np.einsum("ij,ij->i", means, means), max(1, BLOCK // len(means))
    for begin in range(0, searched, rows):
        part = means[begin : min(begin + rows, searched)]
        # Squared distances but for the square of the row's own image, which does not change the order in its row.
        distances = part @ means.T
        distances *= -2
        distances += squares
        distances[np.arange(len(part)), np.arange(begin, begin + len(part))] = np.inf
        near = np.argpartition(distances, count - 1, 1)[:, :count]
        order = np.take_along_axis(distances, near, 1).argsort(1, kind="stable")
        yield np.take_along_axis(near, order, 1)


def mean_features(regions: Regions, images: list[str]) -> np.ndarray:
    """float32 (n, D): the mean of the region features of each image, relative to the mean of these.

    The common mean changes no distance; without it, float32 rounds less. Images are read in the order of the shards.
    """
    means = np.empty((len(images), regions.dataset.feature_size), np.float32)
    order = np.argsort([regions.numbers[image] for image in images])
    with _bar(total=len(images), desc="mean features") as bar:
        for place in order.tolist():
            means[place] = regions[images[place]].features.mean(0, dtype=np.float32)
            bar.update()
    means -= means.mean(0)
    return means


def _bar(total: int, desc: str):
    return progress_bar(total=total, unit=" images", desc=desc, disable=total < WORTH_A_BAR)


class RetrievalNegatives:
    """The three negatives of each caption: a random caption, a random image, and a caption of a similar image.

    They are a function of (seed, epoch, number of the example). The nearest images are kept in the data folder.
    """

    def __init__(self, examples: PackedExamples, regions: Regions, seed: int, data: Path):
        self.seed = seed
        sets, self.own = examples.images()
        self.images = [images[0] for images in sets]
        if len(self.images) < 2:
            raise UserError("retrieval needs examples of at least two images, to draw negatives from")
        self.captions = np.argsort(self.own, kind="stable")  # the captions of the first image, of the second, ...
        self.begins = np.concatenate([[0], np.bincount(self.own).cumsum()])
        digest = hashlib.sha256("\n".join(self.images).encode()).hexdigest()
        key = {"content": "nearest", "images": digest, "regions": fingerprint(regions.dataset), "count": str(NEAREST)}
        name = f"{regions.dataset.folder.name}-{digest[:16]}.nearest"
        found = derived_arrays(data, name, key, partial(self._nearest, regions))
        self.nearest = found["nearest"].reshape(len(self.images), -1)

    def _nearest(self, regions: Regions) -> dict[str, np.ndarray]:
        return {"nearest": nearest_images(mean_features(regions, self.images)).ravel()}

    def draw(self, epoch: int, number: int) -> tuple[int, str, int]:
        """(number of the example with the random caption, the random image, number of the example with the hard
        negative caption)."""
        random_key = counter_rng.key(self.seed, epoch, EpochPurpose.RETRIEVAL_NEGATIVES, number)
        numbers = counter_rng.draw(np.array([random_key]), np.arange(4))
        own = int(self.own[number])
        other, image, near, caption = numbers[:, None]
        others = len(self.images) - 1
        # `other` is used twice: its bits above 24 choose the image, and other bits of it the caption. A fifth number
        # would be plainer, but would change the negatives of every seed.
        random_image = self._but(own, int(counter_rng.below(image, others)[0]))
        hard = int(self.nearest[own, int(counter_rng.below(near, self.nearest.shape[1])[0])])
        return (
            self._caption(self._but(own, int(counter_rng.below(other, others)[0])), other >> 7),
            self.images[random_image],
            self._caption(hard, caption),
        )

    def _but(self, own: int, drawn: int) -> int:
        """The number of an image, from a number drawn among all images except `own`."""
        return drawn + (drawn >= own)

    def _caption(self, image: int, number: np.ndarray) -> int:
        captions = self.captions[self.begins[image] : self.begins[image + 1]]
        return int(captions[int(counter_rng.below(number, len(captions))[0])])
