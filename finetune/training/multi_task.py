"""Multi-task training, as the training loop sees it."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch

from finetune.config import MtConfig
from finetune.data.task_batches import ExampleOrder, MicroBatch, MicroBatchReader, TaskStep
from finetune.data.task_collate import TaskCollator
from finetune.evaluation.scores import TaskScore, mean_score, selection_score
from finetune.gradients.tracked_gradients import GRADIENTS_KIND
from finetune.objective.task_pass import TaskPass, means_per_example
from finetune.task_types.base import Task
from finetune.training.balanced_step import BalancedStep
from finetune.training.gradient_tracker import GradientTracker
from finetune.training.task_schedulers import Regime
from finetune.training.task_validation import SHORTER_VALIDATION, Validation
from pretrain.data.batch_schedule import BatchSchedule
from pretrain.data.dataloader import WorkerStatus
from pretrain.engine.step import Engine, MetricSums
from pretrain.engine.training_task import Evaluation, TrainingTask
from shards.common.dist_info import Ranks


@dataclass
class TaskState:
    """The state of one task in a multi-task run.

    Attributes:
        task_pass: the model's pass over a batch of the task.
        training: collator of its training examples.
        validation: its validation examples.
        schedule: of its own steps, without an end: the number of iterations ends a run.
        taken: number of task steps so far.
        score: of its last validation.
    """

    task_pass: TaskPass
    training: TaskCollator
    validation: Validation
    schedule: BatchSchedule
    taken: int = 0
    score: TaskScore | None = None

    @property
    def task(self) -> Task:
        return self.task_pass.task

    def due(self, done: int) -> bool:
        """Whether the task is validated after `done` iterations: once per epoch of its own, also while it is paused."""
        return done % self.schedule.steps_per_epoch == 0


@dataclass(frozen=True)
class IterationSchedule:
    """The schedule of a multi-task run in iterations, each of which contains task steps of some of the tasks."""

    first_step: int
    total_steps: int
    steps_per_epoch: int  # of the longest task


@dataclass
class MultiTask(TrainingTask):
    """Training on several tasks. A step of the training loop is an iteration.

    Attributes:
        task_states: the tasks.
        regime: decides which of them train in an iteration.
        peak_lr: of the task with the lowest peak learning rate; MultiTaskPass scales the losses of the others.
        balanced: one optimizer step for all tasks of an iteration; None for one of each task.
        tracker: of the gradients' similarity, with --track.
        earlier_seconds: wall time of the run's earlier processes.
    """

    config: MtConfig
    schedule: IterationSchedule
    task_states: list[TaskState]
    regime: Regime
    peak_lr: float
    worker_status: WorkerStatus
    ranks: Ranks
    device: torch.device
    balanced: BalancedStep | None = None
    tracker: GradientTracker | None = None
    earlier_seconds: float = 0.0

    unit = "examples"
    shorter_validation = SHORTER_VALIDATION

    def __post_init__(self):
        self.began = time.perf_counter()
        self.numbers = {state.task.name: number for number, state in enumerate(self.task_states)}

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, in all its processes, without steps after a checkpoint that was resumed."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def training_tasks(self, iteration: int) -> list[int]:
        """The numbers of the tasks that train in an iteration, in order."""
        return [self.numbers[name] for name in self.regime.training_tasks(iteration)]

    @property
    def save_every(self) -> int:
        return self.config.save_every or self.schedule.steps_per_epoch

    def batches(self) -> Iterator[list[MicroBatch] | None]:
        pin = self.device.type == "cuda"
        collators = [state.training for state in self.task_states]
        orders = [ExampleOrder(state.schedule, self.config.seed) for state in self.task_states]
        taken, iteration = [state.taken for state in self.task_states], self.schedule.first_step
        reader = MicroBatchReader(collators, self.worker_status, self.config.workers, self.config.accumulate, pin)
        with contextlib.closing(reader):
            while iteration < self.schedule.total_steps:
                until = next(done for done in count(iteration + 1) if self.validation_due(done) or self._last(done))
                yield from reader.read(orders, self._task_steps(range(iteration, until), taken))
                yield None  # after the validation, the regime may choose other tasks
                iteration = until

    def _task_steps(self, iterations: range, taken: list[int]) -> list[list[TaskStep]]:
        """The task steps of every iteration. taken: number of steps of each task before it, to which they are added."""
        steps: list[list[TaskStep]] = []
        for iteration in iterations:
            steps.append([])
            for task in self.training_tasks(iteration):  # a task may occur several times
                steps[-1].append(TaskStep(task, taken[task]))
                taken[task] += 1
        return steps

    def denominators(self, parts: list[MicroBatch]) -> list[int]:
        """Examples of every task step, and their total; of the same length on a rank that failed and has no parts."""
        examples = [0] * len(self.task_states)
        for part in parts:
            examples[part.task_step] += len(part)
        return [*examples, sum(examples)]

    def take_step(
        self, engine: Engine, step: int, parts: list[MicroBatch], sums: MetricSums, denominators: list[int]
    ) -> None:
        """One optimizer step per task step; with --balance a single one for all of them.

        parts: --accumulate micro-batches of the first task step, then those of the second, and so on.
        """
        each = self.config.accumulate
        by_task = [parts[begin : begin + each] for begin in range(0, len(parts), each)]
        if self.balanced is None:
            for of_step in by_task:
                engine.step(step, of_step, sums, denominators)
        elif parts:
            self.balanced.step(engine, step, by_task, sums, denominators)
        for of_step in by_task:
            self.task_states[of_step[0].task].taken += 1

    def samples_before(self, step: int) -> int:
        return sum(state.schedule.samples_before(state.taken) for state in self.task_states)

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """TASK/loss, TASK/score and so on of the tasks that trained; TASK/going of all (1: active, 0: paused)."""
        means = {}
        for name in self.numbers:
            prefix = f"{name}/"
            of_task = {key.removeprefix(prefix): value for key, value in sums.items() if key.startswith(prefix)}
            if of_task.get("examples"):
                means |= {prefix + what: value for what, value in means_per_example(of_task).items()}
            means[f"{name}/going"] = int(self.regime.active(name))
        return means | {"gradient_norm": sums.get("gradient_norm", 0) / max(sums.get("steps", 0), 1)}

    def describe(self, metrics: dict) -> str:
        scores = [value for name, value in metrics.items() if name.endswith("/score")]
        if not scores:
            return "no task trained"
        active = sum(map(self.regime.active, self.numbers))
        return f"mean training score {sum(scores) / len(scores):.1%}, {active} of {len(self.numbers)} tasks active"

    def validation_due(self, done: int) -> bool:
        return any(state.due(done) for state in self.task_states)

    def _last(self, done: int) -> bool:
        return done == self.schedule.total_steps

    def evaluate(self, done: int) -> Evaluation:
        """Validates every task that is due: TASK/metric, TASK/going, and TASK/change if stop-and-go paused or resumed
        it. After the last iteration every task is due, and mt_score is added."""
        last, values, seconds = self._last(done), {}, {}
        for state in self.task_states if last else [one for one in self.task_states if one.due(done)]:
            name = state.task.name
            began = time.perf_counter()
            self.score(state)
            seconds[name] = time.perf_counter() - began
            values |= {f"{name}/{metric}": value for metric, value in state.score.metrics.items()}
            change = None if last else self.regime.observe(name, selection_score(state.score.metrics))
            values[f"{name}/going"] = int(self.regime.active(name))
            if change:
                values[f"{name}/change"] = change
                self.ranks.log(f"step {done}/{self.schedule.total_steps}  {state.task.title} {change}")
        if last:
            values["mt_score"] = mean_score(self.scores())[0]
        main = [f"{name.removesuffix('/score')} {v:.1%}" for name, v in values.items() if name.endswith("/score")]
        return Evaluation(values, ", ".join(main), values.get("mt_score"), seconds)

    def extra_log_line(self, engine: Engine, done: int) -> tuple[str, dict] | None:
        """The record of the tasks' gradients, at the interval of --track and after the last iteration."""
        if self.tracker is None or (done % self.tracker.every and not self._last(done)):
            return None
        return GRADIENTS_KIND, self.tracker.record(engine, self.device)

    def validations(self) -> dict[str, int]:
        """Of each task one per epoch of its own, and one at the end."""
        total = self.schedule.total_steps
        return {state.task.name: (total - 1) // state.schedule.steps_per_epoch + 1 for state in self.task_states}

    def score(self, state: TaskState) -> None:
        """Validates a task."""
        at_once, workers = state.schedule.batch_size, self.config.workers
        state.score = state.validation.score(state.task_pass, at_once, workers, self.ranks)

    def scores(self) -> dict[str, TaskScore]:
        """Task -> score of its last validation."""
        return {state.task.name: state.score for state in self.task_states}

    def state(self, done: int) -> dict:
        metadata = {
            "taken": {state.task.name: state.taken for state in self.task_states},
            "regime": self.regime.state(),
            "seconds": self.seconds,
        }
        return metadata | ({"balance": self.balanced.method.state()} if self.balanced else {})
