"""Where batches come from: local shards by number, or streams from front to back; both resume at any step."""

import atexit
import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from pretrain.batch import Batch
from pretrain.collate import Collator
from pretrain.pairs import Captions, split_pairs
from pretrain.plan import Plan, share
from pretrain.streams import StreamedBatches
from shards.dataset import Dataset as Shards
from shards.dataset import open_dataset, read_captions
from shards.errors import UserError
from shards.files import is_remote
from shards.order import epoch_order
from shards.ranks import ALONE, Ranks
from shards.reader import RegionReader
from shards.sample import Sample
from shards.stream import open_stream, read_stream

PATIENCE = 1.0  # seconds between the end of a worker's connection and that of the worker, at the most
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


class _LocalBatches(Dataset):
    """Batches by (epoch, sample numbers)."""

    def __init__(self, reader: RegionReader, collator: Collator, places: "Places"):
        self.reader, self.collator, self.places = reader, collator, places

    def __getitem__(self, request: tuple[int, np.ndarray]) -> Batch:
        epoch, numbers = request
        return self.collator(epoch, numbers, [self._read(number) for number in numbers.tolist()])

    def _read(self, number: int) -> Sample | UserError:
        self.places.note(self.reader.shard_of(number))
        return _sample_or_error(self.reader, number)


def _sample_or_error(samples, number: int) -> Sample | UserError:
    try:
        return samples[number]
    except UserError as error:
        return error


class _Requests:
    """(epoch, sample numbers) of each of this rank's parts of every step."""

    def __init__(self, pairs: Pairs, seed: int, plan: Plan):
        self.pairs, self.seed, self.plan = pairs, seed, plan

    def __iter__(self):
        member, epoch, order = self.pairs.member, None, None
        for step in range(self.plan.first_step, self.plan.total_steps):
            for number in range(self.plan.accumulate):
                wanted, begin, end = self.plan.part(step, number)
                if wanted != epoch:
                    epoch, order = wanted, epoch_order(self.pairs.shards.counts, self.seed, wanted)
                    order = order[member[order]]
                yield epoch, order[begin:end]


class Places:
    """Which shard every data worker is reading, in memory that outlives a worker that is killed."""

    def __init__(self, workers: int, *data_sets: Shards):
        self.paths = [shard.path for shards in data_sets for shard in shards.shards]
        self.firsts = np.cumsum([0, *(len(shards.shards) for shards in data_sets)])
        self.table = torch.full((max(workers, 1), 2), -1, dtype=torch.int64).share_memory_()

    def note(self, shard: int, data_set: int = 0) -> None:
        """This worker has come to shard number `shard` of one of the data sets."""
        worker = get_worker_info()
        if worker:
            self.table[worker.id] = torch.tensor([os.getpid(), self.firsts[data_set] + shard])

    def dead(self) -> list[int]:
        """Workers that have read and are no more; one that is about to end has PATIENCE for it."""
        until, read = time.monotonic() + PATIENCE, {pid for pid, _ in self.table.tolist() if pid > 0}
        while not (gone := read - {child.pid for child in multiprocessing.active_children()}):
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        return sorted(gone)

    def describe(self, death: str) -> str:
        """A sentence for torch's message about a worker that died."""
        listed = re.search(r"pid(?:\(s\))? ([\d, ]+)", death)  # "(pid 7)", or "(pid(s) 7, 8)"
        pids = set(map(int, re.findall(r"\d+", listed[1]))) if listed else set()
        at = {self.paths[shard] for pid, shard in self.table.tolist() if pid in pids and shard >= 0}
        how = re.search(r"killed by signal: ([^.]+)", death)
        return (
            f"a data worker {'was killed (' + how[1].strip() + ')' if how else 'died'} "
            f"{'while reading ' + ', '.join(sorted(at)) if at else 'before it read anything'}; was the file cut short, "
            "or is memory short (fewer --workers)? --resume goes on from the last checkpoint"
        )


@contextlib.contextmanager
def watched_workers(places: Places):
    """Ends the data workers with the block, whatever ends it; one that died is a UserError with its shard.

    torch's error about a dead worker may be raised anywhere in the block; where a batch was just being fetched from it,
    that of the connection comes first.
    """
    try:
        yield
    except BaseException as error:
        death = _death(error, places)
        # The frames of an error would keep the loader alive, and its workers, until the interpreter waits for them.
        traceback.clear_frames(error.__traceback__)
        if death is None:
            raise
        raise UserError(places.describe(death)) from None


def _death(error: BaseException, places: Places) -> str | None:
    """torch's words about a data worker that died, or some like them; None where an error is another."""
    if isinstance(error, ConnectionError | EOFError):  # torch may not have noticed yet; it is told by a signal
        try:
            dead = places.dead()
        except RuntimeError as noticed:
            return _death(noticed, places)
        return f"(pid(s) {', '.join(map(str, dead))})" if dead else None
    return str(error) if isinstance(error, RuntimeError) and "DataLoader worker" in str(error) else None


def _end_workers() -> None:
    """Kills data workers that are left when the process ends: it would wait for them, and they ignore signals."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _start_worker(_) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it is for the training process to answer them
    sys.excepthook = _say_unless_abandoned
    torch.set_num_threads(1)


def _say_unless_abandoned(kind, error, trace) -> None:
    """Python's own hook, but for what the thread that hands batches over says of a training process that has ended."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


class _Answers(Dataset):
    """What another dataset gives, a UserError in place of one that it raises: torch would wrap it in a traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, request):
        try:
            return self.dataset[request]
        except UserError as error:
            return error


class Loader:
    """What a dataset gives, read ahead by data workers. lasting: they stay from one pass to the next."""

    def __init__(self, dataset, workers: int, ahead: int = 4, pin: bool = False, sampler=None, lasting: bool = False):
        if workers:
            atexit.register(_end_workers)
        self.loader = DataLoader(
            dataset if isinstance(dataset, IterableDataset) else _Answers(dataset),
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            persistent_workers=lasting and workers > 0,
            pin_memory=pin,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # not the global one, whose state belongs to dropout
        )

    def __iter__(self) -> Iterator:
        """One pass over the sampler; a UserError of the dataset, raised or given, is raised here as what it was."""
        return map(_raised, self.loader)


def loading(dataset, workers: int, ahead: int = 4, pin: bool = False, sampler=None) -> Iterator:
    """One pass of a Loader."""
    return iter(Loader(dataset, workers, ahead, pin, sampler))


def training_steps(
    pairs: Pairs, collator: Collator, plan: Plan, places: Places, pin: bool = False
) -> Iterator[list[Batch]]:
    """This rank's parts of every step from plan.first_step on, read ahead by the plan's data workers."""
    ahead = 4 * plan.accumulate
    if pairs.streamed:
        each = plan.steps_per_epoch
        starts = [plan.first_step, *range((plan.first_step // each + 1) * each, plan.total_steps, each)]
        epochs = (StreamedBatches(pairs.shards, pairs.member, collator, plan, step, places.note) for step in starts)
        loaders = (loading(epoch, plan.workers, ahead, pin) for epoch in epochs)
    else:
        local = _LocalBatches(RegionReader(pairs.shards), collator, places)
        requests = _Requests(pairs, collator.seed, plan)
        loaders = iter([loading(local, plan.workers, ahead, pin, requests)])
    for batches in loaders:
        while parts := list(islice(batches, plan.accumulate)):
            yield parts


def _raised(batch: Batch | UserError) -> Batch:
    if isinstance(batch, UserError):
        raise batch
    return batch


class ValidationBatches:
    """This rank's share of the held-out pairs in batches, the same at every pass; those of a stream are read once."""

    def __init__(self, pairs: Pairs, collator: Collator, batch_size: int, ranks: Ranks = ALONE):
        self.pairs, self.collator, self.size, self.ranks = pairs, collator, batch_size, ranks
        self.numbers = pairs.validation[slice(*share(len(pairs.validation), ranks.count, ranks.rank))]
        self.samples = None
        if pairs.streamed and len(self.numbers):
            held, last = set(self.numbers.tolist()), int(self.numbers[-1]) + 1
            self.samples = {n: s for n, s in enumerate(read_stream(pairs.shards.shards[0].path, 0, last)) if n in held}
        elif len(self.numbers):
            self.samples = RegionReader(pairs.shards)

    def __len__(self) -> int:
        """Held-out pairs, of all ranks together."""
        return len(self.pairs.validation)

    def __iter__(self):
        for begin in range(0, len(self.numbers), self.size):
            numbers = self.numbers[begin : begin + self.size]
            yield self.collator(
                VALIDATION_EPOCH, numbers, [_sample_or_error(self.samples, number) for number in numbers.tolist()]
            )
