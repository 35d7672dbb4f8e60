"""Paths as users type them, and files that are either whole or not there."""

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import braceexpand

from shards.errors import UserError
from shards.reading import check_fields, parse_json, reason_of

_REMOTE = re.compile(r"^(pipe:|[a-z][a-z0-9+.-]*://)")


def is_remote(url: str) -> bool:
    """True for whatever webdataset may open that is not a local path: `pipe:...`, `http://...`, `gs://...`."""
    return bool(_REMOTE.match(url)) and not url.startswith("file://")


@contextlib.contextmanager
def whole_file(path, mode: str = "wb", **options):
    """Opens a temporary file beside `path` and renames it when the block ends well.

    A reader sees the old file, or no file, or the whole new one. An error in the block leaves nothing. A link stays
    one, and what is no file, a pipe or /dev/null, is written to: a rename would put a file in its place. What a writer
    that was killed left under the temporary name is written over.

    Raises:
        UserError: the disk is full, or cannot be written (see naming).
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
    """A block that writes a file, in which an error of a disk that is full, or cannot be written, is a UserError that
    names the file. Python's names none, and libraries raise errors of their own for it."""
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
    """The system's reason that is behind an error of writing; None where it is another error, or names a file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OF_WRITING:
            return None if cause.filename else cause.strerror
        cause = cause.__context__
    full = os.strerror(errno.ENOSPC)  # as safetensors and tokenizers have it, in errors without a number
    return full if full in str(error) else None


def _open_temporary(path: Path, mode: str, options: dict):
    """Opens the temporary file of `path` for writing: always the same one, so that nothing of a killed writer is left.

    It is locked while it is written; where another process has it at the moment, this one has a name of its own.
    """

    def own(name, flags: int) -> int:
        handle = os.open(name, flags & ~os.O_TRUNC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), os.stat(name)):
                raise BlockingIOError  # it was renamed by another writer before this one had the lock
            os.ftruncate(handle, 0)
        except OSError:
            os.close(handle)
            raise
        return handle

    try:
        return open(path.with_name(f".{path.name}.part"), mode, opener=own, **options)
    except OSError:  # another writer has it, or the file system has no locks
        return open(path.with_name(f".{path.name}.{os.getpid()}.part"), mode, **options)


def refuse_special_file(path, where: str = "") -> None:
    """Refuses a named pipe, a socket or a device, reading which may wait for ever or never end. where: for messages."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # of no file, or of no name that one may have
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a socket or a device"
        raise UserError(f"{where}{path}: is {kind}; give a file")


def is_stray(path: str) -> bool:
    """Whether systems or editors left a file behind: ._1.jpg, .ipynb_checkpoints/1.jpg, __MACOSX/1.jpg.

    path: relative to the folder or tar that is searched.
    """
    parts = (part for part in path.split("/") if part not in (".", ".."))
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def files_below(folder, wanted: Callable[[str], bool]) -> list[str]:
    """The files in a folder and its subfolders whose names are wanted, in alphabetical order.

    Symbolic links to folders are followed. A folder that is reached twice (a cycle of links, two links to one folder)
    is searched once. Stray files and folders are not searched.
    """
    return sorted(_files_below(folder, wanted))


def _files_below(folder, wanted: Callable[[str], bool]) -> Iterator[str]:
    def refuse(error: OSError):
        raise UserError(f"{printable(error.filename)}: cannot be read ({error.strerror})")

    root = os.stat(folder)
    seen = {(root.st_dev, root.st_ino)}
    for base, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = sorted(name for name in folders if not is_stray(name))
        for name in folders[:]:
            known = os.stat(os.path.join(base, name))
            if (known.st_dev, known.st_ino) in seen:
                folders.remove(name)
            seen.add((known.st_dev, known.st_ino))
        yield from (os.path.join(base, name) for name in names if not is_stray(name) and wanted(name))


def is_utf8(name: str) -> bool:
    """Whether a file name is UTF-8; in others Python has half characters for the bytes that are not."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def printable(name) -> str:
    """A file name in which bytes that are not UTF-8 are written as \\xNN, so that it can be printed and stored."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def write_json(path, value) -> None:
    with whole_file(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def read_json(path, kind=None, finite: bool = True):
    """The value in a JSON file; a file that is missing or is not JSON is a UserError.

    kind: a type of msgspec with the fields that the value must have, of these types; finite: see parse_json.
    """
    refuse_special_file(path)
    try:
        value = parse_json(Path(path).read_bytes(), finite)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # UnicodeDecodeError among them
        raise UserError(f"{path}: is not valid JSON ({reason_of(error)})") from None
    return check_fields(value, kind, path)


def expand(pattern: str, suffix: str = ".tar") -> list[str]:
    """The files that a path, a glob, a brace pattern or a folder (of `suffix` files) names, in order.

    Remote addresses are expanded by braces alone and not looked at.
    """
    if not pattern:
        raise UserError("an empty path names no file; give a path, a folder or a pattern such as a-{0..3}.tar")
    try:
        parts = list(braceexpand.braceexpand(pattern))
    except braceexpand.UnbalancedBracesError:
        raise UserError(f"{pattern}: the braces do not match; write for instance name-{{00000..00003}}.tar") from None
    names = []
    for part in parts:
        if is_remote(part):
            names.append(part)
        elif os.path.isdir(part):
            found = sorted(str(path) for path in Path(part).glob(f"*{suffix}") if not path.name.startswith("."))
            if not found:
                raise UserError(f"{part}: the folder holds no {suffix} files")
            names += found
        elif os.path.exists(part):
            refuse_special_file(part)
            names.append(part)
        else:
            found = sorted(glob.glob(part))
            if not found:
                raise UserError(f"{part}: no such file or folder")
            names += found
    return names
