"""Training regimes by name: which tasks train in an iteration.

A regime is a subclass of Regime in REGIMES. What it answers for an iteration changes with validation scores alone, so
that batches can be read ahead from one validation to the next.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from finetune.stop_and_go import StopAndGo
from shards.errors import UserError


@dataclass
class Regime(ABC):
    """Decides which tasks train in an iteration.

    Args:
        names: of the tasks.
        groups: the paper's group of each, G1 to G4.
        sizes: the number of training examples of each.
        iterations: of the run.
        gap: Δ of stop-and-go.
        first_phase: the share of the iterations in which a curriculum trains its first group alone.
        seed: of what is drawn.
    """

    first_group: ClassVar[str] = ""  # of a curriculum, the group that trains alone first

    names: tuple[str, ...]
    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    iterations: int
    gap: int
    first_phase: float
    seed: int

    def __post_init__(self):
        self.states: dict[str, StopAndGo] = {}  # of the tasks that may be stopped

    @classmethod
    def check(cls, groups: Sequence[str]) -> None:
        """Refuses tasks, by their groups, of which none or all train first."""
        first = groups.count(cls.first_group)
        if cls.first_group and first in (0, len(groups)):
            raise UserError(
                f"--regime: this curriculum begins with {cls.first_group} alone, and "
                f"{'all' if first else 'none'} of the tasks {'are' if first else 'is'} of that group; "
                "use another regime or other --tasks"
            )

    @abstractmethod
    def turns(self, iteration: int) -> list[str]:
        """The tasks that train in an iteration (from 0), in the order in which they do."""

    def observe(self, name: str, score: float) -> str | None:
        """Takes in a task's validation score; returns what that changes and why, None where it changes nothing."""
        return self.states[name].observe(score) if name in self.states else None

    def going(self, name: str) -> bool:
        """Whether a task is not stopped."""
        return name not in self.states or not self.states[name].stopped

    def state(self) -> dict:
        """What a checkpoint keeps of what was observed."""
        return {name: state.to_dict() for name, state in self.states.items()}

    def restore(self, state: dict) -> None:
        """Brings back what `state` gave."""
        self.states = {name: StopAndGo(**values) for name, values in state.items()}


class RoundRobin(Regime):
    """Every task in every iteration: the paper's row without stop-and-go."""

    def turns(self, iteration: int) -> list[str]:
        return list(self.names)


class DynamicStopAndGo(Regime):
    """Tasks that are stopped train in one iteration of every `gap` alone."""

    def __post_init__(self):
        self.states = {name: StopAndGo() for name in self.names}

    def turns(self, iteration: int) -> list[str]:
        return [name for name in self.names if self.going(name) or iteration % self.gap == 0]


class Curriculum(Regime):
    """The group that converges fastest trains alone first, then all tasks round robin (section 4.2 of the paper)."""

    first_group = "G3"

    def turns(self, iteration: int) -> list[str]:
        alone = iteration < round(self.first_phase * self.iterations)
        return [
            name for name, group in zip(self.names, self.groups, strict=True) if group == self.first_group or not alone
        ]


class AntiCurriculum(Curriculum):
    """The same with the group that converges slowest first."""

    first_group = "G1"


class SmallestFirst(Regime):
    """Tasks are added one after another, the smallest first, evenly over the first half of the run."""

    largest_first = False

    def turns(self, iteration: int) -> list[str]:
        order = sorted(range(len(self.names)), key=lambda n: self.sizes[n], reverse=self.largest_first)
        added = {n for place, n in enumerate(order) if iteration * 2 * len(order) >= place * self.iterations}
        return [name for n, name in enumerate(self.names) if n in added]


class LargestFirst(SmallestFirst):
    """The same with the largest first."""

    largest_first = True


class BySize(Regime):
    """As many batches an iteration as there are tasks, each of a task drawn in proportion to its size."""

    power = 1.0

    def turns(self, iteration: int) -> list[str]:
        shares = np.array(self.sizes, float) ** self.power
        drawn = np.random.default_rng([self.seed, iteration]).choice(
            len(self.names), len(self.names), p=shares / shares.sum()
        )
        return [self.names[n] for n in drawn]


class BySquareRoot(BySize):
    """The same in proportion to the square root of the size."""

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
