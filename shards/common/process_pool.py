"""Tasks in worker processes, with a progress bar and a clean shutdown for errors and Ctrl-C."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading

from shards.common.errors import UserError
from shards.common.progress_bar import progress_bar

LARGEST_ARRAY = 1 << 24  # bytes, about the size of the largest array of one image
START_METHOD = "spawn"  # a forked process may wait for a lock that a thread of its parent held

_counter = None


def begin_worker(counter=None) -> None:
    """Initialises a worker process: it ignores interrupts, which the parent handles, and ends with its parent."""
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # if a task imports torch: one thread per process
    # Freeing a large array raises glibc's mmap threshold, so that smaller ones are reused instead of mapped each time.
    bytes(LARGEST_ARRAY)


def _end_with_parent() -> None:
    """Ends this process when its parent has ended, also when it was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def advance(amount: int = 1) -> None:
    """Advances the progress bar; called by a task."""
    with _counter.get_lock():
        _counter.value += amount


@contextlib.contextmanager
def interrupts_blocked():
    """Context manager for starting processes that never receive interrupts, not even during their imports.

    A new process inherits the blocked signals. This one receives an interrupt at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WorkerPool(concurrent.futures.ProcessPoolExecutor):
    """A pool whose processes, which are started when tasks are submitted, never receive interrupts."""

    def submit(self, *args, **options):
        with interrupts_blocked():
            return super().submit(*args, **options)


@contextlib.contextmanager
def _naming_semaphores():
    """Context manager that turns errors of creating semaphores, which have no path, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"/dev/shm: worker processes cannot use shared memory ({error.strerror}); free some, or give the "
            "container more (docker run --shm-size=1g)"
        ) from None


@contextlib.contextmanager
def worker_pool(processes: int, counter=None):
    """A pool of processes that ignore interrupts; raises UserError if a process is killed."""
    context = multiprocessing.get_context(START_METHOD)
    with _naming_semaphores():
        pool = WorkerPool(max_workers=processes, mp_context=context, initializer=begin_worker, initargs=(counter,))
    try:
        yield pool
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError(
            "a worker process was killed (out of memory?); use fewer --processes, or run again to continue"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_tasks(function, tasks: list, processes: int, total: int | None, unit: str, done: int = 0):
    """Yields (index, function(task)) in the order of completion, computed in worker processes.

    A UserError of a task is raised here and ends the others.

    Args:
        processes: number of worker processes, at least one.
        total: end of the progress bar in the unit that tasks report by `advance`; None if unknown.
        done: initial value of the progress bar.
    """
    with _naming_semaphores():
        counter = multiprocessing.get_context(START_METHOD).Value("q", done)
    scaled = unit == "B"
    bar = progress_bar(total=total, initial=done, unit=unit if scaled else f" {unit}", unit_scale=scaled)
    with worker_pool(max(1, min(processes, len(tasks))), counter) as pool, contextlib.closing(bar):
        waiting = {pool.submit(function, task): index for index, task in enumerate(tasks)}
        while waiting:
            finished, _ = concurrent.futures.wait(waiting, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED)
            bar.update(counter.value - bar.n)
            for future in finished:
                yield waiting.pop(future), future.result()
        bar.update(counter.value - bar.n)
