"""Run directories: creating, resuming and finding them, and locating the files that their configuration names."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pretrain.engine.checkpoint import METADATA, TRAINING, newest_checkpoint
from pretrain.engine.distributed import on_first
from pretrain.engine.experiment_trackers import IDENTIFIERS
from shards.common.cli import current_flags
from shards.common.dist_info import Ranks
from shards.common.errors import UserError
from shards.common.files import is_remote, read_json, split_paths
from shards.common.folder_lock import FolderLock

CONFIG, RESULT = "config.json", "result.json"
DETECTOR = "detector"  # subfolder with the files of the detector (shards.detectors.keep_detector)
RUNS = "runs"  # the default folder of runs
LISTED = 8  # maximum number of existing runs in the error message for a missing one

SEVERAL = "task_file"  # the flag of PATHS whose value may be several paths, separated by commas

# Flags of training commands that name files and folders, each with the values that are not paths.
PATHS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("data", "exclude", "out", "bert", "tokenizer", "answers", "vqa_answers", "gqa_answers", SEVERAL), ()
    ),
    "config": ("base", "tiny"),
    "init": ("scratch",),
    "together": (),
    "clean": ("True", "true"),
}


def _is_there(path: str) -> bool:
    """Whether a path exists; for a glob pattern, whether its folder exists."""
    pattern = any(mark in path for mark in "*?[{")
    return os.path.exists(path) or (pattern and os.path.isdir(os.path.dirname(path) or "."))


def absolute(value, flag: str):
    """The value of a flag as stored in config.json: paths become absolute, so that a run can be read from anywhere.

    URLs and names that are not paths (models on the hub) are unchanged.
    """
    if flag not in PATHS or not isinstance(value, str) or value in ("", *PATHS[flag]):
        return value
    if flag == SEVERAL:
        return ",".join(os.path.abspath(path) if _is_there(path) else path for path in split_paths(value))
    if is_remote(value) or not _is_there(value):
        return value
    return os.path.abspath(value)


def stored_form(flags: dict) -> dict:
    """Flags as stored in config.json, see `absolute`."""
    return {name: absolute(value, name) for name, value in flags.items()}


def read_config(run) -> dict:
    """Reads config.json of a run. Paths in flags and of initial weights are relocated (`_located`).

    Flags have the names that they had when the run was made, see `read_flags`.
    """
    config = read_json(Path(run) / CONFIG, ConfigFields)
    flags, start = config["flags"], config.get("start")
    if isinstance(flags.get("out"), str):
        config["flags"] = {name: _located(value, name, run, flags["out"]) for name, value in flags.items()}
        if isinstance(start, dict):
            config["start"] = start | {"run": _located(start.get("run"), "init", run, flags["out"])}
    return config


def read_flags(run, config_type) -> dict:
    """The flags of a run by their current names. config_type: dataclass of the flags of the command that made it."""
    return current_flags(config_type, read_config(run)["flags"])


def _located(value, flag: str, run, out: str):
    """The current location of a path in a run's configuration.

    An absolute path that exists is returned unchanged. Otherwise the run and the file may have been moved or copied
    together, so the relative path between them is tried. Earlier versions stored paths relative to the working
    directory; these are also resolved relative to the run first.

    Args:
        value: value of the flag.
        flag: name of the flag.
        run: current run directory.
        out: run directory when the run was started.
    """
    if flag not in PATHS or not isinstance(value, str) or not value or is_remote(value) or value in PATHS[flag]:
        return value
    if flag == "out":
        return os.path.abspath(run)
    if os.path.isabs(value) and _is_there(value):
        return value
    if os.path.isabs(value) == os.path.isabs(out):
        moved = os.path.normpath(os.path.join(os.path.abspath(run), os.path.relpath(value, out)))
        if _is_there(moved):
            return moved
    return absolute(value, flag)


def existing_runs(path) -> str:
    """Suffix of the error message for a missing run: existing runs next to it and in the default folder."""
    configs = [*Path(path).parent.glob(f"*/{CONFIG}")]
    configs += [found for depth in ("*", "*/*", "*/*/*") for found in Path(RUNS).glob(f"{depth}/{CONFIG}")]
    runs = sorted({os.path.normpath(found.parent) for found in configs if newest_checkpoint(found.parent)})
    more = f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
    return f"; existing runs: {', '.join(runs[:LISTED])}{more}" if runs else ""


class StartFields(msgspec.Struct):
    """The fields of a fine-tuning run's `start`."""

    kind: str
    run: str | None = None
    sha256: str | None = None


class MadeFields(msgspec.Struct):
    """The fields of a run's `made` that reports show."""

    python: str
    torch: str
    device: str
    ranks: int
    began: str = ""
    version: str | None = None
    commit: str | None = None


class DataFields(msgspec.Struct):
    """The field of a pretraining run's `data` that reports show."""

    samples: int


class ConfigFields(msgspec.Struct):
    """The fields of config.json that are validated, for all kinds of runs."""

    flags: dict[str, Any]
    model: dict[str, Any] = {}
    tasks: list[str] = []
    sets: list[list[str]] = []
    tokens: dict[str, int] = {}
    heads: dict[str, int] = {}
    start: StartFields | None = None
    from_bert: list[str] = []
    made: MadeFields | None = None
    data: DataFields | None = None


@contextlib.contextmanager
def locked_run(run: Path, command: str, ranks: Ranks) -> Iterator[None]:
    """Context manager that locks a run directory; the first rank holds the lock for all ranks."""
    lock = FolderLock(run, command, ("checkpoints",))
    on_first(ranks, lock.acquire)
    try:
        yield
    finally:
        lock.release()


def checkpoint_to_resume(run: Path, resume: bool, ranks: Ranks) -> Path | None:
    """The newest checkpoint, or None for a new run.

    Raises:
        UserError: the run exists and --resume is not set, or it cannot be resumed.
    """
    newest = on_first(ranks, lambda: newest_checkpoint(run))
    if newest and not resume:
        raise UserError(f"{run}: already contains a run; use --resume to continue it, or another --out")
    if newest and not (newest / METADATA).exists():
        raise UserError(
            f"{newest}: not visible on rank {ranks.rank}; --out must be on a file system that all ranks share"
        )
    if newest and not (newest / TRAINING).exists():
        raise UserError(f"{run}: contains weights but no optimizer state to resume from; use it with --init")
    return newest


def stored_flags(flags: dict, run, command: str) -> dict:
    """The flags of the run to resume, as stored, so that they need not be repeated.

    Args:
        flags: of the command line.
        run: the run directory.
        command: the command that resumes it.

    Raises:
        UserError: the run is one of another command, whose flags this command does not have.
    """
    path = Path(run) / CONFIG
    if str(flags.get("resume", "")).lower() != "true" or not path.exists():
        return {}
    stored = read_config(run)["flags"]
    if (own := _command_of(stored)) != command:
        raise UserError(
            f"--out {run}: is a run of {own}, which {command} cannot resume; "
            f"use python -m {own} --out {run} --resume, or another --out"
        )
    return stored


def _command_of(flags: dict) -> str:
    """The command that made a run. flags: those of its config.json."""
    return "finetune.st" if "task" in flags else "finetune.mt" if "tasks" in flags else "pretrain.run"


def finished_result(run: Path, newest: Path | None, config, free: set[str], ranks: Ranks, schema) -> dict | None:
    """The content of result.json of a finished run, on every rank; None if the run is not finished.

    Args:
        newest: result of checkpoint_to_resume.
        config: the flags; those that are None (not given) are not compared with those of the run.
        free: flags that may differ.
        schema: msgspec type with the fields of result.json to validate.
    """

    def read() -> dict | None:
        if newest is None or not (run / RESULT).exists():
            return None
        check_flags(config, run, free, given_only=True)
        return read_json(run / RESULT, schema, finite=False)

    result = on_first(ranks, read)
    if result is not None:
        ranks.log("this run is already finished; nothing to do")
    return result


def check_flags(config, run: Path, free: set[str], given_only: bool = False) -> None:
    """Raises UserError if a flag differs from that of the run to resume.

    Args:
        config: the flags.
        run: the run directory.
        free: flags that may differ.
        given_only: whether flags that are None (not given) may differ too.
    """
    stored = stored_form(read_flags(run, type(config)))
    for name, value in dataclasses.asdict(config).items():
        if name in free or (given_only and value is None):
            continue
        if stored.get(name, value) not in (value, absolute(value, name)):
            raise UserError(
                f"--{name} {value}: the run in {run} has {stored[name]}; "
                "omit the flag to resume, or start a new run with another --out"
            )


def clear_run(run: Path) -> None:
    """Creates an empty run directory; files of an earlier run without a checkpoint are removed."""
    names = ("checkpoints", "metrics.jsonl", RESULT, "scores", DETECTOR, IDENTIFIERS, "events.out.tfevents.*")
    for path in (path for name in names for path in run.glob(name)):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
