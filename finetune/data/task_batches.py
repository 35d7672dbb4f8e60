"""Batch loading: shuffled examples of each task, divided over ranks and micro-batches and read by data workers."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from finetune.data.task_collate import TaskBatch, TaskCollator
from pretrain.data.batch_schedule import BatchSchedule, part_range
from pretrain.data.dataloader import Loader, WorkerStatus, check_workers, loading
from shards.common import counter_rng
from shards.common.dist_info import Ranks
from shards.common.random_purposes import EpochPurpose

WORTH_A_WORKER = 8  # batches per data worker: with fewer, starting another process costs more time than it saves


class TaskStep(NamedTuple):
    """A step of a task in an iteration.

    Attributes:
        task: number of the task.
        step: number of the step among all steps of the task.
    """

    task: int
    step: int


class MicroBatchRequest(NamedTuple):
    """What a data worker reads.

    Attributes:
        task: number of the task.
        task_step: number of the task step in its iteration.
        epoch: of the task.
        examples: int64 (n,), numbers of the examples.
    """

    task: int
    task_step: int
    epoch: int
    examples: np.ndarray


@dataclass
class MicroBatch:
    """A micro-batch of a task step.

    Attributes:
        task: number of the task.
        task_step: number of the task step in its iteration.
        batch: the examples.
    """

    task: int
    task_step: int
    batch: TaskBatch

    @property
    def problems(self) -> tuple[str, ...]:
        return self.batch.problems

    def __len__(self) -> int:
        return len(self.batch)

    def pin_memory(self) -> "MicroBatch":
        return replace(self, batch=self.batch.pin_memory())

    def to(self, device) -> "MicroBatch":
        return replace(self, batch=self.batch.to(device))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        self.batch.record_stream(stream)


class _MicroBatches(Dataset):
    """Micro-batches by request."""

    def __init__(self, collators: list[TaskCollator], status: WorkerStatus):
        self.collators, self.status = collators, status

    def __getitem__(self, request: MicroBatchRequest) -> MicroBatch:
        task, task_step, epoch, examples = request
        collator = self.collators[task]
        _note(self.status, collator, examples, task)
        return MicroBatch(task, task_step, collator(epoch, examples))


def _note(status: WorkerStatus, collator: TaskCollator, numbers: np.ndarray, task: int = 0) -> None:
    """Records the shard of the first example's first image, for the error message if the data worker dies."""
    if len(numbers):
        first = collator.examples[int(numbers[0])].images[0]
        status.note(collator.regions.shard_of(first), task)


@dataclass
class _Requests:
    """A sampler of the data loader; `requests` is replaced before each pass."""

    requests: Iterable[MicroBatchRequest] = ()

    def __iter__(self) -> Iterator[MicroBatchRequest]:
        return iter(self.requests)


@dataclass
class ExampleOrder:
    """The order of a task's examples, shuffled anew in each epoch."""

    schedule: BatchSchedule
    seed: int
    epoch: int | None = None
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def micro_batch(self, step: int, number: int) -> tuple[int, np.ndarray]:
        """(epoch, numbers of the examples) of one of this rank's micro-batches of a step of the task."""
        epoch, begin, end = self.schedule.micro_batch_range(step, number)
        if epoch != self.epoch:
            self.epoch = epoch
            random_key = counter_rng.key(self.seed, epoch, EpochPurpose.EXAMPLE_ORDER)
            self.numbers = counter_rng.permutation(random_key, self.schedule.samples)
        return epoch, self.numbers[begin:end]


class MicroBatchReader:
    """Reads micro-batches of several tasks with one set of data workers, which persist between calls."""

    def __init__(self, collators: list[TaskCollator], status: WorkerStatus, workers: int, accumulate: int, pin: bool):
        self.requests, self.accumulate = _Requests(), accumulate
        dataset = _MicroBatches(collators, status)
        self.loader = Loader(dataset, workers, status, accumulate, pin, self.requests, lasting=True)

    def read(self, orders: list[ExampleOrder], iterations: Sequence[Sequence[TaskStep]]) -> Iterator[list[MicroBatch]]:
        """This rank's micro-batches of each iteration.

        They are in the order of the task steps, `accumulate` for each. orders: of the examples of each task.
        """
        self.requests.requests = self._requests(orders, iterations)
        batches = iter(self.loader)
        for task_steps in iterations:
            yield list(islice(batches, len(task_steps) * self.accumulate))
        next(batches, None)  # returns None, and lets the workers finish their pass

    def close(self) -> None:
        """Stops the data workers, which would otherwise keep the process alive."""
        self.requests.requests, self.loader = (), None

    def _requests(
        self, orders: list[ExampleOrder], iterations: Sequence[Sequence[TaskStep]]
    ) -> Iterator[MicroBatchRequest]:
        for task_steps in iterations:
            for place, (task, step) in enumerate(task_steps):
                for number in range(self.accumulate):
                    epoch, examples = orders[task].micro_batch(step, number)
                    yield MicroBatchRequest(task, place, epoch, examples)


def single_task_steps(
    collator: TaskCollator, schedule: BatchSchedule, seed: int, status: WorkerStatus, pin: bool = False
) -> Iterator[list[TaskBatch]]:
    """This rank's micro-batches of every step of one task, from schedule.first_step on, prefetched by data workers."""
    steps = [(TaskStep(0, step),) for step in range(schedule.first_step, schedule.total_steps)]
    with contextlib.closing(MicroBatchReader([collator], status, schedule.workers, schedule.accumulate, pin)) as reader:
        for parts in reader.read([ExampleOrder(schedule, seed)], steps):
            yield [part.batch for part in parts]


@contextlib.contextmanager
def in_order(
    collator: TaskCollator, batch_size: int, workers: int, ranks: Ranks, pin: bool = False
) -> Iterator[Iterator[tuple[slice, TaskBatch]]]:
    """A context manager that yields an iterator of (slice of the examples, their batch) over this rank's share of all
    examples, in order.

    Raises:
        UserError: a data worker died inside the block.
    """
    first, last = part_range(len(collator.examples), ranks.count, ranks.rank)
    slices = [slice(begin, min(begin + batch_size, last)) for begin in range(first, last, batch_size)]
    workers = min(workers, len(slices) // WORTH_A_WORKER)
    requests = [(0, np.arange(part.start, part.stop)) for part in slices]
    status = WorkerStatus(workers, *([collator.regions.dataset] if workers else []))
    with check_workers(status):
        batches = loading(_InOrder(collator, status), workers, status, pin=pin, sampler=requests)
        yield zip(slices, batches, strict=True)


class _InOrder(Dataset):
    def __init__(self, collator: TaskCollator, status: WorkerStatus):
        self.collator, self.status = collator, status

    def __getitem__(self, request: tuple[int, np.ndarray]) -> TaskBatch:
        epoch, numbers = request
        if self.status.paths:
            _note(self.status, self.collator, numbers)
        return self.collator(epoch, numbers)
