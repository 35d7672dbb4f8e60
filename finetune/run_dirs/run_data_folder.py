"""The data folder of commands that read a run, and the location of an evaluation's scores.

The same rule holds for all of these commands: without --data, the data folder is the one in the run's config.json.
Nothing is generated here; only training commands generate the miniature world.
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from finetune.config import FinetuneConfig
from pretrain.engine.run_dir import CONFIG, RUNS, existing_runs, read_config, read_flags
from pretrain.pretrained.find_weights import check_has_weights
from shards.common.errors import UserError
from shards.common.files import read_json
from shards.common.model_hub import name_in_cache

OTHER_DATA = "other_data"  # subfolder for scores on other data than the run's


def own_data(run) -> str | None:
    """The data folder that a run was trained on; None if it is not known, as for published weights.

    For a pretraining run on DIR/regions/pairs it is DIR; for one on other region shards None.
    """
    config = read_config(run) if (Path(run) / CONFIG).exists() else {}
    data = (config.get("flags") or {}).get("data")
    if data is None or "tasks" in config:
        return data
    shards = Path(data) if Path(data).is_dir() else Path(data).parent
    return str(shards.parent.parent) if shards.parent.name == "regions" else None


def training_flags(run) -> dict[str, Any]:
    """The flags with which a run was trained; empty if they are not known, as for published weights."""
    return read_flags(run, FinetuneConfig) if (Path(run) / CONFIG).exists() else {}


def choose_data(run, data: str | None) -> str:
    """The data folder: --data, else the one that the run was trained on.

    Raises:
        UserError: the run does not exist, or its data folder is not known or no longer exists.
    """
    check_exists(run)
    if data is not None:
        return data
    own = own_data(run)
    if own is None:
        if Path(run).is_dir():
            _check_has_weights(run)
        raise UserError(
            f"--data is missing: {run} does not name a data folder; give one with the tasks' official files "
            "and the regions of their images"
        )
    if not Path(own).is_dir():
        raise UserError(f"{run}: its training data {own} does not exist; give its current location by --data")
    return own


def check_exists(run) -> None:
    """Raises UserError if a run does not exist; the message lists existing runs."""
    if not Path(run).exists():
        raise UserError(f"--run {run}: no such file or directory; it should be a run or weights{existing_runs(run)}")


def _check_has_weights(run) -> None:
    """Raises UserError for a directory that is not a run, such as a data folder or a checkpoint of a run."""
    try:
        check_has_weights(Path(run))
    except UserError as error:
        raise UserError(f"--run {error}") from None


def warn_of_other_data(run, data: str | None) -> None:
    """Prints a warning if --data differs from the data folder that the run was trained on."""
    own = own_data(run)
    if data is not None and own is not None and not _same(data, own):
        print(f"warning: --data {data}: differs from the data that {run} was trained on, {own}", file=sys.stderr)


def results_folder(run) -> Path:
    """The folder for results of a run: the run directory, or for a file of weights the folder that contains it.

    For a model of the Hugging Face hub it is runs/hub/OWNER--NAME-COMMIT in the working directory, because the hub's
    cache belongs to its client and can be cleared at any time.
    """
    path = Path(run)
    if name := name_in_cache(path):
        return Path(RUNS) / "hub" / name
    return path if path.is_dir() else path.parent


def evaluations_folder(run) -> Path:
    """The folder of the scores of a run's evaluations."""
    return results_folder(run) / "scores"


def place_of(folder: Path, name: str, run, data: str) -> Path:
    """The path of a result file: FOLDER/NAME for the data folder that the run was trained on, else
    FOLDER/other_data/DATA-CHECKSUM/NAME.

    If the run's data folder is not known, or does not exist on this machine, the data folder named in an existing
    FOLDER/NAME takes its place, so that results on other data are not overwritten.
    """
    path, own = folder / name, own_data(run)
    if own is None or not Path(own).is_dir():
        own = _data_of(path)
    if own is None or _same(data, own):
        return path
    checksum = hashlib.sha256(os.path.realpath(data).encode()).hexdigest()[:8]
    return folder / OTHER_DATA / f"{Path(os.path.abspath(data)).name}-{checksum}" / name


def _data_of(path: Path) -> str | None:
    """The data folder named in a result file, or in its first row."""
    result = read_json(path, dict[str, Any]) if path.exists() else {}
    first = next(iter(result.values()), None)
    return result.get("data") or (first.get("data") if isinstance(first, dict) else None)


def _same(one, other) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
