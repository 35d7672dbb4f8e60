"""Batches from streams: every reader makes some of them from its own stretch of the epoch's sequence of samples.

What a reader has read after any number of batches is known without reading anything, so a run may go on with another
number of ranks, workers or accumulated parts: what is left of the epoch is divided anew (a stage, see plan.py).
"""

from collections import Counter
from itertools import islice, pairwise

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from pretrain.plan import Layout, Plan, Stage, share
from shards.dataset import Dataset
from shards.errors import UserError
from shards.order import PairNumbers
from shards.stream import Stretch


def turns(total: int, readers: int) -> list[int]:
    """Which reader each of a rank's batches comes from: in turn, while they have any left."""
    shares = [share(total, readers, reader) for reader in range(readers)]
    left, order = [end - begin for begin, end in shares], []
    while len(order) < total:
        order += [reader for reader in range(readers) if left[reader] > 0]
        left = [count - 1 for count in left]
    return order


class Reading:
    """What one reader reads in a stage of an epoch: a stretch of the sequence, and the sizes of its batches.

    pairs: the numbers of the epoch's pairs; member: bool by pair number, what is left of the epoch where the stage
    begins.
    """

    def __init__(
        self,
        dataset: Dataset,
        pairs: PairNumbers,
        seed: int,
        epoch: int,
        member: np.ndarray,
        layout: Layout,
        steps: int,
        rank: int,
        reader: int,
    ):
        self.total, self.reader, self.layout = steps * layout.accumulate, reader, layout
        first, last = share(int(member.sum()), layout.ranks, rank)
        cuts = [first + share(last - first, self.total, batch)[0] for batch in range(self.total)] + [last]
        low, high = share(self.total, layout.readers, reader)
        self.sizes = [end - begin for begin, end in pairwise(cuts[low : high + 1])]
        place = rank * layout.readers + reader
        self.stretch = Stretch(dataset, seed, epoch, member, cuts[low], cuts[high], place, pairs=pairs)

    def made(self, steps: int) -> int:
        """How many batches this reader has made after some steps of the stage."""
        return Counter(turns(self.total, self.layout.readers)[: steps * self.layout.accumulate])[self.reader]


def what_is_left(
    dataset: Dataset, pairs: PairNumbers, seed: int, epoch: int, member, stages: tuple[Stage, ...], steps: int
) -> np.ndarray:
    """bool by pair number: what of an epoch of `steps` steps was not read before the last of its stages."""
    for stage, following in pairwise(stages):
        after = member.copy()
        for rank in range(stage.layout.ranks):
            for reader in range(stage.layout.readers):
                left = steps - stage.begin
                reading = Reading(dataset, pairs, seed, epoch, member, stage.layout, left, rank, reader)
                count = sum(reading.sizes[: reading.made(following.begin - stage.begin)])
                after[list(islice(reading.stretch.numbers(), count))] = False
        member = after
    return member


class StreamedBatches(IterableDataset):
    """A rank's batches of one epoch from its step `place` on; a UserError in place of one that cannot be had.

    opened: called with the number of every shard before it is read.
    """

    def __init__(
        self, dataset: Dataset, pairs: PairNumbers, member: np.ndarray, collator, plan: Plan, step: int, opened
    ):
        self.dataset, self.pairs, self.collator, self.plan, self.opened = dataset, pairs, collator, plan, opened
        self.epoch, self.place = divmod(step, plan.steps_per_epoch)
        stages = plan.stages_at(step)
        self.stage = stages[-1]
        self.member = what_is_left(dataset, pairs, collator.seed, self.epoch, member, stages, plan.steps_per_epoch)

    def __iter__(self):
        worker = get_worker_info()
        reader, layout, begin = worker.id if worker else 0, self.stage.layout, self.stage.begin
        steps = self.plan.steps_per_epoch - begin
        if self.place > begin:  # the readers stand in another order, so that the first is the one whose turn it is
            order = turns(steps * layout.accumulate, layout.readers)
            reader = (reader + order[(self.place - begin) * layout.accumulate]) % layout.readers
        rank = self.plan.ranks.rank
        seed, member = self.collator.seed, self.member
        reading = Reading(self.dataset, self.pairs, seed, self.epoch, member, layout, steps, rank, reader)
        samples, made = reading.stretch.samples(self.opened), reading.made(self.place - begin)
        for batch, size in enumerate(reading.sizes):
            held = list(islice(samples, size))
            if batch >= made:
                numbers = np.array([number for number, _ in held], np.int64)
                try:
                    yield self.collator(self.epoch, numbers, [sample for _, sample in held])
                except UserError as error:
                    yield error
