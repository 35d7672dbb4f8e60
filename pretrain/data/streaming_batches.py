"""Batches from streams: every reader makes batches from its own contiguous share of an epoch's sequence of samples.

The samples of a reader's batches are known without reading, so a run can be resumed with another number of ranks,
workers or accumulation steps: the remaining samples of the epoch are divided again (a stage, see batch_schedule.py).
"""

from collections import Counter
from itertools import islice, pairwise

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from pretrain.data.batch_schedule import BatchSchedule, RunLayout, Stage, part_range
from shards.common.errors import UserError
from shards.storage.dataset import Dataset
from shards.storage.epoch_order import PairNumbers
from shards.storage.stream import Stretch


def reader_order(total: int, readers: int) -> list[int]:
    """The reader of each of a rank's batches: round robin over the readers with batches left."""
    shares = [part_range(total, readers, reader) for reader in range(readers)]
    left, order = [end - begin for begin, end in shares], []
    while len(order) < total:
        order += [reader for reader in range(readers) if left[reader] > 0]
        left = [count - 1 for count in left]
    return order


class ReaderShare:
    """One reader's share of a stage of an epoch: a contiguous part of the sequence, and the sizes of its batches.

    Args:
        pairs: pair numbers of the epoch.
        member: bool by pair number, true for pairs that are not read before the stage.
        steps: number of steps of the stage.
    """

    def __init__(
        self,
        dataset: Dataset,
        pairs: PairNumbers,
        seed: int,
        epoch: int,
        member: np.ndarray,
        layout: RunLayout,
        steps: int,
        rank: int,
        reader: int,
    ):
        self.total, self.reader, self.layout = steps * layout.accumulate, reader, layout
        first, last = part_range(int(member.sum()), layout.ranks, rank)
        cuts = [first + part_range(last - first, self.total, batch)[0] for batch in range(self.total)] + [last]
        low, high = part_range(self.total, layout.readers, reader)
        self.sizes = [end - begin for begin, end in pairwise(cuts[low : high + 1])]
        place = rank * layout.readers + reader
        self.stretch = Stretch(dataset, seed, epoch, member, cuts[low], cuts[high], place, pairs=pairs)

    def made(self, steps: int) -> int:
        """Number of batches that this reader has made after some steps of the stage."""
        return Counter(reader_order(self.total, self.layout.readers)[: steps * self.layout.accumulate])[self.reader]


def remaining_pairs(
    dataset: Dataset, pairs: PairNumbers, seed: int, epoch: int, member, stages: tuple[Stage, ...], steps: int
) -> np.ndarray:
    """bool by pair number: the pairs of an epoch of `steps` steps that are not read before its last stage."""
    for stage, following in pairwise(stages):
        after = member.copy()
        for rank in range(stage.layout.ranks):
            for reader in range(stage.layout.readers):
                left = steps - stage.begin
                reader_share = ReaderShare(dataset, pairs, seed, epoch, member, stage.layout, left, rank, reader)
                count = sum(reader_share.sizes[: reader_share.made(following.begin - stage.begin)])
                after[list(islice(reader_share.stretch.numbers(), count))] = False
        member = after
    return member


class StreamedBatches(IterableDataset):
    """A rank's batches of one epoch, from its step `place`; a UserError in place of a batch that cannot be read.

    opened: called with the number of every shard before it is read.
    """

    def __init__(
        self,
        dataset: Dataset,
        pairs: PairNumbers,
        member: np.ndarray,
        collator,
        schedule: BatchSchedule,
        step: int,
        opened,
    ):
        self.dataset, self.pairs, self.collator, self.schedule, self.opened = dataset, pairs, collator, schedule, opened
        self.epoch, self.place = divmod(step, schedule.steps_per_epoch)
        stages = schedule.stages_at(step)
        self.stage = stages[-1]
        self.member = remaining_pairs(
            dataset, pairs, collator.seed, self.epoch, member, stages, schedule.steps_per_epoch
        )

    def __iter__(self):
        worker = get_worker_info()
        reader, layout, begin = worker.id if worker else 0, self.stage.layout, self.stage.begin
        steps = self.schedule.steps_per_epoch - begin
        if self.place > begin:  # torch asks worker 0 first, so it must be the reader of the next batch
            order = reader_order(steps * layout.accumulate, layout.readers)
            reader = (reader + order[(self.place - begin) * layout.accumulate]) % layout.readers
        rank = self.schedule.ranks.rank
        seed, member = self.collator.seed, self.member
        reader_share = ReaderShare(self.dataset, self.pairs, seed, self.epoch, member, layout, steps, rank, reader)
        samples, made = reader_share.stretch.samples(self.opened), reader_share.made(self.place - begin)
        for batch, size in enumerate(reader_share.sizes):
            held = list(islice(samples, size))
            if batch >= made:
                numbers = np.array([number for number, _ in held], np.int64)
                try:
                    yield self.collator(self.epoch, numbers, [sample for _, sample in held])
                except UserError as error:
                    yield error
