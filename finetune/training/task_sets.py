"""Sets of tasks, each of which finetune.mt --groups trains in a run of its own."""

import dataclasses
from collections import Counter
from pathlib import Path

from finetune.config import FREE_FLAGS, MtConfig, add_task_files, chosen_tasks
from finetune.gradients.measured_sets import measured_sets
from finetune.tasks import choose_tasks
from pretrain.engine.run_dir import CONFIG, check_flags, read_config, stored_form
from shards.common.errors import UserError
from shards.common.files import write_json

AUTO = "auto"


def begin_sets(config: MtConfig) -> list[MtConfig]:
    """The flags of the run of every set; runs that exist are resumed.

    The sets are chosen once and kept in OUT/config.json, so that they stay the same if the affinities are measured
    again.

    Raises:
        UserError: --out is the directory of a run, or contains the runs of sets and --resume is not given.
    """
    out = Path(config.out)
    stored = read_config(out) if (out / CONFIG).exists() else {}
    if stored and "sets" not in stored:
        raise UserError(f"--out {out}: contains a run; --groups needs a folder for several, such as --out runs/sets")
    if stored and not config.resume:
        raise UserError(f"{out}: already contains runs of sets; use --resume to continue them, or another --out")
    if stored:
        check_flags(config, out, FREE_FLAGS)
        sets = stored["sets"]
    else:
        sets = choose_sets(config)
        write_json(out / CONFIG, {"flags": stored_form(dataclasses.asdict(config)), "sets": sets})
    return [_of_set(config, names, out / f"set{number}") for number, names in enumerate(sets, 1)]


def _of_set(config: MtConfig, names: list[str], out: Path) -> MtConfig:
    """The flags of the run of a set; a task alone has no gradients to be compared with."""
    track = {} if len(names) > 1 else {"track": False, "track_every": None}
    return dataclasses.replace(config, groups=None, tasks=",".join(names), out=str(out), resume=True, **track)


def choose_sets(config: MtConfig) -> list[list[str]]:
    """The names of the tasks of every set of --groups."""
    if config.groups == AUTO:
        return measured_sets(config.together, [task.name for task in chosen_tasks(config)])
    if config.tasks != MtConfig.tasks:
        raise UserError(f"--tasks {config.tasks}: --groups {config.groups} has the tasks already; remove one of them")
    add_task_files(config.task_file)
    sets = [[task.name for task in choose_tasks(names, "--groups")] for names in config.groups.split(";")]
    counted = Counter(name for names in sets for name in names)
    if several := [name for name, count in counted.items() if count > 1]:
        raise UserError(f"--groups {config.groups}: {several[0]} is in several sets; it can be in one")
    return sets
