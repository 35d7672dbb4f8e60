"""The difference of two models on the same examples, and whether it could be due to the sample of examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy  # imports its parts when they are used; some take a second

from finetune.evaluation.bootstrap import bootstrap_interval, bootstrap_means, interval_of


@dataclass(frozen=True)
class PairedTest:
    """The difference of two models' mean scores.

    Attributes:
        first, second: mean score of each model.
        interval: 95% interval of first - second, by a paired bootstrap over images.
        p_value: of McNemar's exact test, two-sided; None if a score is not 0 or 1.
    """

    first: float
    second: float
    interval: tuple[float, float]
    p_value: float | None

    @property
    def difference(self) -> float:
        return self.first - self.second


def paired_test(first: np.ndarray, second: np.ndarray, clusters: np.ndarray, seed: int = 0) -> PairedTest:
    """Compares two models.

    Args:
        first, second: float (n,), the scores of the same examples.
        clusters: int (n,), number of the cluster of each example (bootstrap.clusters_of).
        seed: random seed of the bootstrap.
    """
    binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    return PairedTest(
        first=float(first.mean()),
        second=float(second.mean()),
        interval=bootstrap_interval(first - second, clusters, seed=seed),
        p_value=mcnemar(int((first > second).sum()), int((second > first).sum())) if binary else None,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test: a sign test of the examples that only one of the models has right.

    It assumes independent examples. Several examples of one image are not, so that it is too small for them.
    """
    differing = only_first + only_second
    return float(scipy.stats.binomtest(only_first, differing).pvalue) if differing else 1.0


class MeanDifference(NamedTuple):
    """The difference of two methods' mean scores over several tasks.

    Attributes:
        mean: first - second.
        interval: its 95% interval, by a paired bootstrap over images of the differences averaged over seeds.
        p_value: of a paired t-test over tasks and seeds; None for a single task and seed.
    """

    mean: float
    interval: tuple[float, float]
    p_value: float | None

    def line(self, name: str) -> str:
        """A line of a table."""
        low, high = self.interval
        p = "no t-test of one value" if self.p_value is None else f"p = {self.p_value:.3f}"
        return f"{name:<32} {self.mean:+7.2%}  ({low:+.2%} to {high:+.2%})  {p}"


def mean_difference(
    ours: Sequence[Mapping[str, np.ndarray]],
    theirs: Sequence[Mapping[str, np.ndarray]],
    clusters: Mapping[str, np.ndarray | None],
) -> MeanDifference:
    """The difference of two methods' mean scores over the tasks of both, each image with all its examples.

    Args:
        ours, theirs: of every run (one per seed, in the same order), task -> scores of its examples.
        clusters: task -> number of the cluster of each example.
    """
    names = [name for name in ours[0] if name in theirs[0]]
    differences = {name: np.mean([a[name] - b[name] for a, b in zip(ours, theirs, strict=True)], 0) for name in names}
    draws = [bootstrap_means(of, clusters[name], seed=n) for n, (name, of) in enumerate(differences.items())]
    mean = float(np.mean([values.mean() for values in differences.values()]))
    a, b = ([values[name].mean() for values in of_method for name in names] for of_method in (ours, theirs))
    p = 1.0 if np.array_equal(a, b) else float(scipy.stats.ttest_rel(a, b).pvalue) if len(a) > 1 else None
    return MeanDifference(mean, interval_of(np.mean(draws, 0)), p)
