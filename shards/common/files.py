"""Path patterns, searches in folders, and atomic writing of files."""

import contextlib
import errno
import fcntl
import glob
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import braceexpand

from shards.common.errors import UserError
from shards.common.untrusted_input import check_fields, parse_json, reason_of, refuse_special_file

_REMOTE = re.compile(r"^(pipe:|[a-z][a-z0-9+.-]*://)")


def is_remote(url: str) -> bool:
    """Whether webdataset opens this as something other than a local path: `pipe:...`, `http://...`, `gs://...`."""
    return bool(_REMOTE.match(url)) and not url.startswith("file://")


def split_paths(value: str) -> list[str]:
    """The paths in a comma-separated list; the name of an existing file or folder may contain commas itself."""
    return [value] if os.path.exists(value) else value.split(",")


@contextlib.contextmanager
def whole_file(path, mode: str = "wb", **options):
    """Writes a file atomically: opens a temporary file next to `path` and renames it at the end of the block.

    If the block raises, the temporary file is removed. The target of a symbolic link is replaced, not the link. Pipes
    and devices (/dev/null) are written to directly, because a rename would replace them by a file. A temporary file
    left by a killed process is overwritten.

    Raises:
        UserError: the disk is full or cannot be written (see naming).
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        with naming(path), open(path, mode, **options) as file:
            yield file
        return
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = None
    try:
        with naming(path), _open_temporary(path, mode, options) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
            temporary = None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path) -> Iterator[None]:
    """Context manager that turns errors of a full or unwritable disk into a UserError with the path.

    Python's exception has no path, and libraries raise exceptions of their own.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _why_not_written(error)
        if reason is None:
            raise
        raise UserError(f"{path}: cannot be written ({reason})") from None


_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def _why_not_written(error: BaseException) -> str | None:
    """The system's message of a write error in the chain of causes; None for other errors and those with a path."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OF_WRITING:
            return None if cause.filename else cause.strerror
        cause = cause.__context__
    # The message of safetensors and tokenizers, whose errors have no errno, contains that of the system.
    return next((reason for reason in map(os.strerror, _OF_WRITING) if reason in str(error)), None)


def _open_temporary(path: Path, mode: str, options: dict):
    """Opens the temporary file of `path` for writing.

    The name is always the same, so that a file left by a killed process is reused. The file is locked; if another
    process holds the lock, a name with the process id is used.
    """

    def own(name, flags: int) -> int:
        handle = os.open(name, flags & ~os.O_TRUNC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), os.stat(name)):
                raise BlockingIOError  # another process renamed it before this one got the lock
            os.ftruncate(handle, 0)
        except OSError:
            os.close(handle)
            raise
        return handle

    try:
        return open(path.with_name(f".{path.name}.part"), mode, opener=own, **options)
    except OSError:  # another process has the lock, or the file system does not support locks
        pass
    try:
        return open(path.with_name(f".{path.name}.{os.getpid()}.part"), mode, **options)
    except OSError as error:
        error.filename = str(path)  # for the message: the user knows the file, not its temporary name
        raise


def is_stray(path: str) -> bool:
    """Whether a file is an artifact of a system or an editor: ._1.jpg, .ipynb_checkpoints/1.jpg, __MACOSX/1.jpg.

    path: relative to the folder or tar that is searched.
    """
    parts = (part for part in path.split("/") if part not in (".", ".."))
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def files_below(folder, wanted: Callable[[str], bool]) -> list[str]:
    """The files in a folder and its subfolders for which `wanted(name)` is true, in alphabetical order.

    Symbolic links to folders are followed, and each folder is searched once, also with cyclic links. Stray files and
    folders (is_stray) are skipped.
    """
    return sorted(_files_below(folder, wanted))


def _files_below(folder, wanted: Callable[[str], bool]) -> Iterator[str]:
    for base, names, _ in folders_below(folder):
        yield from (os.path.join(base, name) for name in names if wanted(name))


def folders_below(folder) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields (folder, file names, names of stray files and folders) of a folder and its subfolders.

    Links and stray folders are treated as by files_below; the names are not sorted.
    """

    def refuse(error: OSError):
        raise UserError(f"{printable(error.filename)}: cannot be read ({error.strerror})")

    root = os.stat(folder)
    seen = {(root.st_dev, root.st_ino)}
    for base, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        stray = [name for name in itertools.chain(folders, names) if is_stray(name)]
        folders[:] = sorted(name for name in folders if not is_stray(name))
        for name in folders[:]:
            known = os.stat(os.path.join(base, name))
            if (known.st_dev, known.st_ino) in seen:
                folders.remove(name)
            seen.add((known.st_dev, known.st_ino))
        yield base, [name for name in names if not is_stray(name)], stray


def is_utf8(name: str) -> bool:
    """Whether a file name is UTF-8; Python represents other bytes by surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def printable(name) -> str:
    """A file name with bytes that are not UTF-8 as \\xNN, so that it can be printed and stored."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def write_json(path, value) -> None:
    with whole_file(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def read_json(path, kind=None, finite: bool = True):
    """Reads a JSON file.

    Args:
        kind: msgspec type with the required fields of the value.
        finite: see parse_json.

    Raises:
        UserError: the file does not exist, is not valid JSON, or lacks a field.
    """
    refuse_special_file(path)
    try:
        value = parse_json(Path(path).read_bytes(), finite)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # includes UnicodeDecodeError
        raise UserError(f"{path}: is not valid JSON ({reason_of(error)})") from None
    return check_fields(value, kind, path)


def expand(pattern: str, suffix: str = ".tar") -> list[str]:
    """Expands a path, a glob, a brace pattern or a folder (to its files with `suffix`) to a list of files.

    In URLs only braces are expanded, and existence is not checked.

    Raises:
        UserError: nothing is found, or a pipe or device.
    """
    if not pattern:
        raise UserError("the path is empty; use a path, a folder or a pattern such as a-{0..3}.tar")
    try:  # an existing folder may have braces in its name
        parts = [pattern] if os.path.exists(pattern) else list(braceexpand.braceexpand(pattern))
    except braceexpand.UnbalancedBracesError:
        raise UserError(f"{pattern}: unbalanced braces; use for example name-{{00000..00003}}.tar") from None
    names = []
    for part in parts:
        if is_remote(part):
            names.append(part)
        elif os.path.isdir(part):
            found = sorted(str(path) for path in Path(part).glob(f"*{suffix}") if not path.name.startswith("."))
            if not found:
                raise UserError(f"{part}: the folder contains no {suffix} files")
            names += found
        elif os.path.exists(part):
            names.append(part)
        else:
            found = sorted(glob.glob(part))
            if not found:
                raise UserError(f"{part}: no such file or folder")
            names += found
    for name in names:
        refuse_special_file(name)
    return names
