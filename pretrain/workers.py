"""Data workers: what is read ahead in processes of their own, and what is said of one that dies."""

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

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from shards.dataset import Dataset as Shards
from shards.errors import UserError

PATIENCE = 1.0  # seconds between the end of a worker's connection and that of the worker, at the most


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


class _Answers(Dataset):
    """What another dataset gives, a UserError in place of one that it raises: torch would wrap it in a traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, request):
        try:
            return self.dataset[request]
        except UserError as error:
            return error


def _raised(answer):
    if isinstance(answer, UserError):
        raise answer
    return answer


def _start_worker(_) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it is for the training process to answer them
    sys.excepthook = _say_unless_abandoned
    torch.set_num_threads(1)


def _say_unless_abandoned(kind, error, trace) -> None:
    """Python's own hook, but for what the thread that hands batches over says of a training process that has ended."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end_workers() -> None:
    """Kills data workers that are left when the process ends: it would wait for them, and they ignore signals."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


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

    def dead(self) -> set[int]:
        """Workers, by process, that have read and are no more; one that is about to end has PATIENCE for it."""
        until, read = time.monotonic() + PATIENCE, {pid for pid, _ in self.table.tolist() if pid > 0}
        while not (gone := read - {child.pid for child in multiprocessing.active_children()}):
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        return gone

    def read_by(self, pids: set[int]) -> list[str]:
        """The shards that these workers were reading."""
        return sorted({self.paths[shard] for pid, shard in self.table.tolist() if pid in pids and shard >= 0})


@dataclass(frozen=True)
class _Death:
    """Workers that died, by process, and the signal that killed them, by its name, where that is known."""

    pids: set[int]
    signal: str | None = None

    @classmethod
    def behind(cls, error: BaseException, places: Places) -> "_Death | None":
        """What an error says of a worker's death; None where it is about something else."""
        if isinstance(error, ConnectionError | EOFError):  # torch may not have noticed yet; it is told by a signal
            try:
                pids = places.dead()
            except RuntimeError as noticed:
                return cls.behind(noticed, places)
            return cls(pids) if pids else None
        if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
            return None
        pids = re.search(r"pid(?:\(s\))? ([\d, ]+)", str(error))  # "(pid 7)", or "(pid(s) 7, 8)"
        killed = re.search(r"killed by signal: ([^.]+)", str(error))
        return cls(set(map(int, re.findall(r"\d+", pids[1]))) if pids else set(), killed and killed[1].strip())


@contextlib.contextmanager
def watched_workers(places: Places):
    """Ends the data workers with the block, whatever ends it; one that died is a UserError with its shard.

    torch's error about a dead worker may be raised anywhere in the block; where a batch was just being fetched from it,
    that of the connection comes first.
    """
    try:
        yield
    except BaseException as error:
        death = _Death.behind(error, places)
        # The frames of an error would keep the loader alive, and its workers, until the interpreter waits for them.
        traceback.clear_frames(error.__traceback__)
        if death is None:
            raise
        shards = ", ".join(places.read_by(death.pids))
        raise UserError(
            f"a data worker {f'was killed ({death.signal})' if death.signal else 'died'} "
            f"{f'while reading {shards}' if shards else 'before it read anything'}; was the file cut short, or is "
            "memory short (fewer --workers)? --resume goes on from the last checkpoint"
        ) from None
