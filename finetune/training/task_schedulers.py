"""Training regimes by name: which tasks train in an iteration.

A regime is a subclass of Regime in REGIMES, or of another package by an entry point (shards.common.plugins). Its
decisions may change only after a validation, so that batches can be prefetched from one validation to the next.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from finetune.training.stop_and_go import StopAndGo
from shards.common.errors import UserError
from shards.common.plugins import load_plugin, plugins


@dataclass
class Regime(ABC):
    """Decides which tasks train in an iteration.

    Args:
        names: of the tasks.
        groups: the paper's group of each task, G1 to G4.
        sizes: number of training examples of each task.
        iterations: total number of iterations of the run.
        gap: Δ of stop-and-go.
        first_phase: fraction of the iterations in which a curriculum trains its first group alone.
        seed: random seed of regimes that sample tasks.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    iterations: int
    gap: int
    first_phase: float
    seed: int

    def __post_init__(self) -> None:
        """Prepares the state of a subclass that has one; a dataclass calls it only if it is defined here, too."""
        return None

    @classmethod
    def check(cls, groups: Sequence[str]) -> None:
        """Raises UserError if the regime cannot train tasks of these groups."""
        return None

    @abstractmethod
    def training_tasks(self, iteration: int) -> list[str]:
        """The tasks that train in an iteration (from 0), in order; a task may occur several times.

        A function of the iteration and of what `observe` has changed: batches are prefetched up to the next
        validation, and read again after a resume, so it may be called ahead and again.
        """

    def observe(self, name: str, score: float) -> str | None:
        """Updates the state by a task's validation score; returns a message if the task is paused or resumed."""
        return None

    def active(self, name: str) -> bool:
        """Whether a task is active, that is, not paused."""
        return True

    def state(self) -> dict:
        """The state for a checkpoint, as values of JSON."""
        return {}

    def restore(self, state: dict) -> None:
        """Restores what `state` returned."""
        return None


class RoundRobin(Regime):
    """Every task in every iteration: the paper's ablation without stop-and-go."""

    def training_tasks(self, iteration: int) -> list[str]:
        return list(self.names)


class DynamicStopAndGo(Regime):
    """Active tasks train in every iteration, paused tasks in one of every `gap` iterations."""

    def __post_init__(self) -> None:
        self.states = {name: StopAndGo() for name in self.names}

    def training_tasks(self, iteration: int) -> list[str]:
        return [name for name in self.names if self.active(name) or iteration % self.gap == 0]

    def observe(self, name: str, score: float) -> str | None:
        return self.states[name].observe(score)

    def active(self, name: str) -> bool:
        return not self.states[name].stopped

    def state(self) -> dict:
        return {name: state.to_dict() for name, state in self.states.items()}

    def restore(self, state: dict) -> None:
        self.states = {name: StopAndGo(**state[name]) for name in self.names}


class Curriculum(Regime):
    """The group that converges fastest trains first, then all tasks round robin (paper, section 4.2)."""

    first_group: ClassVar[str] = "G3"

    @classmethod
    def check(cls, groups: Sequence[str]) -> None:
        """Raises UserError if none or all of the tasks belong to the first group."""
        first = groups.count(cls.first_group)
        if first in (0, len(groups)):
            raise UserError(
                f"--regime: this curriculum trains {cls.first_group} first, and "
                f"{'all' if first else 'none'} of the tasks {'are' if first else 'is'} of that group; "
                "use another regime or other --tasks"
            )

    def training_tasks(self, iteration: int) -> list[str]:
        alone = iteration < round(self.first_phase * self.iterations)
        return [
            name for name, group in zip(self.names, self.groups, strict=True) if group == self.first_group or not alone
        ]


class AntiCurriculum(Curriculum):
    """The group that converges slowest trains first, then all tasks round robin."""

    first_group = "G1"


class SmallestFirst(Regime):
    """Tasks are added one by one, the smallest first, at equal intervals over the first half of the run."""

    largest_first = False

    def training_tasks(self, iteration: int) -> list[str]:
        order = sorted(range(len(self.names)), key=lambda n: self.sizes[n], reverse=self.largest_first)
        added = {n for place, n in enumerate(order) if iteration * 2 * len(order) >= place * self.iterations}
        return [name for n, name in enumerate(self.names) if n in added]


class LargestFirst(SmallestFirst):
    """Tasks are added one by one, the largest first."""

    largest_first = True


class BySize(Regime):
    """Size-proportional sampling: one task step per task and iteration, each of a task sampled by its size."""

    power = 1.0

    def training_tasks(self, iteration: int) -> list[str]:
        shares = np.array(self.sizes, float) ** self.power
        # Not from shards.common.counter_rng, unlike the order of data, masks and dropout: other draws would change the
        # results of a seed. These are a function of (seed, iteration), too.
        drawn = np.random.default_rng([self.seed, iteration]).choice(
            len(self.names), len(self.names), p=shares / shares.sum()
        )
        return [self.names[n] for n in drawn]


class BySquareRoot(BySize):
    """Sampling in proportion to the square root of the size."""

    power = 0.5


REGIMES = {
    "dsg": DynamicStopAndGo,
    "round_robin": RoundRobin,
    "curriculum": Curriculum,
    "anti_curriculum": AntiCurriculum,
    "smallest_first": SmallestFirst,
    "largest_first": LargestFirst,
    "by_size": BySize,
    "by_sqrt_size": BySquareRoot,
}


def regime_names() -> tuple[str, ...]:
    """The names of all regimes, those of other packages last."""
    return (*REGIMES, *(name for name in plugins("regimes") if name not in REGIMES))


def find_regime(name: str) -> type[Regime]:
    """The regime of a name in `regime_names`."""
    return REGIMES[name] if name in REGIMES else load_plugin(plugins("regimes")[name])
