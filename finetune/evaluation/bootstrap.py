"""Bootstrap intervals of scores: the uncertainty of a mean due to the sample of images.

Examples of one image are not independent (SNLI-VE has about 18 per image, VQA 5.5), so images are resampled, each with
all its examples: a cluster bootstrap. Its cost depends on the number of images, not of examples.
"""

from collections.abc import Iterable, Sequence

import numpy as np

DRAWS = 2000


def bootstrap_means(values: np.ndarray, clusters: np.ndarray | None, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means of bootstrap samples of clusters.

    Args:
        values: float (n,), one per example; for a paired interval, differences between two models.
        clusters: int (n,), number of the cluster of each example, from 0 (see `clusters_of`). None: one cluster per
            example.
        draws: number of bootstrap samples.
        seed: random seed; the sampled clusters depend on it and on the number of clusters, not on the values.

    Returns:
        float64 (draws,).
    """
    values = np.asarray(values, np.float64)
    if clusters is None:
        return bootstrap_ratios(values, np.ones(len(values)), draws, seed)
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} values and clusters of {len(clusters)}")
    return bootstrap_ratios(np.bincount(clusters, values), np.bincount(clusters), draws, seed)


def bootstrap_ratios(sums: np.ndarray, weights: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Ratios of sums over bootstrap samples of clusters.

    Args:
        sums, weights: (clusters,), numerator and denominator per cluster: for a mean, sum and number of its values.
        draws: number of bootstrap samples, each of as many clusters as in the data, drawn with replacement.
        seed: random seed.

    Returns:
        float64 (draws,): the sum of `sums` over that of `weights`; nan for samples whose weights are all 0.
    """
    sums, weights = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    rng, count, found = np.random.default_rng(seed), len(sums), []
    equal = count > 0 and bool((weights == weights[0]).all())
    for step in _steps(draws, count):
        drawn = rng.integers(0, count, (step, count))
        under = np.full(step, count * weights[0]) if equal else weights[drawn].sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(sums[drawn].sum(1) / under)
    return np.concatenate(found)


def bootstrap_interval(
    values: np.ndarray, clusters: np.ndarray | None, share: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """(low, high): the bootstrap percentile interval of the mean of values (n,); share: its level, such as 0.95."""
    return interval_of(bootstrap_means(values, clusters, seed=seed), share)


def interval_of(means: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """(low, high): the percentile interval that contains the middle `share` of `means`."""
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def clusters_of(images: Iterable[Sequence[str]]) -> np.ndarray:
    """Clusters of examples: those that share an image, directly or through other examples, are one cluster.

    Args:
        images: ids of the images of every example.

    Returns:
        int64 (examples,): number of each example's cluster, from 0 in order of first appearance.
    """
    images, parents = list(images), {}

    def root(name: str) -> str:
        while parents[name] != name:
            parents[name] = parents[parents[name]]
            name = parents[name]
        return name

    for names in images:
        for name in names:
            parents.setdefault(name, name)
        for name in names[1:]:
            parents[root(name)] = root(names[0])
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(names[0]), len(numbers)) for names in images], np.int64)


def _steps(draws: int, size: int) -> list[int]:
    """Splits the draws into chunks that need at most some tens of megabytes each."""
    most = max(1, 4_000_000 // max(size, 1))
    return [min(most, draws - begin) for begin in range(0, draws, most)]
