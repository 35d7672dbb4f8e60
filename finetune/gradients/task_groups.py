"""Sets of tasks to be trained together, chosen by how much the tasks of a set help each other."""

from collections.abc import Sequence

import numpy as np


def propose_groups(affinity: np.ndarray, most: int | None = None) -> list[list[int]]:
    """The partition of the tasks with the largest total value, found exactly: all partitions are compared.

    The value of a set is the sum over its tasks of the mean affinity of the other tasks of the set on it (Fifty et al.
    2021, section 3.2); that of a single task is 0. The time is proportional to 3^T for T tasks (12: a second or so).

    Args:
        affinity: (T, T), row: the task whose step it is, column: the task whose loss it is; NaN counts as 0, the
            diagonal is ignored.
        most: maximum number of sets; None for no limit, which favours many small sets.

    Returns:
        The sets, each in the order of the tasks, the one with the first task first.
    """
    count = len(affinity)
    whole = (1 << count) - 1
    worth = _worth(np.nan_to_num(affinity))
    limit = min(most or count, count)
    # chosen[k - 1][mask]: (value, mask of the set with the lowest task) of the mask's best partition in at most k sets.
    best = {mask: (worth[mask], mask) for mask in range(1, whole + 1)}
    chosen = [best]
    for _ in range(1, limit):
        best = {}
        for mask in range(1, whole + 1):
            lowest = mask & -mask
            rest = mask ^ lowest
            found, part = chosen[-1][mask], rest
            while part:  # every set with the lowest task but not all tasks of the mask
                part = (part - 1) & rest
                value = worth[lowest | part] + chosen[-1][mask ^ lowest ^ part][0]
                if value > found[0]:
                    found = value, lowest | part
            best[mask] = found
        chosen.append(best)
    sets, mask = [], whole
    for best in reversed(chosen):
        if mask:
            sets.append([task for task in range(count) if best[mask][1] >> task & 1])
            mask ^= best[mask][1]
    return sorted(sets)


def _worth(affinity: np.ndarray) -> Sequence[float]:
    """The value of every set of tasks, by its bit mask."""
    count = len(affinity)
    members = (np.arange(1 << count)[:, None] >> np.arange(count) & 1).astype(float)  # (sets, tasks)
    pairs = affinity - np.diag(np.diagonal(affinity))
    totals = ((members @ pairs) * members).sum(1)
    return (totals / np.maximum(members.sum(1) - 1, 1)).tolist()
