"""Bootstrap intervals of scores: how far a mean may be off because only so many images were drawn.

Examples of one image are not independent (SNLI-VE has about 18 per image, VQA 5.5), so images are resampled, each with
all its examples: a cluster bootstrap. Its cost depends on the number of images, not of examples.
"""

from collections.abc import Iterable, Sequence

import numpy as np

DRAWS = 2000


def bootstrap_means(values: np.ndarray, clusters: np.ndarray | None, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means of bootstrap samples of clusters.

    Args:
        values: float (n,), of every example; of differences of two models for a paired interval.
        clusters: int (n,), from 0 on: which examples are drawn together (see `clusters_of`). None: each example alone.
        draws: how many samples.
        seed: of the samples; the same seed and clusters draw the same clusters, whatever the values.

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
        sums, weights: (clusters,), of every cluster: for a mean, the sum of its values and how many they are.
        draws: how many samples, of as many clusters as there are, drawn with replacement.
        seed: of the samples.

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
    """(low, high): where the mean of values (n,) lies in `share` of the samples of `bootstrap_means`."""
    return interval_of(bootstrap_means(values, clusters, seed=seed), share)


def interval_of(means: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """(low, high): between which the middle `share` of some means lies."""
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def clusters_of(images: Iterable[Sequence[str]]) -> np.ndarray:
    """Examples that share an image, directly or through other examples, are one cluster.

    Args:
        images: of every example, the ids of its images.

    Returns:
        int64 (examples,): the number of each example's cluster, from 0 on in order of first appearance.
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
    """The draws in parts that need no more than some tens of megabytes each."""
    most = max(1, 4_000_000 // max(size, 1))
    return [min(most, draws - begin) for begin in range(0, draws, most)]
