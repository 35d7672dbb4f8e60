"""Training and validation batches, from local shards (random access) or streams; both resume at any step."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from torch.utils.data import Dataset

from pretrain.data.batch import Batch
from pretrain.data.batch_schedule import BatchSchedule, part_range
from pretrain.data.caption_pairs import Captions, split_pairs
from pretrain.data.collate import Collator
from pretrain.data.dataloader import WorkerStatus, loading
from pretrain.data.streaming_batches import StreamedBatches
from shards.common.dist_info import ALONE, Ranks
from shards.common.errors import UserError
from shards.common.files import is_remote
from shards.common.image_id import image_id
from shards.storage.dataset import Dataset as Shards
from shards.storage.dataset import open_dataset, read_captions
from shards.storage.epoch_order import PairNumbers, epoch_order
from shards.storage.merged_index import load_rows, text_of
from shards.storage.reader import RegionReader
from shards.storage.sample import Sample
from shards.storage.stream import open_stream, read_stream
from shards.storage.text_lists import TextLists

VALIDATION_EPOCH = -1  # so that masks and misaligned captions of validation pairs are the same in every validation


@dataclass
class Pairs:
    """A data set of image-caption pairs, split into training and validation.

    Attributes:
        trained, validation: caption numbers, int64, ascending.
        numbers: pair numbers of an epoch, one per image or one per caption.
        excluded: number of images that were skipped.
    """

    shards: Shards
    captions: Captions
    trained: np.ndarray
    validation: np.ndarray
    numbers: PairNumbers
    streamed: bool
    excluded: int = 0

    @property
    def one_caption(self) -> bool:
        """Whether an epoch uses one of several captions of an image."""
        return len(self.numbers) < len(self.captions.texts)

    @cached_property
    def training(self) -> np.ndarray:
        """The pair numbers of a training epoch, int64, ascending."""
        return np.unique(self.captions.images_of(self.trained)) if self.one_caption else self.trained

    @property
    def member(self) -> np.ndarray:
        """bool by pair number, true for training pairs."""
        member = np.zeros(len(self.numbers), bool)
        member[self.training] = True
        return member


def open_pairs(
    data: str, validation_pairs: int, captions_per_image: str = "all", excluded: frozenset[str] = frozenset()
) -> Pairs:
    """Opens region shards with captions and splits off the validation pairs.

    Args:
        data: local shards or a stream. Of a stream, only pairs of the first shard are held out, so that validation
            reads one shard.
        captions_per_image: `all`: an epoch uses every pair once; `one`: an epoch uses one caption per image, sampled in
            each epoch. The validation pairs are the same.
        excluded: ids of images that are neither trained on nor validated on; for local shards only.
    """
    streamed = is_remote(data)
    shards, texts = open_stream(data) if streamed else (open_dataset(data), None)
    if not shards.captions:
        raise UserError(
            f"{data}: has no captions; pretraining needs image-caption pairs (KEY.txt or KEY.captions.json)"
        )
    texts, left_out = read_captions(shards) if texts is None else texts, 0
    if excluded:
        if streamed:
            raise UserError(
                f"--data {data}: --exclude needs local shards, because the ids of streamed images are not known in "
                "advance; make the shards with shards.extract --exclude"
            )
        used = [image not in excluded for image in _image_ids(shards)]
        texts = TextLists.of(own if kept else () for kept, own in zip(used, texts, strict=True))
        left_out = used.count(False)
    captions = Captions(texts)
    among = shards.shards[0].samples if streamed else len(shards)
    trained, validation = split_pairs(captions, validation_pairs, int(captions.begins[among]))
    if not len(trained):
        raise UserError(f"{data}: all captions are empty; pretraining needs image-caption pairs")
    numbers = PairNumbers(shards.counts, captions.begins if captions_per_image == "all" else None)
    return Pairs(shards, captions, trained, validation, numbers, streamed, left_out)


def _image_ids(shards: Shards) -> Iterator[str]:
    """The image ids of local shards, in order."""
    return (image_id(text_of(image)) for rows in load_rows(shards.shards) for image in rows["id"].tolist())


class _LocalBatches(Dataset):
    """Batches by (epoch, pair numbers)."""

    def __init__(self, reader: RegionReader, numbers: PairNumbers, collator: Collator, worker_status: WorkerStatus):
        self.reader, self.numbers, self.collator, self.worker_status = reader, numbers, collator, worker_status

    def __getitem__(self, request: tuple[int, np.ndarray]) -> Batch:
        epoch, numbers = request
        samples = self.numbers.samples_of(numbers).tolist()
        return self.collator(epoch, numbers, [self._read(sample) for sample in samples])

    def _read(self, number: int) -> Sample | UserError:
        self.worker_status.note(self.reader.shard_of(number))
        return _sample_or_error(self.reader, number)


def _sample_or_error(samples, number: int) -> Sample | UserError:
    try:
        return samples[number]
    except UserError as error:
        return error


class _Requests:
    """(epoch, pair numbers) of every accumulation step of this rank."""

    def __init__(self, pairs: Pairs, seed: int, schedule: BatchSchedule):
        self.pairs, self.seed, self.schedule = pairs, seed, schedule

    def __iter__(self):
        member, epoch, order = self.pairs.member, None, None
        for step in range(self.schedule.first_step, self.schedule.total_steps):
            for number in range(self.schedule.accumulate):
                wanted, begin, end = self.schedule.micro_batch_range(step, number)
                if wanted != epoch:
                    epoch, order = wanted, epoch_order(self.pairs.numbers.per_shard, self.seed, wanted)
                    order = order[member[order]]
                yield epoch, order[begin:end]


def training_steps(
    pairs: Pairs, collator: Collator, schedule: BatchSchedule, worker_status: WorkerStatus, pin: bool = False
) -> Iterator[list[Batch]]:
    """This rank's batches of every step from schedule.first_step, one per accumulation step, read by data workers."""
    if pairs.streamed:
        each = schedule.steps_per_epoch
        starts = [schedule.first_step, *range((schedule.first_step // each + 1) * each, schedule.total_steps, each)]
        epochs = (
            StreamedBatches(pairs.shards, pairs.numbers, pairs.member, collator, schedule, step, worker_status.note)
            for step in starts
        )
        loaders = (loading(epoch, schedule.workers, worker_status, schedule.accumulate, pin) for epoch in epochs)
    else:
        local = _LocalBatches(RegionReader(pairs.shards), pairs.numbers, collator, worker_status)
        requests = _Requests(pairs, collator.seed, schedule)
        loaders = iter([loading(local, schedule.workers, worker_status, schedule.accumulate, pin, requests)])
    for batches in loaders:
        while parts := list(islice(batches, schedule.accumulate)):
            yield parts


class ValidationBatches:
    """This rank's share of the validation pairs in batches, equal in every pass; a stream is read only once."""

    def __init__(self, pairs: Pairs, collator: Collator, batch_size: int, ranks: Ranks = ALONE):
        self.pairs, self.collator, self.size, self.ranks = pairs, collator, batch_size, ranks
        self.numbers = pairs.validation[slice(*part_range(len(pairs.validation), ranks.count, ranks.rank))]
        self.samples = None
        if pairs.streamed and len(self.numbers):
            held = set(pairs.captions.images_of(self.numbers).tolist())
            last = max(held) + 1
            self.samples = {n: s for n, s in enumerate(read_stream(pairs.shards.shards[0].path, 0, last)) if n in held}
        elif len(self.numbers):
            self.samples = RegionReader(pairs.shards)

    def __len__(self) -> int:
        """Number of validation pairs, over all ranks."""
        return len(self.pairs.validation)

    def __iter__(self):
        for begin in range(0, len(self.numbers), self.size):
            numbers = self.numbers[begin : begin + self.size]
            samples = self.pairs.captions.images_of(numbers).tolist()
            yield self.collator(
                VALIDATION_EPOCH, numbers, [_sample_or_error(self.samples, sample) for sample in samples]
            )
