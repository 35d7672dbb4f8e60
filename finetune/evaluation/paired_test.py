"""The difference of two models on the same examples, and whether it could be due to the sample of examples."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from finetune.evaluation.bootstrap import bootstrap_interval


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
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0
