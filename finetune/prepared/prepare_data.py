"""Prepared data: what the official files of a data folder contain, read once and kept in files (prepared_file.py).

The files are in DATA/prepared, or in the user's cache directory if the data folder cannot be written. Processes that
find a file missing or out of date make it one at a time, under the lock of the folder.
"""

import contextlib
import gc
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import msgspec
import numpy as np

from finetune.annotations.official_files import existing, find_file
from finetune.annotations.source_files import SourceFiles, reading_once, recording
from finetune.prepared.packed_examples import PackedExamples
from finetune.prepared.prepared_file import MappedArrays, is_current, load_arrays, save_arrays
from finetune.task_types.base import Task
from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.files import files_below
from shards.common.folder_lock import FolderLock
from shards.common.process_pool import advance, run_tasks

FOLDER = "prepared"
EXAMPLES, IMAGES, ANSWERS = "examples", "images", "answers"
WORTH_PROCESSES = 1 << 26  # bytes of official files; fewer are read before other processes have started
KEPT = 8  # files of a kind of derived arrays, see derived_arrays
READERS = ("finetune/annotations", "finetune/metrics", "finetune/prepared", "shards/common", "shards/parsing")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Wanted:
    """Prepared data that a command needs.

    content: EXAMPLES: the examples of a split, PackedExamples; IMAGES: their number by images, as Task.image_counts
    returns it; ANSWERS: number of training questions by right answer, a Counter; its split is "training".
    """

    task: Task
    content: str
    split: str

    def file(self, place: Path) -> Path:
        return place / f"{self.task.name}-{self.split}.{self.content}"

    def key(self) -> dict[str, str]:
        return {"content": self.content, "split": self.split, "task": repr(self.task), "code": code_of(self.task)}

    def read(self, folder: Path) -> Arrays:
        """The content as arrays, from the official files."""
        if self.content == EXAMPLES:
            packed = PackedExamples.of(self.task.read(folder, self.split), f"{folder}, {self.split}")
            return packed.arrays
        if self.content == IMAGES:
            counts = self.task.image_counts(folder, self.split)
        else:
            counts = Counter(self.task.right_answers(folder))
        keys = np.frombuffer(msgspec.msgpack.encode(list(counts)), np.uint8)
        return {"keys": keys, "counts": np.array(list(counts.values()), np.int64)}

    def value(self, arrays: Arrays, mapped: MappedArrays | None = None) -> PackedExamples | Counter:
        """The content from its arrays. mapped: their file, if any."""
        if self.content == EXAMPLES:
            return PackedExamples(arrays, mapped=mapped)
        kind = list[tuple[str, ...]] if self.content == IMAGES else list[str]
        keys = msgspec.msgpack.decode(arrays["keys"], type=kind)
        return Counter(dict(zip(keys, arrays["counts"].tolist(), strict=True)))


def for_training(task: Task) -> list[Wanted]:
    """The training and validation examples of a task, and the answers of its own vocabulary, if any."""
    shared = getattr(task, "answers_of", "")
    answers = [Wanted(task, ANSWERS, "training")] if task.head.has_vocabulary and not shared else []
    return [Wanted(task, EXAMPLES, split) for split in task.splits[:2]] + answers


@cache
def code_of(task: Task) -> str:
    """SHA-256 of the code that reads a task's files: prepared data of another version is made again."""
    root = Path(__file__).parents[2]
    modules = (sys.modules[base.__module__] for base in type(task).__mro__)
    paths = {Path(path) for module in modules if (path := getattr(module, "__file__", None))}
    for folder in READERS:
        paths |= set(map(Path, files_below(root / folder, lambda name: name.endswith(".py"))))
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def open_prepared(data, wanted: Wanted) -> PackedExamples | Counter:
    """The value of prepared data, which is made first if it does not exist or its sources have changed.

    data: data folder of all tasks.
    """
    found = _load_or_make(data, partial(_load, data, wanted), partial(_make, data, wanted))
    return wanted.value(found.arrays, found) if isinstance(found, MappedArrays) else wanted.value(found)


def open_examples(data, task: Task, split: str) -> PackedExamples:
    """The examples of a split, see open_prepared. Raises UserError for an unknown or empty split."""
    task.check_split(split)
    return open_prepared(data, Wanted(task, EXAMPLES, split))


def derived_arrays(data, name: str, key: dict[str, str], compute: Callable[[], Arrays]) -> Arrays:
    """Arrays that are computed once and kept with the prepared data.

    Of the files with the same suffix, only the KEPT that were used last are kept: every change of the training images
    (another split, decontamination, --missing skip) makes another one.

    Args:
        data: data folder of all tasks.
        name: file name.
        key: what the arrays depend on; another key replaces the file.
        compute: computes them.
    """

    def loaded() -> MappedArrays | None:
        for place in places(data):
            if (mapped := load_arrays(place / name, key, Path(data))) is not None:
                with contextlib.suppress(OSError):  # a folder of others
                    os.utime(place / name)
                return mapped
        return None

    def make(place: Path | None) -> Arrays:
        arrays = compute()
        if place is not None:
            save_arrays(place / name, key, Path(data), SourceFiles(), arrays)
            files = sorted(place.glob(f"*{Path(name).suffix}"), key=lambda path: path.stat().st_mtime_ns)
            for path in files[:-KEPT]:
                path.unlink()
        return arrays

    found = _load_or_make(data, loaded, make)
    return found.arrays if isinstance(found, MappedArrays) else found


def _load_or_make(
    data, loaded: Callable[[], MappedArrays | None], make: Callable[[Path | None], Arrays]
) -> MappedArrays | Arrays:
    """The arrays of a file, or where no file can be written the arrays alone."""
    if (found := loaded()) is not None:
        return found
    with _locked_place(data) as place:
        if (found := loaded()) is not None:  # another process has made it while this one waited
            return found
        arrays = make(place)
        return (loaded() if place else None) or arrays


def prepare(data, wanted: Sequence[Wanted], processes: int, log=print) -> None:
    """Makes the prepared data that does not exist or is out of date, of several tasks at a time.

    Errors in the official files are not raised here, but by `open_prepared`. If the files are small, nothing is done
    here.
    """

    def missing() -> list[Wanted]:
        return [one for one in wanted if not any(is_current(*of) for of in _files(data, one))]

    needed = missing()
    if not needed or _source_bytes(data, needed) < WORTH_PROCESSES:
        return
    with _locked_place(data) as place:
        by_task: dict[str, list[Wanted]] = {}
        for one in missing() if place else ():
            by_task.setdefault(one.task.name, []).append(one)
        if not by_task:  # no folder can be written, or another process has made all while this one waited
            return
        groups = sorted(by_task.values(), key=lambda group: -_source_bytes(data, group))
        jobs, parts = [(data, group, place) for group in groups], sum(map(len, groups))
        log(f"reading the annotations of {counted(len(groups), 'task')} into {place}{os.sep}, once")
        for number, seconds in run_tasks(_make_all, jobs, processes, parts, "parts"):
            names = ", ".join(f"{one.split} {one.content}" for one in groups[number])
            log(f"{groups[number][0].task.name}: {names} in {seconds:.0f} s")


def _make_all(job: tuple) -> float:
    """Makes several files of one task, in a worker process; returns the seconds that it took."""
    (data, group, place), began = job, time.perf_counter()
    gc.disable()  # it would search millions of objects without cycles
    with reading_once():
        for wanted in group:
            with contextlib.suppress(UserError):
                _make(data, wanted, place)
            advance()
    return time.perf_counter() - began


def _make(data, wanted: Wanted, place: Path | None) -> Arrays:
    """Reads the official files and writes the arrays, if there is a place for them."""
    folder = wanted.task.folder(data)
    with recording() as used:
        arrays = wanted.read(folder)
    if place is not None and used.read:
        save_arrays(wanted.file(place), wanted.key(), folder, used, arrays)
    return arrays


def _load(data, wanted: Wanted) -> MappedArrays | None:
    return next((mapped for of in _files(data, wanted) if (mapped := load_arrays(*of)) is not None), None)


def _files(data, wanted: Wanted) -> Iterator[tuple[Path, dict[str, str], Path]]:
    """The arguments of `load_arrays` for each file that may contain the data."""
    return ((wanted.file(place), wanted.key(), wanted.task.folder(data)) for place in places(data))


def places(data) -> tuple[Path, Path]:
    """The folders that may contain the prepared data of a data folder."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:16]
    return Path(data) / FOLDER, caches / "twelve-in-one" / FOLDER / name


@contextlib.contextmanager
def _locked_place(data) -> Iterator[Path | None]:
    """The first of the folders that can be written, locked; None if none can."""
    for place in places(data):
        lock = FolderLock(place, "finetune.prepare")
        try:
            lock.acquire(wait=True)
        except OSError:
            continue
        try:
            yield place
        finally:
            lock.release()
        return
    yield None


def _source_bytes(data, wanted: Sequence[Wanted]) -> int:
    """The size of the official files of some tasks."""
    total = 0
    for task in {one.task.name: one.task for one in wanted}.values():
        for name in task.files:
            with contextlib.suppress(UserError, OSError):
                total += sum(path.stat().st_size for path in existing(find_file(task.folder(data), name)))
    return total
