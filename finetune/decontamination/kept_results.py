"""Results of parts of a long computation, kept in files so that an interrupted command continues."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.untrusted_input import read_arrays, reading

STAMP = "stamp"
Arrays = dict[str, np.ndarray]


def kept_result(path: Path, stamp: str, make: Callable[[], Arrays]) -> tuple[Arrays, bool]:
    """The arrays of an earlier run, or those that `make` computes, which are written to `path`.

    Args:
        stamp: hash of everything that the arrays depend on. A file with another stamp, or a damaged one, is replaced.

    Returns:
        The arrays, and whether they are of an earlier run.
    """
    found = read_kept_result(path, stamp)
    if found is not None:
        return found, True
    arrays = make()
    with whole_file(path) as file:
        np.savez(file, **arrays, **{STAMP: np.array(stamp)})
    return arrays, False


def read_kept_result(path: Path, stamp: str) -> Arrays | None:
    """The arrays of an earlier run; None if there are none with this stamp."""
    if path.exists():
        with contextlib.suppress(UserError, FileNotFoundError), reading(path):
            arrays = read_arrays(path)
            if str(arrays.pop(STAMP)) == stamp:
                return arrays
    return None
