"""Names of arguments of the Python interface, in error messages too, and errors of commands that load a second run."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune.config import ModelFlags
from shards.common.cli import current_flags
from shards.common.errors import UserError

_FLAG = re.compile(r"(?<![\w-])--(\w+)")


@contextmanager
def naming_arguments() -> Iterator[None]:
    """Replaces names of flags (--boxes) in error messages by names of arguments (boxes)."""
    try:
        yield
    except UserError as error:
        raise UserError(_FLAG.sub(r"\1", str(error))) from None


def current_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments that name flags of ModelFlags, by their current names; warns of former names."""

    def warn(former: str, current: str) -> None:
        text = f"{former} is deprecated and will be removed after version 1; use {current}"
        warnings.warn(text, FutureWarning, stacklevel=5)  # of the line that calls the class

    return current_flags(ModelFlags, options, warn)


@contextmanager
def naming_flag(flag: str) -> Iterator[None]:
    """Replaces --run in error messages by another flag, which names a second run."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"(?<![\w-])--run\b", flag, str(error))) from None
