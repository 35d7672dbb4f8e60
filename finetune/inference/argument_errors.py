"""Error messages of the Python interface, which name arguments, and of commands that load a second run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from shards.common.errors import UserError

_FLAG = re.compile(r"(?<![\w-])--(\w+)")


@contextmanager
def naming_arguments() -> Iterator[None]:
    """Replaces names of flags (--boxes) in error messages by names of arguments (boxes)."""
    try:
        yield
    except UserError as error:
        raise UserError(_FLAG.sub(r"\1", str(error))) from None


@contextmanager
def naming_flag(flag: str) -> Iterator[None]:
    """Replaces --run in error messages by another flag, which names a second run."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"(?<![\w-])--run\b", flag, str(error))) from None
