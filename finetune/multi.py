"""Training on many tasks at once, as the training loop takes it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from finetune.batch import TaskCollator
from finetune.regimes import Regime
from finetune.scores import TaskScore, mean_score, watched
from finetune.settings import MtConfig
from finetune.sources import Order, Turn, TurnReader
from finetune.task import Task
from finetune.validation import Validation
from finetune.work import TaskPass
from pretrain.plan import Plan
from pretrain.step import Sums
from pretrain.trainer import Course


@dataclass
class Entrant:
    """A task that takes part. plan: of its own steps, without an end; taken: how many of them it has taken."""

    work: TaskPass
    training: TaskCollator
    validation: Validation
    plan: Plan
    taken: int = 0
    score: TaskScore | None = None  # of its last validation

    @property
    def task(self) -> Task:
        return self.work.task

    def due(self, done: int) -> bool:
        """Whether the task is validated after so many iterations: its own steps per epoch, whether it goes or not."""
        return done % self.plan.steps_per_epoch == 0


@dataclass(frozen=True)
class Iterations:
    """The steps of a multi-task run: iterations, in each of which some tasks take a step of their own."""

    first_step: int
    total_steps: int
    steps_per_epoch: int  # of the longest task


@dataclass
class MultiTask(Course):
    """A run on many tasks that is ready to go on from plan.first_step. A step of the loop is an iteration.

    lr: the peak of the task that learns most slowly; trained: iterations so far in which any task trained, which the
    learning rate follows.
    """

    config: MtConfig
    plan: Iterations
    entrants: list[Entrant]
    regime: Regime
    lr: float
    trained: int = 0

    samples = "examples"

    def __post_init__(self):
        self.numbers = {entrant.task.name: number for number, entrant in enumerate(self.entrants)}

    def turns(self, iteration: int) -> list[int]:
        return [self.numbers[name] for name in self.regime.turns(iteration)]

    def steps(self) -> Iterator[list[Turn] | None]:
        pin = self.device.type == "cuda"
        collators = [entrant.training for entrant in self.entrants]
        orders = [Order(entrant.plan, self.config.seed) for entrant in self.entrants]
        taken, iteration = [entrant.taken for entrant in self.entrants], self.plan.first_step
        reader = TurnReader(collators, self.places, self.config.workers, self.config.accumulate, pin)
        with contextlib.closing(reader):
            while iteration < self.plan.total_steps:
                until = next(done for done in count(iteration + 1) if self.validates_after(done) or self._last(done))
                yield from reader.read(orders, self._own_steps(range(iteration, until), taken))
                yield None  # the regime may answer otherwise after the validation
                iteration = until

    def _own_steps(self, iterations: range, taken: list[int]) -> Iterator[list[tuple[int, int]]]:
        """For every iteration its turns: (number of the task, its own step). Counts these in `taken`."""
        for iteration in iterations:
            step = []
            for task in self.turns(iteration):
                step.append((task, taken[task]))
                taken[task] += 1
            yield step

    def counts(self, parts: list[Turn]) -> list[int]:
        """Examples of every turn, and of all: as many numbers on every rank, though one has failed and has no parts."""
        examples = [0] * len(self.entrants)
        for turn in parts:
            examples[turn.number] += len(turn)
        return [*examples, sum(examples)]

    def take(self, step: int, parts: list[Turn], sums: Sums, counts: list[int]) -> None:
        """One optimizer step for every turn, or one for all of them."""
        each = len(parts) if self.config.one_step else self.config.accumulate
        for begin in range(0, len(parts), max(each, 1)):
            turns = parts[begin : begin + each]
            self.engine.step(step * len(self.entrants) + turns[0].number, turns, sums, counts)
        for turn in parts[:: self.config.accumulate]:
            self.entrants[turn.task].taken += 1
        self.trained += bool(parts)

    @property
    def peak_lr(self) -> float:
        return self.lr

    def set_lr(self, step: int) -> float:
        return super().set_lr(self.trained)

    def so_far(self, done: int) -> dict:
        samples = sum(entrant.plan.samples_before(entrant.taken) for entrant in self.entrants)
        return {"epoch": done / self.plan.steps_per_epoch, "samples": samples}

    def means(self, sums: dict[str, float]) -> dict[str, float]:
        """TASK/loss and TASK/score in training of the tasks that trained, TASK/going (1, or 0: stopped) of all."""
        means = {}
        for name in self.numbers:
            if examples := sums.get(f"{name}/examples"):
                means |= {f"{name}/{what}": sums[f"{name}/{what}"] / examples for what in ("loss", "score")}
            means[f"{name}/going"] = int(self.regime.going(name))
        return means | {"gradient_norm": sums.get("gradient_norm", 0) / max(sums.get("steps", 0), 1)}

    def describe(self, values: dict) -> str:
        scores = [value for name, value in values.items() if name.endswith("/score")]
        if not scores:
            return "no task trained"
        going = sum(map(self.regime.going, self.numbers))
        return f"mean score in training {sum(scores) / len(scores):.1%}, {going} of {len(self.numbers)} tasks going"

    def validates_after(self, done: int) -> bool:
        return any(entrant.due(done) for entrant in self.entrants)

    def _last(self, done: int) -> bool:
        return done == self.plan.total_steps

    def validate(self, done: int) -> dict:
        """TASK/metric of every task that is due, what that changes, and after the last iteration mt_score too."""
        last, values = self._last(done), {}
        for entrant in self.entrants if last else [one for one in self.entrants if one.due(done)]:
            name = entrant.task.name
            self.score(entrant)
            values |= {f"{name}/{metric}": value for metric, value in entrant.score.metrics.items()}
            change = None if last else self.regime.observe(name, watched(entrant.score.metrics))
            values[f"{name}/going"] = int(self.regime.going(name))
            if change:
                values[f"{name}/change"] = change
                self.ranks.say(f"step {done}/{self.plan.total_steps}  {entrant.task.title} {change}")
        if last:
            values["mt_score"] = mean_score(self.scores())[0]
        return values

    def score(self, entrant: Entrant) -> None:
        """Validates a task."""
        at_once, workers = entrant.plan.batch_size, self.config.workers
        entrant.score = entrant.validation.score(entrant.work, at_once, workers, self.ranks, self.device)

    def scores(self) -> dict[str, TaskScore]:
        """The last validation's of every task."""
        return {entrant.task.name: entrant.score for entrant in self.entrants}

    def describe_scores(self, scores: dict) -> str:
        main = [f"{name.removesuffix('/score')} {v:.1%}" for name, v in scores.items() if name.endswith("/score")]
        return ", ".join(main)

    def loss_of(self, scores: dict) -> float | None:
        return -scores["mt_score"] if "mt_score" in scores else None

    @property
    def save_every(self) -> int:
        return self.config.save_every or self.plan.steps_per_epoch

    def facts(self, done: int) -> dict:
        return {
            "taken": {entrant.task.name: entrant.taken for entrant in self.entrants},
            "trained": self.trained,
            "regime": self.regime.state(),
        }
