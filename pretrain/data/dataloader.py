"""Data workers: processes that prefetch batches, and the error messages for workers that die or cannot send a batch."""

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

from shards.common.errors import UserError
from shards.common.process_pool import interrupts_blocked
from shards.storage.dataset import Dataset as Shards

PATIENCE = 1.0  # maximum seconds between the end of a worker's connection and the end of its process
AHEAD = 4  # steps to prefetch, and minimum number of batches that each worker prefetches
TENSORS = 32  # maximum number of tensors in a batch; each takes a file descriptor while it is sent
SHARED = "/dev/shm"
OTHERS = 200  # file descriptors of a process for everything else: pipes, memory maps of shards, libraries


class Loader:
    """A DataLoader whose workers' failures are raised as UserError.

    Args:
        parts: batches per step.
        lasting: keep the workers between passes.
    """

    def __init__(
        self,
        dataset,
        workers: int,
        status: "WorkerStatus",
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
            dataset if isinstance(dataset, IterableDataset) else _ReturnedErrors(dataset),
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            persistent_workers=lasting and workers > 0,
            pin_memory=pin,
            worker_init_fn=partial(_start_worker, sharing, status),
            generator=torch.Generator(),  # leaves the state of the global generator unchanged
        )

    def __iter__(self) -> Iterator:
        """One pass over the sampler. A UserError that the dataset raises or returns is raised here."""
        try:
            with interrupts_blocked():  # the training process handles them
                batches = iter(self.loader)
            while True:
                yield _raised(next(batches))
        except StopIteration:
            return
        except (OSError, RuntimeError) as error:  # also from the queues, whose semaphores are files in SHARED
            failure = _cannot_share(error) if self.loader.num_workers and _Death.of(error) is None else None
            if failure is None:
                raise
            raise failure from None


def loading(dataset, workers: int, status: "WorkerStatus", parts: int = 1, pin: bool = False, sampler=None) -> Iterator:
    """One pass of a Loader."""
    return iter(Loader(dataset, workers, status, parts, pin, sampler))


def _choose_sharing(descriptors: int) -> str:
    """Sets torch's tensor sharing strategy in this process and returns it for the workers.

    With file descriptors, no files are left however the processes end. Named files in /dev/shm need no descriptors, but
    remain if all processes are killed at once. Descriptors are preferred if the limit of the process is high enough.

    Args:
        descriptors: the number of file descriptors that may be needed.
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
    """The message for an error caused by too little shared memory or too few file descriptors; None for others."""
    message, number = str(error), getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in message or "of ancdata" in message:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return UserError(
            f"too many open files for the data workers (the limit of this process is {limit}); raise the limit "
            "(ulimit -n), or use fewer --workers or --workers 0"
        )
    if number == errno.ENOSPC or re.search(r"shared memory|\(shm\)|No space left on device", message):
        return UserError(
            f"a data worker cannot send its batch, because {SHARED} is full{_size_of(SHARED)}; use --workers 0, "
            "or give the container more shared memory (docker run --shm-size=8g, or --ipc=host)"
        )
    return None


def _size_of(folder: str) -> str:
    """The size of a file system, for a message."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return ""
    return f" ({found.f_blocks * found.f_frsize / 1e6:.0f} MB)"


class _ReturnedErrors(Dataset):
    """Wraps a dataset to return the UserErrors that it raises, because torch would wrap them in a traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, request):
        try:
            return self.dataset[request]
        except UserError as error:
            return error


def _raised(item):
    if isinstance(item, UserError):
        raise item
    return item


def _start_worker(sharing: str, status: "WorkerStatus", _) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the training process handles them
    sys.excepthook = partial(_end_of_thread, status)
    multiprocessing.queues.Queue._on_queue_feeder_error = _deliver_failure
    torch.multiprocessing.set_sharing_strategy(sharing)
    torch.set_num_threads(1)


def _deliver_failure(queue: multiprocessing.queues.Queue, error: Exception, item) -> None:
    """Sends the error in place of a batch that cannot be sent.

    Python only prints a traceback in the queue's feeder thread, and the training process would wait forever.
    """
    if not isinstance(item, tuple):  # bytes that could not be written: the training process has ended
        os._exit(1)
    number, _ = item
    queue.put((number, _cannot_share(error) or UserError(f"a data worker cannot send its batch ({error})")))


def _end_of_thread(status: "WorkerStatus", kind, error, trace) -> None:
    """Ends a worker whose thread for sending file descriptors has failed.

    Python's thread would retry forever, and the training process would wait. Nothing is printed if the training process
    has ended.
    """
    if issubclass(kind, ConnectionError | EOFError):
        return
    if isinstance(error, OSError) and _cannot_share(error):
        status.note_failure(error.errno)
        os._exit(1)
    sys.__excepthook__(kind, error, trace)


def _end_workers() -> None:
    """Kills remaining data workers at exit; they ignore signals, and the process would wait for them."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class WorkerStatus:
    """The shard that every data worker is reading, and the error that ended it, in shared memory.

    Attributes:
        table: int64 (workers, 2), process id and shard number of each worker; -1 for none.
        failures: int64 (workers,), errno of the OSError that ended the worker; -1 for none.
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
        """Records that this worker starts reading shard number `shard` of a data set."""
        worker = get_worker_info()
        if worker:
            self.table[worker.id] = torch.tensor([os.getpid(), self.firsts[data_set] + shard])

    def note_failure(self, number: int) -> None:
        """Records that this worker ends because of an OSError with this errno."""
        worker = get_worker_info()
        if worker:
            self.failures[worker.id] = number

    def failure(self) -> UserError | None:
        """The recorded error of a worker that has ended, or None."""
        noted = [number for number in self.failures.tolist() if number > 0]
        return _cannot_share(OSError(noted[0], "")) if noted else None

    def dead(self) -> set[int]:
        """Process ids of workers that have ended after reading; waits up to PATIENCE for one to end."""
        until, read = time.monotonic() + PATIENCE, {pid for pid, _ in self.table.tolist() if pid > 0}
        while not (ended := read - {child.pid for child in multiprocessing.active_children()}):
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        return ended

    def read_by(self, pids: set[int]) -> list[str]:
        """The paths of the shards that these workers were reading."""
        return sorted({self.paths[shard] for pid, shard in self.table.tolist() if pid in pids and shard >= 0})


@dataclass(frozen=True)
class _Death:
    """Process ids of workers that died, and the name of the signal that killed them, if known."""

    pids: set[int]
    signal: str | None = None

    @classmethod
    def behind(cls, error: BaseException, status: WorkerStatus) -> "_Death | None":
        """The death of a worker that caused an error; None for another cause."""
        if isinstance(error, ConnectionError | EOFError):  # torch may not have received SIGCHLD yet
            try:
                pids = status.dead()
            except RuntimeError as noticed:
                return cls.behind(noticed, status)
            return cls(pids) if pids else None
        return cls.of(error)

    @classmethod
    def of(cls, error: BaseException) -> "_Death | None":
        """The death of a worker that torch reports in an error; None for other errors."""
        if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
            return None
        pids = re.search(r"pid(?:\(s\))? ([\d, ]+)", str(error))  # "(pid 7)", or "(pid(s) 7, 8)"
        killed = re.search(r"killed by signal: ([^.]+)", str(error))
        return cls(set(map(int, re.findall(r"\d+", pids[1]))) if pids else set(), killed and killed[1].strip())


@contextlib.contextmanager
def check_workers(status: WorkerStatus):
    """Context manager that ends the data workers at exit, and raises UserError, with the shard, if one has died.

    torch may raise its error about a dead worker anywhere in the block; if a batch is being received from the worker, a
    connection error comes first.
    """
    try:
        yield
    except BaseException as error:
        death = _Death.behind(error, status)
        # The frames of the error would keep the loader and its workers alive until the interpreter waits for them.
        traceback.clear_frames(error.__traceback__)
        if death is None:
            raise
        shards = ", ".join(status.read_by(death.pids))
        raise status.failure() or UserError(
            f"a data worker {f'was killed ({death.signal})' if death.signal else 'died'} "
            f"{f'while reading {shards}' if shards else 'before it read anything'}; the file may be truncated, or "
            f"memory{f' (for example {SHARED})' if death.signal == 'Bus error' else ''} may be exhausted: use fewer "
            "--workers; --resume continues a training run from its last checkpoint"
        ) from None
