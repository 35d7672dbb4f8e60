"""The order of the pairs in an epoch: shards are shuffled, then pairs within a window.

A window of several shards keeps disk reads local while pairs are mixed across shards. The order is a pure function of
(seed, epoch), equal for any number of ranks and workers.
"""

from functools import cached_property

import numpy as np

from shards.common import counter_rng
from shards.common.random_purposes import EpochPurpose

WINDOW = 100_000


class PairNumbers:
    """Numbers of the pairs of an epoch, in the order of their samples; one or several pairs per sample.

    Attributes:
        begins: int64 (samples + 1,); sample i has the pairs begins[i] to begins[i + 1] - 1, at least one.
        first_samples: int64 (shards + 1,), the first sample of each shard.
    """

    def __init__(self, samples_per_shard: np.ndarray, begins: np.ndarray | None = None):
        self.first_samples = np.concatenate([[0], np.cumsum(samples_per_shard)])
        self.begins = np.arange(self.first_samples[-1] + 1) if begins is None else begins

    def __len__(self) -> int:
        return int(self.begins[-1])

    @cached_property
    def begins_of_shards(self) -> np.ndarray:
        """int64 (shards + 1,): the first pair of each shard."""
        return self.begins[self.first_samples]

    @property
    def per_shard(self) -> np.ndarray:
        """int64 (shards,): number of pairs in each shard."""
        return np.diff(self.begins_of_shards)

    def samples_of(self, pairs: np.ndarray) -> np.ndarray:
        """The sample number of each pair."""
        return np.searchsorted(self.begins, pairs, side="right") - 1


def epoch_order(counts: np.ndarray, seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """Pair numbers of one epoch in reading order, a permutation of range(counts.sum()), int64.

    counts: pairs per shard. A data set no larger than `window` pairs is shuffled as a whole.
    """
    counts = np.asarray(counts, np.int64)
    begins = np.concatenate([[0], np.cumsum(counts)])
    shards = counter_rng.permutation(counter_rng.key(seed, epoch, EpochPurpose.SHARD_ORDER), len(counts))
    runs = [np.arange(begins[shard], begins[shard + 1]) for shard in shards]
    order = np.concatenate(runs) if runs else np.zeros(0, np.int64)
    for begin in range(0, len(order), window):
        part = order[begin : begin + window]
        key = counter_rng.key(seed, epoch, EpochPurpose.WINDOW_ORDER, begin)
        order[begin : begin + window] = part[counter_rng.permutation(key, len(part))]
    return order
