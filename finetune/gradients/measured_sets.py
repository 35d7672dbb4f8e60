"""The sets of tasks that the affinities of a measured run propose, for finetune.mt --groups auto."""

from collections.abc import Sequence

import msgspec
import numpy as np

from finetune.gradients.task_gradients import ALL_PARTS
from finetune.gradients.task_groups import propose_groups
from finetune.run_dirs.run_data_folder import results_folder
from shards.common.errors import UserError
from shards.common.files import read_json

INTERFERENCE_FOLDER, INTERFERENCE_NUMBERS = "interference", "interference.json"  # in a run directory


class PairMeans(msgspec.Struct):
    """Means by pairs of tasks, null for one that is not known."""

    mean: list[list[float | None]]


class PartMeans(msgspec.Struct):
    """The entry of a part of the model."""

    similarity: PairMeans


class Flags(msgspec.Struct):
    """The flags of the measurement that are read."""

    max_sets: int


class Measurement(msgspec.Struct):
    """The fields of interference.json that are read."""

    tasks: list[str]
    parts: dict[str, PartMeans]
    affinity: PairMeans | None
    flags: Flags


def measured_sets(run, names: Sequence[str]) -> list[list[str]]:
    """The sets of these tasks, by the affinities of a run, or by its similarities of gradients without look-ahead.

    Raises:
        UserError: the affinities have not been measured, or not for all of the tasks.
    """
    path = results_folder(run) / INTERFERENCE_FOLDER / INTERFERENCE_NUMBERS
    if not path.exists():
        measure = f"python -m finetune.interference --run {run}"
        raise UserError(f"--together {run}: has no measured affinities; measure them with {measure}")
    found = read_json(path, Measurement)
    if missing := [name for name in names if name not in found["tasks"]]:
        raise UserError(
            f"{path}: does not contain {', '.join(missing)}; give --tasks {','.join(found['tasks'])}, or measure a run "
            "of all tasks"
        )
    rows = [found["tasks"].index(name) for name in names]
    table = found["affinity"] or found["parts"][ALL_PARTS]["similarity"]
    affinity = np.array(table["mean"], float)[np.ix_(rows, rows)]
    return [[names[task] for task in members] for members in propose_groups(affinity, found["flags"]["max_sets"])]
