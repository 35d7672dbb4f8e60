"""Where a task's batches come from: its examples in an order of each epoch, divided over ranks and their parts."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from torch.utils.data import Dataset

from finetune.batch import TaskBatch, TaskCollator
from pretrain.plan import Plan, share
from pretrain.sources import Places, loading
from shards import hashing
from shards.errors import UserError
from shards.ranks import Ranks


class _Batches(Dataset):
    """Batches by (epoch, numbers of examples); a UserError in place of one that cannot be made."""

    def __init__(self, collator: TaskCollator, places: Places | None = None):
        self.collator, self.places = collator, places

    def __getitem__(self, request: tuple[int, np.ndarray]) -> TaskBatch | UserError:
        epoch, numbers = request
        try:
            if self.places is not None and len(numbers):
                first = self.collator.examples[int(numbers[0])].images[0]
                self.places.note(self.collator.regions.shard_of(first))
            return self.collator(epoch, numbers)
        except UserError as error:
            return error


class _Requests:
    """(epoch, numbers of examples) of each of this rank's parts of every step."""

    def __init__(self, plan: Plan, seed: int):
        self.plan, self.seed = plan, seed

    def __iter__(self):
        epoch, order = None, None
        for step in range(self.plan.first_step, self.plan.total_steps):
            for number in range(self.plan.accumulate):
                wanted, begin, end = self.plan.part(step, number)
                if wanted != epoch:
                    epoch, order = wanted, hashing.permutation(hashing.key(self.seed, wanted, 4), self.plan.pairs)
                yield epoch, order[begin:end]


def task_steps(
    collator: TaskCollator, plan: Plan, seed: int, places: Places, pin: bool = False
) -> Iterator[list[TaskBatch]]:
    """This rank's parts of every step from plan.first_step on, read ahead by data workers."""
    batches = loading(_Batches(collator, places), plan.workers, 4 * plan.accumulate, pin, _Requests(plan, seed))
    while parts := list(islice(batches, plan.accumulate)):
        yield parts


def in_order(
    collator: TaskCollator, batch_size: int, workers: int, ranks: Ranks, pin: bool = False
) -> Iterator[tuple[slice, TaskBatch]]:
    """(which examples, their batch) for this rank's share of all examples, in their order."""
    first, last = share(len(collator.examples), ranks.count, ranks.rank)
    slices = [slice(begin, min(begin + batch_size, last)) for begin in range(first, last, batch_size)]
    requests = [(0, np.arange(part.start, part.stop)) for part in slices]
    yield from zip(slices, loading(_Batches(collator), workers, 4, pin, requests), strict=True)
