"""Bootstrap intervals of scores: how far a mean may be off because the examples are only so many."""

import numpy as np

DRAWS = 2000


def bootstrap_means(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """float64 (draws,): means of samples drawn from values (n,) with replacement, n at a time."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [values[rng.integers(0, len(values), (step, len(values)))].mean(1) for step in _steps(draws, len(values))]
    )


def bootstrap_interval(values: np.ndarray, share: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """(low, high): where the mean of values (n,) lies in `share` of such samples."""
    return interval_of(bootstrap_means(values, seed=seed), share)


def interval_of(means: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """(low, high): between which the middle `share` of some means lies."""
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _steps(draws: int, size: int) -> list[int]:
    """The draws in parts that need no more than some tens of megabytes each."""
    most = max(1, 4_000_000 // max(size, 1))
    return [min(most, draws - begin) for begin in range(0, draws, most)]
