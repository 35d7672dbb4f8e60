"""Error messages of the Python interface, which name arguments where those of commands name flags."""

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
