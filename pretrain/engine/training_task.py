"""The interface between the training loop and what is trained.

Pretraining is in pretrain/objective/pretraining_task.py, single-task and multi-task fine-tuning in finetune/training.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch

from pretrain.data.dataloader import WorkerStatus
from pretrain.engine.step import Engine, MetricSums


class Schedule(Protocol):
    """The steps of a run, of which this process takes those from first_step on."""

    @property
    def first_step(self) -> int: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...


@dataclass(frozen=True)
class Evaluation:
    """The result of a validation, equal on all ranks.

    Attributes:
        scores: for the log.
        text: the scores for the console.
        selection: selects the best checkpoint, higher is better; None if checkpoints are not compared by it.
        seconds: name of a part of the validation -> the time that it took; empty if there are no parts.
    """

    scores: dict
    text: str
    selection: float | None
    seconds: dict[str, float] = field(default_factory=dict)


class TrainingTask(ABC):
    """What is trained: its batches, the denominators of its losses, its metrics and its validation.

    A batch has __len__, to(device), pin_memory(), record_stream(stream), and `problems`, the error messages of skipped
    samples. The losses are those of Engine.replica.

    Attributes:
        unit: the plural for a sample in console output.
        shorter_validation: how validation can be made shorter, in console output.
        schedule: the steps.
        peak_lr: peak learning rate.
        save_every: steps between two checkpoints.
        worker_status: the data workers' shards.
        device: device of the model.
    """

    unit: ClassVar[str] = "samples"
    shorter_validation: ClassVar[str]

    schedule: Schedule
    peak_lr: float
    save_every: int
    worker_status: WorkerStatus
    device: torch.device

    @abstractmethod
    def batches(self) -> Iterator[list | None]:
        """This rank's batches of every step from schedule.first_step, one per accumulation step.

        None between two steps means that the next one depends on the results of the previous ones.
        """

    @abstractmethod
    def denominators(self, parts: list) -> list[int]:
        """This rank's part of the denominators of the losses of a step; the last is the number of samples."""

    def take_step(self, engine: Engine, step: int, parts: list, sums: MetricSums, denominators: list[int]) -> None:
        """Takes the optimizer step of a step. denominators: summed over all ranks."""
        engine.step(step, parts, sums, denominators)

    @abstractmethod
    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics for the log, from the metric sums of the engine."""

    @abstractmethod
    def describe(self, metrics: dict) -> str:
        """The part of a progress line with the metrics."""

    @abstractmethod
    def samples_before(self, step: int) -> int:
        """Number of samples trained on before a step."""

    def validation_due(self, done: int) -> bool:
        """Whether to validate after `done` steps; the last step is always followed by validation."""
        return done % self.save_every == 0

    @abstractmethod
    def evaluate(self, done: int) -> Evaluation | None:
        """Validates after `done` steps; None without validation data."""

    def extra_log_line(self, engine: Engine, done: int) -> tuple[str, dict] | None:
        """(kind, values) of a line of the log of its own after `done` steps, equal on all ranks; None for no line."""
        return None

    def validations(self) -> dict[str, int]:
        """How often a whole run validates, by part (see Evaluation.seconds); "" for one without parts."""
        return {"": -(-self.schedule.total_steps // self.save_every)}

    @property
    def stopped_early(self) -> bool:
        """Whether to stop before the last step, by the results of validation."""
        return False

    def state(self, done: int) -> dict:
        """What checkpoint.json keeps of the task after `done` steps."""
        return {}
