"""Where batches come from: each task's examples in an order of each epoch, divided over ranks and their parts."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, tee

import numpy as np
import torch
from torch.utils.data import Dataset

from finetune.batch import TaskBatch, TaskCollator
from pretrain.plan import Plan, share
from pretrain.workers import Loader, Places, loading, watched_workers
from shards import hashing
from shards.ranks import Ranks

WORTH_A_WORKER = 8  # batches for which starting one more process pays

Request = tuple[int, int, int, np.ndarray]  # number of the task, turn of the step, epoch, numbers of examples


@dataclass
class Turn:
    """A part of a task's batch. task: its number; number: the place of its turn among those of the step."""

    task: int
    number: int
    batch: TaskBatch

    @property
    def problems(self) -> tuple[str, ...]:
        return self.batch.problems

    def __len__(self) -> int:
        return len(self.batch)

    def pin_memory(self) -> "Turn":
        return replace(self, batch=self.batch.pin_memory())

    def to(self, device) -> "Turn":
        return replace(self, batch=self.batch.to(device))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        self.batch.record_stream(stream)


class _Turns(Dataset):
    """Turns by request."""

    def __init__(self, collators: list[TaskCollator], places: Places):
        self.collators, self.places = collators, places

    def __getitem__(self, request: Request) -> Turn:
        task, turn, epoch, numbers = request
        collator = self.collators[task]
        _note(self.places, collator, numbers, task)
        return Turn(task, turn, collator(epoch, numbers))


def _note(places: Places, collator: TaskCollator, numbers: np.ndarray, task: int = 0) -> None:
    """Notes the shard of the first image of some examples."""
    if len(numbers):
        first = collator.examples[int(numbers[0])].images[0]
        places.note(collator.regions.shard_of(first), task)


@dataclass
class _Requests:
    """What the loader is to read in its next pass."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


@dataclass
class Order:
    """In which order a task's examples come: another one in each epoch."""

    plan: Plan
    seed: int
    epoch: int | None = None
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def part(self, step: int, number: int) -> tuple[int, np.ndarray]:
        """(epoch, numbers of examples) of one of this rank's parts of a step of the task."""
        epoch, begin, end = self.plan.part(step, number)
        if epoch != self.epoch:
            self.epoch = epoch
            self.numbers = hashing.permutation(hashing.key(self.seed, epoch, 4), self.plan.pairs)
        return epoch, self.numbers[begin:end]


class TurnReader:
    """Reads turns of several tasks with one set of data workers, which last from call to call."""

    def __init__(self, collators: list[TaskCollator], places: Places, workers: int, accumulate: int, pin: bool):
        self.requests, self.accumulate = _Requests(), accumulate
        turns = _Turns(collators, places)
        self.loader = Loader(turns, workers, places, accumulate, pin, self.requests, lasting=True)

    def read(self, orders: list[Order], steps: Iterable[list[tuple[int, int]]]) -> Iterator[list[Turn]]:
        """This rank's parts of each step. steps: for each the turns, (number of the task, the task's own step)."""
        ahead, here = tee(steps)
        self.requests.requests = self._requests(orders, ahead)
        turns = iter(self.loader)
        for step in here:
            yield list(islice(turns, len(step) * self.accumulate))
        next(turns, None)  # there is none: the workers come to the end of the pass

    def close(self) -> None:
        """Ends the data workers, which would keep the process from ending."""
        self.requests.requests, self.loader = (), None

    def _requests(self, orders: list[Order], steps: Iterable[list[tuple[int, int]]]) -> Iterator[Request]:
        for step in steps:
            for turn, (task, own) in enumerate(step):
                for number in range(self.accumulate):
                    yield task, turn, *orders[task].part(own, number)


def task_steps(
    collator: TaskCollator, plan: Plan, seed: int, places: Places, pin: bool = False
) -> Iterator[list[TaskBatch]]:
    """This rank's parts of every step of one task from plan.first_step on, read ahead by data workers."""
    steps = ([(0, step)] for step in range(plan.first_step, plan.total_steps))
    with contextlib.closing(TurnReader([collator], places, plan.workers, plan.accumulate, pin)) as reader:
        for turns in reader.read([Order(plan, seed)], steps):
            yield [turn.batch for turn in turns]


@contextlib.contextmanager
def in_order(
    collator: TaskCollator, batch_size: int, workers: int, ranks: Ranks, pin: bool = False
) -> Iterator[Iterator[tuple[slice, TaskBatch]]]:
    """A block with (which examples, their batch) for this rank's share of all examples, in their order.

    A data worker that dies in the block is a UserError.
    """
    first, last = share(len(collator.examples), ranks.count, ranks.rank)
    slices = [slice(begin, min(begin + batch_size, last)) for begin in range(first, last, batch_size)]
    workers = min(workers, len(slices) // WORTH_A_WORKER)
    requests = [(0, np.arange(part.start, part.stop)) for part in slices]
    places = Places(workers, *([collator.regions.dataset] if workers else []))
    with watched_workers(places):
        batches = loading(_InOrder(collator, places), workers, places, pin=pin, sampler=requests)
        yield zip(slices, batches, strict=True)


class _InOrder(Dataset):
    def __init__(self, collator: TaskCollator, places: Places):
        self.collator, self.places = collator, places

    def __getitem__(self, request: tuple[int, np.ndarray]) -> TaskBatch:
        epoch, numbers = request
        if self.places.paths:
            _note(self.places, self.collator, numbers)
        return self.collator(epoch, numbers)
