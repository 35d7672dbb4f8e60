"""What a caption and an image are told apart from in training: retrieval's four options, hard negatives among them."""

from collections.abc import Sequence

import numpy as np

from finetune.regions import Regions
from finetune.task import Example
from shards import hashing
from shards.errors import UserError

NEAREST = 100  # images from which a hard negative is drawn
BLOCK = 1024


def nearest_images(means: np.ndarray, count: int = NEAREST) -> np.ndarray:
    """int64 (n, k): of each image the k others whose mean features (n, D) are nearest to its own, nearest first.

    An exact search by Euclidean distance, in blocks of rows; k is `count`, or n - 1 where there are fewer.
    """
    means = np.asarray(means, np.float32)
    squares = (means * means).sum(1)
    count = min(count, len(means) - 1)
    found = np.empty((len(means), count), np.int64)
    for begin in range(0, len(means), BLOCK):
        rows = slice(begin, begin + BLOCK)
        distances = squares[rows, None] + squares - 2 * (means[rows] @ means.T)
        distances[np.arange(len(distances)), np.arange(begin, begin + len(distances))] = np.inf
        near = np.argpartition(distances, count - 1, 1)[:, :count]
        order = np.take_along_axis(distances, near, 1).argsort(1, kind="stable")
        found[rows] = np.take_along_axis(near, order, 1)
    return found


class Options:
    """The three wrong options of each caption: another caption, another image, a caption of an image that is like it.

    Which they are follows from (seed, epoch, number of the example).
    """

    def __init__(self, examples: Sequence[Example], regions: Regions, seed: int):
        self.seed = seed
        images = [example.images[0] for example in examples]
        self.images = list(dict.fromkeys(images))
        if len(self.images) < 2:
            raise UserError("retrieval needs examples of two images at least; there is nothing to tell one from")
        places = {image: place for place, image in enumerate(self.images)}
        self.own = np.array([places[image] for image in images])
        self.captions = [np.flatnonzero(self.own == place) for place in range(len(self.images))]
        self.nearest = nearest_images(np.stack([regions[i].features.astype(np.float32).mean(0) for i in self.images]))

    def draw(self, epoch: int, number: int) -> tuple[int, str, int]:
        """(the example whose caption is the random one, the random image, the example with the hard caption)."""
        numbers = hashing.draw(np.array([hashing.key(self.seed, epoch, 3, number)]), np.arange(4))
        own = int(self.own[number])
        other, image, near, caption = numbers[:, None]
        others = len(self.images) - 1
        random_image = self._but(own, int(hashing.below(image, others)[0]))
        hard = int(self.nearest[own, int(hashing.below(near, self.nearest.shape[1])[0])])
        return (
            self._caption(self._but(own, int(hashing.below(other, others)[0])), other >> 7),
            self.images[random_image],
            self._caption(hard, caption),
        )

    def _but(self, own: int, drawn: int) -> int:
        """A number drawn from all images but one, as the image's place among all."""
        return drawn + (drawn >= own)

    def _caption(self, image: int, number: np.ndarray) -> int:
        captions = self.captions[image]
        return int(captions[int(hashing.below(number, len(captions))[0])])
