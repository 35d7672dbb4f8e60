"""Helpers for reading untrusted files: error messages for exceptions of libraries, memory limits, JSON and numbers."""

import contextlib
import errno
import gzip
import json
import math
import os
import re
import reprlib
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from shards.common.errors import UserError

AGAIN = "fetch or make it again"
EXPANSION = 100  # a compressed file may expand to EXPANSION times its size plus ALLOWANCE; text expands 5 to 20 times
ALLOWANCE = 1 << 26  # bytes
LONGEST_LINE = 1 << 28  # bytes; a line of region features has a few million
LARGEST = 2**63  # limit of the absolute values of numbers
LARGEST_SIDE = 1_000_000  # pixels

_LONE = re.compile(r"\\u[dD][89a-fA-F]")  # a surrogate in JSON


class _Short(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlist, self.maxdict, self.maxlong = 2, 60, 60, 4, 4, 60

    def repr_int(self, value, level):
        return super().repr_int(value, level) if value.bit_length() < 10_000 else "a number of thousands of digits"


def shown(value) -> str:
    """The repr of a value for a message, shortened if it is long or deeply nested."""
    return _Short().repr(value).encode("utf-8", "backslashreplace").decode()


def reason_of(error: BaseException) -> str:
    """A short description of an exception of a library."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it needs more memory than is available"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "sys.set_int_max_str_digits" in str(error):
        return "a number has thousands of digits"
    lines = str(error).splitlines()
    message = lines[0][:200] if lines else ""
    if not message:
        return type(error).__name__
    needs_type = isinstance(error, LookupError | TypeError | AttributeError)  # the message of KeyError('x') is just 'x'
    return f"{type(error).__name__}: {message}" if needs_type else message


@contextlib.contextmanager
def reading(where="", hint: str = AGAIN, error: type[Exception] = UserError):
    """Context manager that turns exceptions of libraries that read a file into `error` with a one-sentence message.

    Libraries raise almost any exception for damaged files. UserError, FileNotFoundError and `error` are not changed.

    Args:
        where: file, line or key, the prefix of the message.
        hint: what to do.
    """
    try:
        yield
    except (UserError, FileNotFoundError, error):
        raise
    except Exception as raised:
        sentence = f"cannot be read ({reason_of(raised)})" + (f"; {hint}" if hint else "")
        raise error(f"{where}: {sentence}" if where else sentence) from None


def _refuse_constant(name: str):
    raise ValueError(f"it contains {name} instead of a number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def parse_json(text: str | bytes, finite: bool = True):
    """Parses JSON; raises ValueError with a short description.

    Args:
        finite: reject NaN and Infinity, which Python writes but which are not valid JSON, and numbers such as 1e999,
            which Python reads as infinity.
    """
    try:
        hooks = {"parse_constant": _refuse_constant, "parse_float": _finite} if finite else {}
        value = json.loads(text, **hooks)
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "replace")
        if _LONE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it contains a lone surrogate") from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise ValueError(reason_of(error)) from None
    return value


def check_fields(value, kind, where):
    """Returns a value after checking that it has the fields of `kind`, a msgspec type; other fields are allowed.

    Raises:
        UserError: a field is missing or has another type. With None as `kind`, nothing is checked.
    """
    if kind is not None:
        try:
            msgspec.convert(value, kind)
            _check_numbers(value)
        except (msgspec.ValidationError, ValueError, RecursionError) as error:
            raise UserError(f"{where}: has invalid content ({reason_of(error)}); {AGAIN}") from None
    return value


def _check_numbers(value) -> None:
    """Raises ValueError if a parsed JSON value contains an integer of more than 64 bits."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, int) and not -LARGEST <= item < LARGEST:
            raise ValueError(f"{shown(item)} has more than 64 bits")
        if isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item


def is_number(value, low: float = -LARGEST, high: float = LARGEST) -> bool:
    """Whether a value is a number between `low` and `high`; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def check_pixels(boxes: np.ndarray, what: str, form: str) -> None:
    """Raises UserError if all numbers of the boxes (n, 4) are at most 1, as those relative to the image size are.

    Args:
        what: the file and all its boxes, the first words of the message.
        form: what the boxes should be.
    """
    if boxes.size and boxes.max() <= 1:
        raise UserError(f"{what} are between 0 and 1; they should be {form}")


def whole_number(value, low: int = -LARGEST, high: int = LARGEST) -> int:
    """Converts a number, a string or an array with one element to an integer; ValueError if that is not possible."""
    try:
        number = int(value)
    except (TypeError, OverflowError, ValueError):
        raise ValueError(f"{shown(value)} is not an integer") from None
    if not low <= number <= high:
        raise ValueError(f"{shown(number)} is not between {low} and {high}")
    return number


def most_bytes(size: int) -> int:
    """The maximum uncompressed size of a compressed file of `size` bytes."""
    return EXPANSION * size + ALLOWANCE


def refuse_special_file(path, where: str = "") -> None:
    """Raises UserError for pipes, sockets and devices, because reading them may block. where: prefix of the message."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # the file does not exist, or the name is invalid
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a socket or a device"
        raise UserError(f"{where}{path}: is {kind}; give a file")


def byte_lines(path) -> Iterator[bytes]:
    """Yields the lines of a file; a .gz is decompressed in pieces, up to a limit.

    Raises:
        UserError: a pipe or a device.
        OSError, EOFError, zlib.error, ValueError: see `reading`.
    """
    refuse_special_file(path)
    packed = str(path).endswith(".gz")
    left = most_bytes(os.path.getsize(path)) if packed else None
    with gzip.open(path) if packed else open(path, "rb") as file:
        while line := file.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise ValueError(f"a line is longer than {LONGEST_LINE >> 20} MB")
            if left is not None and (left := left - len(line)) < 0:
                raise ValueError(f"it expands to more than {EXPANSION} times its size")
            yield line


def check_packed(path) -> None:
    """Raises ValueError for a zip whose entries would expand beyond the limit."""
    with zipfile.ZipFile(path) as file:
        total = sum(entry.file_size for entry in file.infolist())
    if total > most_bytes(os.path.getsize(path)):
        raise ValueError(f"it expands to {total >> 20} MB, more than {EXPANSION} times its size")


def read_arrays(path) -> dict[str, np.ndarray]:
    """Reads a .npz without pickles; UserError for a damaged file, FileNotFoundError for a missing one."""
    refuse_special_file(path)
    with reading(path):
        if not Path(path).is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        check_packed(path)
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
