"""The files that a reader of annotations searches for and reads.

They are recorded, so that prepared examples are read again when one of them has changed. While a task's splits are
prepared, files that several splits share are read once.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class FileState(NamedTuple):
    """A file's size in bytes, and the times of its last modification and status change in nanoseconds."""

    size: int
    modified: int
    changed: int


@dataclass
class SourceFiles:
    """What a reader has used.

    searched: (folder, name) -> paths that the search found, possibly none; read: path -> state before it was read.
    """

    searched: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    read: dict[str, FileState] = field(default_factory=dict)

    def update(self, other: "SourceFiles") -> None:
        self.searched |= other.searched
        self.read |= other.read


_recorded: ContextVar[SourceFiles | None] = ContextVar("recorded", default=None)
_results: ContextVar[dict | None] = ContextVar("results", default=None)


@contextlib.contextmanager
def recording() -> Iterator[SourceFiles]:
    """Context manager that yields the files used in its block, for this thread."""
    outer, found = _recorded.get(), SourceFiles()
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)
        if outer is not None:
            outer.update(found)


def note_search(folder, name: str, found: list[Path]) -> None:
    """Records the result of a search."""
    if (recorded := _recorded.get()) is not None:
        recorded.searched[str(folder), name] = [str(path) for path in found]


def note_read(path) -> None:
    """Records a file that is about to be read; one that does not exist is reported by its reader."""
    if (recorded := _recorded.get()) is not None:
        with contextlib.suppress(OSError):
            recorded.read.setdefault(str(path), file_state(path))


def file_state(path) -> FileState:
    found = os.stat(path)
    return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(maxsize=64)
def _checksum(path: str, state: FileState) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path, state: FileState) -> str:
    """SHA-256 of a file in this state."""
    return _checksum(str(path), state)


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Context manager in which a function that is marked with `once` keeps its results."""
    token = _results.set({})
    try:
        yield
    finally:
        _results.reset(token)


def once(function: Callable[P, T]) -> Callable[P, T]:
    """Marks a reader whose result is kept during `reading_once`; callers must not change it."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        kept = _results.get()
        if kept is None:
            return function(*args, **kwargs)
        key = (function, args, *kwargs.items())
        if key not in kept:
            with recording() as sources:
                kept[key] = function(*args, **kwargs), sources
        value, sources = kept[key]
        if (recorded := _recorded.get()) is not None:
            recorded.update(sources)
        return value

    return wrapper
