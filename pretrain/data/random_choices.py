"""Random choices as pure functions of (seed, epoch, sample number): keys of samples, captions, misaligned pairs."""

import numpy as np
from torch import Tensor

from shards.common import counter_rng

# Purposes of random numbers; dropout has the eighth.
MISALIGN, PARTNER, WORD, WORD_ACTION, WORD_RANDOM, REGION, REGION_ACTION = range(7)
PURPOSES = 8
MISALIGNED_SHARE = 0.5  # share of the pairs that get the caption of another image


def sample_keys(seed: int, epoch: int, numbers: np.ndarray) -> np.ndarray:
    """int64 (B,): random keys of samples, which determine all random decisions about them in this epoch."""
    return counter_rng.draw(np.int64(counter_rng.key(seed, epoch)), np.asarray(numbers, np.int64))


def draw(keys, counters, purpose: int):
    """Random numbers (n, m) for keys (n,) and counters (m,); arrays or tensors."""
    return counter_rng.draw(keys[:, None], counters[None, :] * PURPOSES + purpose)


def misaligned(keys: np.ndarray) -> np.ndarray:
    """bool (B,): which pairs get the caption of another image."""
    numbers = draw(keys, np.zeros(1, np.int64), MISALIGN)[:, 0]
    return counter_rng.uniform24(numbers) < counter_rng.threshold(MISALIGNED_SHARE)


def choose_captions(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64 (B,): the index of the caption sampled for each image in this epoch, below its count in int64 (B,).

    All eight purposes are taken, so this uses counter 1 of MISALIGN; `misaligned` uses counter 0 and `negative_keys`
    counter 2.
    """
    return counter_rng.below(draw(keys, np.ones(1, np.int64), MISALIGN)[:, 0], counts)


def negative_keys(keys: Tensor) -> Tensor:
    """int64 (B,): random keys for sampling hard negatives (see choose_captions for the counter)."""
    return counter_rng.draw(keys, 2 * PURPOSES + MISALIGN)
