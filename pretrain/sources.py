"""Where batches come from: local shards by number, or streams from front to back; both resume at any step."""

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from pretrain.batch import Batch
from pretrain.collate import Collator
from pretrain.pairs import Captions, split_pairs
from shards.dataset import Dataset as Shards
from shards.dataset import open_dataset, read_captions
from shards.errors import UserError
from shards.files import is_remote
from shards.order import epoch_order
from shards.reader import RegionReader
from shards.stream import open_stream, read_stream, stream_epoch

VALIDATION_EPOCH = -1  # held-out pairs are masked and swapped in one way, whatever the training epoch


@dataclass
class Pairs:
    """A data set of image-caption pairs, divided. training, validation: sample numbers int64, ascending."""

    shards: Shards
    captions: Captions
    training: np.ndarray
    validation: np.ndarray
    streamed: bool

    @property
    def member(self) -> np.ndarray:
        """bool by sample number: what is trained on."""
        member = np.zeros(len(self.shards), bool)
        member[self.training] = True
        return member


def open_pairs(data: str, validation_pairs: int) -> Pairs:
    """Opens region shards with captions. Of streams, only pairs of the first shard are held out: one can be read."""
    streamed = is_remote(data)
    shards, texts = open_stream(data) if streamed else (open_dataset(data), None)
    if not shards.captions:
        raise UserError(f"{data}: has no captions; pretraining needs image-caption pairs (KEY.txt)")
    captions = Captions(read_captions(shards) if texts is None else texts)
    among = shards.shards[0].samples if streamed else len(shards)
    training, validation = split_pairs(captions, validation_pairs, among)
    return Pairs(shards, captions, training, validation, streamed)


class _Local(Dataset):
    """Batches by (epoch, sample numbers). A UserError is returned: raised, torch would wrap it in a traceback."""

    def __init__(self, reader: RegionReader, collator: Collator):
        self.reader, self.collator = reader, collator

    def __getitem__(self, request: tuple[int, np.ndarray]) -> Batch | UserError:
        epoch, numbers = request
        try:
            return self.collator(epoch, numbers, [self.reader[number] for number in numbers.tolist()])
        except UserError as error:
            return error


class _Requests:
    """(epoch, sample numbers) of every step from `first_step` on."""

    def __init__(self, pairs: Pairs, seed: int, epochs: int, batch_size: int, first_step: int):
        self.pairs, self.seed, self.epochs, self.size, self.first_step = pairs, seed, epochs, batch_size, first_step

    def __iter__(self):
        member = self.pairs.member
        first_epoch, skip = divmod(self.first_step, -(-len(self.pairs.training) // self.size))
        for epoch in range(first_epoch, self.epochs):
            order = epoch_order(self.pairs.shards.counts, self.seed, epoch)
            order = order[member[order]]
            for begin in range(skip * self.size, len(order), self.size):
                yield epoch, order[begin : begin + self.size]
            skip = 0


def reader_batches(total: int, readers: int) -> list[int]:
    """How many of an epoch's batches each reader makes; they differ by one at most."""
    return [total * (reader + 1) // readers - total * reader // readers for reader in range(readers)]


def turns(total: int, readers: int) -> list[int]:
    """Which reader each batch of an epoch comes from: in turn, while they have any left."""
    left, order = reader_batches(total, readers), []
    while len(order) < total:
        order += [reader for reader in range(readers) if left[reader] > 0]
        left = [count - 1 for count in left]
    return order


class _Streamed(IterableDataset):
    """One epoch's batches, each reader making some of them from its own stretch of the stream."""

    def __init__(self, pairs: Pairs, collator: Collator, epoch: int, batch_size: int, skip: int):
        self.pairs, self.collator, self.epoch, self.size, self.skip = pairs, collator, epoch, batch_size, skip

    def __iter__(self):
        worker = get_worker_info()
        place, readers = (worker.id, worker.num_workers) if worker else (0, 1)
        total = -(-len(self.pairs.training) // self.size)
        order = turns(total, readers)
        if self.skip:  # the readers stand in another order, so that the first is the one whose turn it is
            place = (place + order[self.skip]) % readers
        done = Counter(order[: self.skip])[place]
        begin = total * place // readers * self.size
        end = min(begin + reader_batches(total, readers)[place] * self.size, len(self.pairs.training))
        try:
            yield from self._batches(begin, end, done, place)
        except UserError as error:
            yield error

    def _batches(self, begin: int, end: int, done: int, place: int):
        held, made = [], 0
        for number, sample in stream_epoch(
            self.pairs.shards, self.collator.seed, self.epoch, self.pairs.member, begin, end, place
        ):
            held.append((number, sample))
            if len(held) == self.size:
                made += 1
                if made > done:
                    yield self._batch(held)
                held = []
        if held:
            yield self._batch(held)

    def _batch(self, held) -> Batch:
        numbers, samples = zip(*held, strict=True)
        return self.collator(self.epoch, np.array(numbers), list(samples))


def _start_worker(_) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process to answer
    torch.set_num_threads(1)


def training_batches(
    pairs: Pairs, collator: Collator, *, epochs: int, batch_size: int, first_step: int, workers: int, pin: bool
) -> Iterator[Batch]:
    """The batches of every step from `first_step` on, read ahead by `workers` processes.

    What goes wrong in a worker is raised here, as the UserError that it was.
    """
    options = {
        "batch_size": None,
        "num_workers": workers,
        "prefetch_factor": 4 if workers else None,
        "pin_memory": pin,
        "worker_init_fn": _start_worker,
        "generator": torch.Generator(),  # not the global one, whose state belongs to dropout
    }
    if pairs.streamed:
        first_epoch, skip = divmod(first_step, -(-len(pairs.training) // batch_size))
        loaders = (
            DataLoader(_Streamed(pairs, collator, epoch, batch_size, skip if epoch == first_epoch else 0), **options)
            for epoch in range(first_epoch, epochs)
        )
    else:
        requests = _Requests(pairs, collator.seed, epochs, batch_size, first_step)
        loaders = iter([DataLoader(_Local(RegionReader(pairs.shards), collator), sampler=requests, **options)])
    for loader in loaders:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class ValidationBatches:
    """The held-out pairs in batches, the same at every pass; those of a stream are read once and kept."""

    def __init__(self, pairs: Pairs, collator: Collator, batch_size: int):
        self.pairs, self.collator, self.size = pairs, collator, batch_size
        self.samples = None
        if pairs.streamed and len(pairs.validation):
            held = set(pairs.validation.tolist())
            self.samples = {n: s for n, s in enumerate(read_stream(pairs.shards.shards[0].path)) if n in held}
        elif len(pairs.validation):
            self.samples = RegionReader(pairs.shards)

    def __len__(self) -> int:
        return len(self.pairs.validation)

    def __iter__(self):
        for begin in range(0, len(self), self.size):
            numbers = self.pairs.validation[begin : begin + self.size]
            yield self.collator(VALIDATION_EPOCH, numbers, [self.samples[number] for number in numbers.tolist()])
