"""Proposed sets of tasks against a search of all partitions, one after another."""

import numpy as np
import pytest

from finetune.gradients.task_groups import propose_groups


def partitions(tasks: list[int]):
    """All partitions of some tasks."""
    if not tasks:
        yield []
        return
    first, *others = tasks
    for partition in partitions(others):
        yield [[first], *partition]
        for place in range(len(partition)):
            yield [*partition[:place], [first, *partition[place]], *partition[place + 1 :]]


def value(affinity: np.ndarray, sets: list[list[int]]) -> float:
    total = 0.0
    for members in sets:
        for task in members:
            others = [affinity[other, task] for other in members if other != task]
            total += sum(others) / len(others) if others else 0.0
    return total


@pytest.mark.parametrize("most", [1, 2, 3, None])
def test_the_proposal_is_the_best_of_all_partitions(most):
    for seed in range(8):
        affinity = np.random.default_rng(seed).normal(0.05, 0.1, (6, 6))
        found = propose_groups(affinity, most)
        assert sorted(task for members in found for task in members) == list(range(6))
        assert len(found) <= (most or 6)
        allowed = [sets for sets in partitions(list(range(6))) if len(sets) <= (most or 6)]
        assert value(affinity, found) == pytest.approx(max(value(affinity, sets) for sets in allowed))


def test_tasks_that_help_are_together_and_those_that_harm_apart():
    affinity = np.full((5, 5), -0.1)
    affinity[np.ix_([0, 3], [0, 3])] = affinity[np.ix_([1, 4], [1, 4])] = 0.2
    assert propose_groups(affinity) == [[0, 3], [1, 4], [2]]
    affinity[2] = affinity[:, 2] = np.nan  # not known: of no influence on the others
    assert {0, 3} <= set(propose_groups(affinity, 2)[0])
    assert propose_groups(affinity, 1) == [[0, 1, 2, 3, 4]]


def test_all_tasks_are_together_if_all_help_more_together():
    affinity = np.ones((4, 4)) + np.diag([np.nan] * 4)
    assert propose_groups(affinity, 1) == [[0, 1, 2, 3]]
    assert value(np.ones((4, 4)), propose_groups(affinity)) == 4
