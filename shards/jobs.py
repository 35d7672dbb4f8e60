"""Work divided over processes, with one progress bar and clean ends for errors and Ctrl-C."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading

from tqdm import tqdm

from shards.errors import UserError

LARGEST_ARRAY = 1 << 24  # bytes of an array of one image, about

_counter = None


def begin_worker(counter=None) -> None:
    """What a working process does first: it leaves interrupts to its parent, and ends with it."""
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for torch, where a task imports it: this is one process of several
    # glibc takes an array of 300 kB from the system and gives it back, page by page, until a larger one was freed once.
    bytes(LARGEST_ARRAY)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is killed, which can tell nobody."""
    multiprocessing.parent_process().join()
    os._exit(1)


def advance(amount: int = 1) -> None:
    """Called by a task to move the progress bar."""
    with _counter.get_lock():
        _counter.value += amount


@contextlib.contextmanager
def _naming_semaphores():
    """A block in which an error of making semaphores is a UserError that names their place: it names no file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"/dev/shm: working processes cannot share memory there ({error.strerror}); make room, or give the "
            "container more of it (docker run --shm-size=1g)"
        ) from None


@contextlib.contextmanager
def worker_pool(processes: int, counter=None):
    """A pool of processes that leave an interrupt to the one that started them; a lost one is a UserError."""
    context = multiprocessing.get_context("spawn")
    with _naming_semaphores():
        pool = concurrent.futures.ProcessPoolExecutor(
            max_workers=processes, mp_context=context, initializer=begin_worker, initargs=(counter,)
        )
    try:
        yield pool
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError(
            "a working process was killed (out of memory?); run again to go on, or use fewer --processes"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_tasks(function, tasks: list, processes: int, total: int | None, unit: str, done: int = 0):
    """Yields (index, function(task)) as the tasks finish, in `processes` processes (1: in one, all the same).

    total (None: not known) and done are in the unit that tasks report by `advance`. A UserError of a task ends the run
    and is raised here; what finished before it was yielded.
    """
    with _naming_semaphores():
        counter = multiprocessing.get_context("spawn").Value("q", done)
    scaled = unit == "B"
    bar = tqdm(total=total, initial=done, unit=unit if scaled else f" {unit}", unit_scale=scaled, mininterval=0.5)
    with worker_pool(max(1, min(processes, len(tasks))), counter) as pool, contextlib.closing(bar):
        waiting = {pool.submit(function, task): index for index, task in enumerate(tasks)}
        while waiting:
            finished, _ = concurrent.futures.wait(waiting, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED)
            bar.update(counter.value - bar.n)
            for future in finished:
                yield waiting.pop(future), future.result()
        bar.update(counter.value - bar.n)
