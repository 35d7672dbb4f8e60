"""Search for near perceptual hashes: exhaustive, in numpy, or several times as fast, with the same result, by faiss.

An image has the hashes of `perceptual_hash.image_hashes`. Two images are a near pair if any hash of one is within NEAR
bits of the hash of the other, uncropped image.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from shards.common.errors import UserError

NEAR = 10  # maximum Hamming distance, in bits, between hashes of the same photo


class HashSearch(Protocol):
    """The hashes of some images, prepared for a search."""

    def pairs(self, hashes: np.ndarray) -> np.ndarray:
        """The near pairs, int64 (pairs, 2): row numbers of `hashes`, uint64 (n, 6), and of the prepared images.

        Pairs are unique and sorted.
        """
        ...


class ExactSearch:
    """Compares all hashes in numpy, in blocks.

    Args:
        others: uint64 (m, 6).
        block: number of images that are compared at a time.
    """

    def __init__(self, others: np.ndarray, block: int = 1024):
        self.others, self.block = others, block

    def pairs(self, hashes: np.ndarray) -> np.ndarray:
        found = [np.empty((0, 2), np.int64)]
        for first in range(0, len(hashes), self.block):
            ours = hashes[first : first + self.block]
            for begin in range(0, len(self.others), self.block):
                theirs = self.others[begin : begin + self.block]
                near = np.bitwise_count(ours[:, None, 0] ^ theirs[None, :, 0]) <= NEAR
                for cropped in range(1, hashes.shape[1]):
                    near |= np.bitwise_count(ours[:, None, cropped] ^ theirs[None, :, 0]) <= NEAR
                    near |= np.bitwise_count(ours[:, None, 0] ^ theirs[None, :, cropped]) <= NEAR
                rows, columns = np.nonzero(near)
                found.append(np.stack([rows + first, columns + begin], 1))
        return _unique(np.concatenate(found))


class FaissSearch:
    """The same search with faiss's binary index, which compares all hashes too, with vector instructions."""

    def __init__(self, others: np.ndarray):
        try:
            import faiss
        except ImportError:
            raise UserError(
                "--search faiss: needs the package faiss-cpu (pip install 'twelve-in-one[search]'); --search exact "
                "gives the same result"
            ) from None
        faiss.omp_set_num_threads(1)  # parts of the corpus are searched in parallel
        self.crops = others.shape[1] - 1
        self.whole, self.cropped = faiss.IndexBinaryFlat(64), faiss.IndexBinaryFlat(64)
        self.whole.add(_bytes(others[:, 0]))
        self.cropped.add(_bytes(others[:, 1:]))

    def pairs(self, hashes: np.ndarray) -> np.ndarray:
        rows, columns = _within(self.whole, hashes)
        ours, theirs = _within(self.cropped, hashes[:, 0])
        found = [[rows // hashes.shape[1], columns], [ours, theirs // self.crops]]
        return _unique(np.concatenate([np.stack(pair, 1) for pair in found]))


SEARCHES: dict[str, Callable[[np.ndarray], HashSearch]] = {"exact": ExactSearch, "faiss": FaissSearch}


def _within(index, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row of the flattened hashes, row of the index) of all pairs within NEAR bits."""
    limits, _, found = index.range_search(_bytes(hashes), NEAR + 1)  # faiss excludes the radius itself
    return np.repeat(np.arange(hashes.size), np.diff(limits.astype(np.int64))), found.astype(np.int64)


def _bytes(hashes: np.ndarray) -> np.ndarray:
    """uint8 (hashes, 8)."""
    return np.ascontiguousarray(hashes).reshape(-1, 1).view(np.uint8)


def _unique(pairs: np.ndarray) -> np.ndarray:
    return np.unique(pairs.astype(np.int64), axis=0)
