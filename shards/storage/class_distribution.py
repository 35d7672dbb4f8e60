"""The most probable classes of regions, which are stored."""

import numpy as np

KEPT_MASS = 0.99  # mean probability mass of the stored classes


def kept_classes(distributions: np.ndarray) -> int:
    """The number of most probable classes with 99% of the mass of distributions (n, classes), on average."""
    mass = np.sort(distributions.astype(np.float64), 1)[:, ::-1].cumsum(1).mean(0)
    return int(np.searchsorted(mass, KEPT_MASS * mass[-1])) + 1


def likeliest(distributions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, probabilities), (n, count) each, of the most probable classes of distributions (n, classes), in order."""
    ids = np.argpartition(-distributions, min(count, distributions.shape[1] - 1), 1)[:, :count]
    kept = np.take_along_axis(distributions, ids, 1)
    order = np.argsort(-kept, 1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(kept, order, 1)
