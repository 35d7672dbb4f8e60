"""Random choices as pure functions of (seed, epoch, sample number): keys of samples, captions, misaligned pairs."""

import numpy as np
from torch import Tensor

from shards.common import counter_rng
from shards.common.random_purposes import Decision, SamplePurpose, sample_counter

MISALIGNED_SHARE = 0.5  # share of the pairs that get the caption of another image


def sample_keys(seed: int, epoch: int, numbers: np.ndarray) -> np.ndarray:
    """int64 (B,): random keys of samples, which determine all random decisions about them in this epoch."""
    return counter_rng.draw(np.int64(counter_rng.key(seed, epoch)), np.asarray(numbers, np.int64))


def draw(keys, numbers, purpose: SamplePurpose):
    """Random numbers (n, m) of these numbers (m,) for a purpose and keys (n,); arrays or tensors."""
    return counter_rng.draw(keys[:, None], sample_counter(purpose, numbers[None, :]))


def decide(keys, decision: Decision):
    """int64 (B,): a random number for each of the keys (B,), an array or a tensor."""
    return counter_rng.draw(keys, sample_counter(SamplePurpose.DECISION, int(decision)))


def misaligned(keys: np.ndarray) -> np.ndarray:
    """bool (B,): which pairs get the caption of another image."""
    return counter_rng.uniform24(decide(keys, Decision.MISALIGNED)) < counter_rng.threshold(MISALIGNED_SHARE)


def choose_captions(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64 (B,): the index of the caption sampled for each image in this epoch, below its count in int64 (B,)."""
    return counter_rng.below(decide(keys, Decision.CAPTION), counts)


def negative_keys(keys: Tensor) -> Tensor:
    """int64 (B,): random keys for sampling hard negatives."""
    return decide(keys, Decision.HARD_NEGATIVE)
