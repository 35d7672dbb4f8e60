"""The data folder that a command reads a run with, and where the scores of an evaluation on it are kept.

One rule for every command that reads a run: without --data it is the run's own, as its config.json names it. Nothing is
made or drawn here; only commands that train make the miniature world.
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from pretrain.run_folder import CONFIG, existing_runs, read_config
from shards.errors import UserError
from shards.files import read_json

OTHER_DATA = "other_data"  # the folder next to a run's scores with those on other data than its own


def own_data(run) -> str | None:
    """The data folder that a run was trained on; None where it does not say, as for weights that are no run.

    Of a pretraining run it is the folder that its image-caption pairs are in, as in DIR/regions/pairs, None of others.
    """
    config = read_config(run) if (Path(run) / CONFIG).exists() else {}
    data = (config.get("flags") or {}).get("data")
    if data is None or "tasks" in config:
        return data
    shards = Path(data) if Path(data).is_dir() else Path(data).parent
    return str(shards.parent.parent) if shards.parent.name == "regions" else None


def choose_data(run, data: str | None) -> str:
    """The data folder: what --data names, else the run's own.

    Raises:
        UserError: there is no such run, or it has no data folder of its own, or that does not exist any more.
    """
    check_exists(run)
    if data is not None:
        return data
    own = own_data(run)
    if own is None:
        raise UserError(
            f"--data is missing: {run} does not name a data folder of its own; give one with the tasks' official files "
            "and the regions of their images"
        )
    if not Path(own).is_dir():
        raise UserError(f"{run}: the data that it was trained on, {own}, does not exist; --data names where it is now")
    return own


def check_exists(run) -> None:
    """Refuses a run that does not exist; the message lists those that do."""
    if not Path(run).exists():
        raise UserError(f"--run {run}: no such file or directory; it should be a run or weights{existing_runs(run)}")


def warn_of_other_data(run, data: str | None) -> None:
    """Prints a warning where --data names other data than the run's own."""
    own = own_data(run)
    if data is not None and own is not None and not _same(data, own):
        print(f"warning: --data {data}: differs from the data that {run} was trained on, {own}", file=sys.stderr)


def kept_scores(run) -> Path:
    """Where the scores of a run's evaluations are, for reports; those of a file of weights are next to it."""
    path = Path(run)
    return (path if path.is_dir() else path.parent) / "scores"


def place_of(folder: Path, name: str, run, data: str) -> Path:
    """The file for a result on a data folder: FOLDER/NAME where it is the run's own data, else one in a folder of its
    own, FOLDER/other_data/DATA-CHECKSUM/NAME.

    Where the run does not name its data, or that does not exist on this machine, the data of an existing FOLDER/NAME
    stand for it, so that what was computed on other data is not overwritten.
    """
    path, own = folder / name, own_data(run)
    if own is None or not Path(own).is_dir():
        own = _data_of(path)
    if own is None or _same(data, own):
        return path
    checksum = hashlib.sha256(os.path.realpath(data).encode()).hexdigest()[:8]
    return folder / OTHER_DATA / f"{Path(os.path.abspath(data)).name}-{checksum}" / name


def _data_of(path: Path) -> str | None:
    """The data folder that a file of results, or its first row, names."""
    result = read_json(path, dict[str, Any]) if path.exists() else {}
    first = next(iter(result.values()), None)
    return result.get("data") or (first.get("data") if isinstance(first, dict) else None)


def _same(one, other) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
