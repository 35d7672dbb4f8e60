"""Data workers: what is read ahead in processes of their own, and what is said of one that dies or cannot deliver."""

import atexit
import contextlib
import errno
import multiprocessing
import multiprocessing.queues
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from shards.dataset import Dataset as Shards
from shards.errors import UserError

PATIENCE = 1.0  # seconds between the end of a worker's connection and that of the worker, at the most
AHEAD = 4  # steps that are read ahead, and batches that each worker reads ahead at the least
TENSORS = 32  # of a batch, at the most; each takes a descriptor on its way from a worker, where files are not shared
SHARED = "/dev/shm"
OTHERS = 200  # descriptors of a process for all else: pipes, maps of shards, libraries


class Loader:
    """What a dataset gives, read ahead by data workers. parts: batches of a step; lasting: the workers stay from one
    pass to the next."""

    def __init__(
        self,
        dataset,
        workers: int,
        places: "Places",
        parts: int = 1,
        pin: bool = False,
        sampler=None,
        lasting: bool = False,
    ):
        ahead = max(AHEAD, -(-AHEAD * parts // max(workers, 1)))
        sharing = None
        if workers:
            atexit.register(_end_workers)
            sharing = _choose_sharing(workers * ahead * TENSORS + OTHERS)
        self.loader = DataLoader(
            dataset if isinstance(dataset, IterableDataset) else _Answers(dataset),
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            persistent_workers=lasting and workers > 0,
            pin_memory=pin,
            worker_init_fn=partial(_start_worker, sharing, places),
            generator=torch.Generator(),  # not the global one, whose state belongs to dropout
        )

    def __iter__(self) -> Iterator:
        """One pass over the sampler; a UserError of the dataset, raised or given, is raised here as what it was."""
        try:
            batches = iter(self.loader)
            while True:
                yield _raised(next(batches))
        except StopIteration:
            return
        except (OSError, RuntimeError) as error:  # also of the queues, whose semaphores are files in SHARED
            failure = _cannot_share(error) if self.loader.num_workers and _Death.of(error) is None else None
            if failure is None:
                raise
            raise failure from None


def loading(dataset, workers: int, places: "Places", parts: int = 1, pin: bool = False, sampler=None) -> Iterator:
    """One pass of a Loader."""
    return iter(Loader(dataset, workers, places, parts, pin, sampler))


def _choose_sharing(descriptors: int) -> str:
    """How workers hand tensors over, in this process and, by its name, in them.

    A descriptor for each tensor leaves nothing behind, however the processes end; files in /dev/shm that are found by
    name take none, and stay there if all of the processes are killed at once. So descriptors are preferred, where the
    process may have as many as it takes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard) and soft < descriptors <= hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= descriptors
    known = torch.multiprocessing.get_all_sharing_strategies()
    sharing = "file_descriptor" if enough and "file_descriptor" in known else "file_system"
    torch.multiprocessing.set_sharing_strategy(sharing)
    return sharing


def _cannot_share(error: BaseException) -> UserError | None:
    """What an error says of the shared memory or the descriptors that batches are handed over by, None for another."""
    said, number = str(error), getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in said or "of ancdata" in said:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return UserError(
            f"too many open files for the data workers (this process may have {limit}); raise the limit (ulimit -n), "
            "or use fewer --workers or --workers 0"
        )
    if number == errno.ENOSPC or re.search(r"shared memory|\(shm\)|No space left on device", said):
        return UserError(
            f"a data worker cannot hand over its batch, because {SHARED} is full{_size_of(SHARED)}; use --workers 0, "
            "or give the container more of it (docker run --shm-size=8g, or --ipc=host)"
        )
    return None


def _size_of(folder: str) -> str:
    """How large a file system is, for a message."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return ""
    return f" ({found.f_blocks * found.f_frsize / 1e6:.0f} MB)"


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


def _start_worker(sharing: str, places: "Places", _) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it is for the training process to answer them
    sys.excepthook = partial(_end_of_thread, places)
    multiprocessing.queues.Queue._on_queue_feeder_error = _deliver_failure
    torch.multiprocessing.set_sharing_strategy(sharing)
    torch.set_num_threads(1)


def _deliver_failure(queue: multiprocessing.queues.Queue, error: Exception, item) -> None:
    """Hands over why a batch cannot be handed over, in its place.

    Python only prints a traceback in the thread that hands batches over, and the training process would wait for ever.
    """
    if not isinstance(item, tuple):  # bytes, which the pipe did not take: the training process has ended
        os._exit(1)
    number, _ = item
    queue.put((number, _cannot_share(error) or UserError(f"a data worker cannot hand over its batch ({error})")))


def _end_of_thread(places: "Places", kind, error, trace) -> None:
    """Ends a worker whose thread for handing over descriptors has failed: Python's would try again for ever, and the
    training process wait for it. Nothing is said of a training process that has ended."""
    if issubclass(kind, ConnectionError | EOFError):
        return
    if isinstance(error, OSError) and _cannot_share(error):
        places.note_failure(error.errno)
        os._exit(1)
    sys.__excepthook__(kind, error, trace)


def _end_workers() -> None:
    """Kills data workers that are left when the process ends: it would wait for them, and they ignore signals."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class Places:
    """Which shard every data worker is reading, and why it cannot hand over, in memory that outlives the worker.

    table: int64 (workers, 2), the worker's process and the number of the shard; failures: int64 (workers,), the number
    of the OSError that ended the worker; -1 for none.
    """

    def __init__(self, workers: int, *data_sets: Shards):
        self.paths = [shard.path for shards in data_sets for shard in shards.shards]
        self.firsts = np.cumsum([0, *(len(shards.shards) for shards in data_sets)])
        self.table = torch.full((workers, 2), -1, dtype=torch.int64)
        self.failures = torch.full((workers,), -1, dtype=torch.int64)
        if workers:
            try:
                self.table.share_memory_()
                self.failures.share_memory_()
            except RuntimeError as error:
                raise _cannot_share(error) or error from None

    def note(self, shard: int, data_set: int = 0) -> None:
        """This worker has come to shard number `shard` of one of the data sets."""
        worker = get_worker_info()
        if worker:
            self.table[worker.id] = torch.tensor([os.getpid(), self.firsts[data_set] + shard])

    def note_failure(self, number: int) -> None:
        """This worker ends because of an OSError of this number."""
        worker = get_worker_info()
        if worker:
            self.failures[worker.id] = number

    def failure(self) -> UserError | None:
        """Why a worker has ended, where it has noted that."""
        noted = [number for number in self.failures.tolist() if number > 0]
        return _cannot_share(OSError(noted[0], "")) if noted else None

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
        return cls.of(error)

    @classmethod
    def of(cls, error: BaseException) -> "_Death | None":
        """The death that torch has noticed."""
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
        raise places.failure() or UserError(
            f"a data worker {f'was killed ({death.signal})' if death.signal else 'died'} "
            f"{f'while reading {shards}' if shards else 'before it read anything'}; was the file cut short, or is "
            f"memory short{f', that in {SHARED} for one' if death.signal == 'Bus error' else ''} (fewer --workers)? "
            "--resume of a training run goes on from its last checkpoint"
        ) from None
