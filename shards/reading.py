"""What all readers of files from elsewhere share: one sentence for whatever a library raises, limits of memory, JSON
and numbers.
"""

import contextlib
import gzip
import json
import os
import re
import reprlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from shards.errors import UserError

AGAIN = "fetch or make it again"
EXPANSION = 100  # a packed file may become this many times its size, and ALLOWANCE more; text becomes 5 to 20 times
ALLOWANCE = 1 << 26  # bytes
LONGEST_LINE = 1 << 28  # bytes; a line of region features has a few million
LARGEST = 2**63  # of the absolute values of numbers: everything that is counted or measured here is below it
LARGEST_SIDE = 1_000_000  # pixels of an image

_LONE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character beyond the first plane, in JSON


class _Short(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlist, self.maxdict, self.maxlong = 2, 60, 60, 4, 4, 60

    def repr_int(self, value, level):
        return super().repr_int(value, level) if value.bit_length() < 10_000 else "a number of thousands of digits"


def shown(value) -> str:
    """A value for a message: what is long or deep is shortened."""
    return _Short().repr(value).encode("utf-8", "backslashreplace").decode()


def reason_of(error: BaseException) -> str:
    """What went wrong, in a few words, of whatever a library has raised."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "sys.set_int_max_str_digits" in str(error):
        return "a number has thousands of digits"
    lines = str(error).splitlines()
    said = lines[0][:200] if lines else ""
    if not said:
        return type(error).__name__
    wordless = isinstance(error, LookupError | TypeError | AttributeError)  # KeyError('x') says x and nothing else
    return f"{type(error).__name__}: {said}" if wordless else said


@contextlib.contextmanager
def reading(where="", mend: str = AGAIN, error: type[Exception] = UserError):
    """A block in which libraries read a file: what they raise, which on a damaged file is almost anything, becomes an
    `error` of one sentence that names `where` and says what to do. Our own errors, and missing files, pass."""
    try:
        yield
    except (UserError, FileNotFoundError, error):
        raise
    except Exception as raised:
        sentence = f"cannot be read ({reason_of(raised)})" + (f"; {mend}" if mend else "")
        raise error(f"{where}: {sentence}" if where else sentence) from None


def _refuse_constant(name: str):
    raise ValueError(f"it has {name} in the place of a number")


def parse_json(text: str | bytes, finite: bool = True):
    """The value of a JSON text; a ValueError says what is wrong with it, in a few words.

    finite: refuse NaN and Infinity, which are no JSON, though Python writes them.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant if finite else None)
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "replace")
        if _LONE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it has half a character (a lone surrogate)") from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise ValueError(reason_of(error)) from None
    return value


def check_fields(value, kind, where):
    """The value itself, which must have the fields of `kind`, a type of msgspec, and may have others; else a UserError.
    Everything is right for None."""
    if kind is not None:
        try:
            msgspec.convert(value, kind)
            _check_numbers(value)
        except (msgspec.ValidationError, ValueError, RecursionError) as error:
            raise UserError(f"{where}: is not as it should be ({reason_of(error)}); {AGAIN}") from None
    return value


def _check_numbers(value) -> None:
    """Refuses, with a ValueError, whole numbers of more than 64 bits anywhere in the value of a JSON text."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, int) and not -LARGEST <= item < LARGEST:
            raise ValueError(f"{shown(item)} is a number of more than 64 bits")
        if isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item


def is_number(value, low: float = -LARGEST, high: float = LARGEST) -> bool:
    """Whether a value is a finite number between two others; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def whole_number(value, low: int = -LARGEST, high: int = LARGEST) -> int:
    """The whole number in a value, which may be a text or an array of one number; else a ValueError."""
    try:
        number = int(value)
    except (TypeError, OverflowError, ValueError):
        raise ValueError(f"{shown(value)} is no whole number") from None
    if not low <= number <= high:
        raise ValueError(f"{shown(number)} is not between {low} and {high}")
    return number


def most_bytes(size: int) -> int:
    """How large what a packed file of `size` bytes holds may be."""
    return EXPANSION * size + ALLOWANCE


def byte_lines(path) -> Iterator[bytes]:
    """The lines of a file, or of a .gz of one, which is unpacked in pieces up to a limit.

    Raises:
        OSError, EOFError, zlib.error, ValueError: see `reading`.
    """
    packed = str(path).endswith(".gz")
    left = most_bytes(os.path.getsize(path)) if packed else None
    with gzip.open(path) if packed else open(path, "rb") as file:
        while line := file.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise ValueError(f"a line is longer than {LONGEST_LINE >> 20} MB")
            if left is not None and (left := left - len(line)) < 0:
                raise ValueError(f"it unpacks to more than {EXPANSION} times its size")
            yield line


def check_packed(path) -> None:
    """Refuses a zip whose entries would unpack to more than is allowed; a ValueError."""
    with zipfile.ZipFile(path) as file:
        total = sum(entry.file_size for entry in file.infolist())
    if total > most_bytes(os.path.getsize(path)):
        raise ValueError(f"it unpacks to {total >> 20} MB, more than {EXPANSION} times its size")


def read_arrays(path) -> dict[str, np.ndarray]:
    """The arrays of a .npz, no pickles among them; a damaged one is a UserError, a missing one FileNotFoundError."""
    with reading(path):
        if not Path(path).is_file():
            raise FileNotFoundError(path)
        check_packed(path)
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
