"""In which order the samples of an epoch are read: shards shuffled, then samples within a window.

A window of several shards keeps reading local to a part of the disk, while samples still mix across shards.
The order is a pure function of (seed, epoch), the same for any number of ranks and workers.
"""

import numpy as np

from shards import hashing

WINDOW = 100_000


def epoch_order(counts: np.ndarray, seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """Sample numbers of one epoch in reading order, a permutation of range(counts.sum()), int64.

    counts: samples per shard. A data set no larger than `window` samples is shuffled as a whole.
    """
    counts = np.asarray(counts, np.int64)
    begins = np.concatenate([[0], np.cumsum(counts)])
    shards = hashing.permutation(hashing.key(seed, epoch, 0), len(counts))
    runs = [np.arange(begins[shard], begins[shard + 1]) for shard in shards]
    order = np.concatenate(runs) if runs else np.zeros(0, np.int64)
    for begin in range(0, len(order), window):
        part = order[begin : begin + window]
        order[begin : begin + window] = part[hashing.permutation(hashing.key(seed, epoch, 1, begin), len(part))]
    return order
