"""A run's directory: beginning it, resuming it, and finding it and what its configuration names."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pretrain.checkpoint import FACTS, TRAINING, newest_checkpoint
from pretrain.distributed import on_first
from shards.errors import UserError
from shards.files import is_remote, read_json
from shards.folder_lock import FolderLock
from shards.ranks import Ranks

CONFIG, RESULT = "config.json", "result.json"
DETECTOR = "detector"  # the folder in a run with what shards.detectors.keep_detector keeps
RUNS = "runs"  # the folder of runs, by default
LISTED = 8  # existing runs that a message about a missing one names

# Flags of training commands that name files and folders, each with the values that are no paths.
PATHS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("data", "out", "bert", "tokenizer", "answers", "vqa_answers", "gqa_answers"), ()),
    "config": ("base", "tiny"),
    "init": ("scratch",),
    "clean": ("True", "true"),
}


def _is_there(path: str) -> bool:
    """Whether a path exists; of a pattern, whether its folder does."""
    pattern = any(mark in path for mark in "*?[{")
    return os.path.exists(path) or (pattern and os.path.isdir(os.path.dirname(path) or "."))


def absolute(value, flag: str):
    """The value of a flag as config.json keeps it: a path as an absolute one, so that the run can be read from any
    directory. Addresses, and names that are no path (of a model on the hub), stay as they are."""
    if flag not in PATHS or not isinstance(value, str) or value in ("", *PATHS[flag]):
        return value
    if is_remote(value) or not _is_there(value):
        return value
    return os.path.abspath(value)


def stored_form(flags: dict) -> dict:
    """Flags as config.json keeps them, see `absolute`."""
    return {name: absolute(value, name) for name, value in flags.items()}


def read_config(run) -> dict:
    """config.json of a run, with the paths in its flags and of its start where they are now (`_located`)."""
    config = read_json(Path(run) / CONFIG, Config)
    flags, start = config.get("flags"), config.get("start")
    if isinstance(flags.get("out"), str):
        config["flags"] = {name: _located(value, name, run, flags["out"]) for name, value in flags.items()}
        if isinstance(start, dict):
            config["start"] = start | {"run": _located(start.get("run"), "init", run, flags["out"])}
    return config


def _located(value, flag: str, run, out: str):
    """Where a path of a run's configuration is now.

    An absolute path is taken as it is where it exists. Where it does not, the run and what it names may have been moved
    or copied together: then the path from the one to the other is the same. Earlier versions kept paths relative to the
    directory in which the command was typed: these too are first looked for from the run.

    Args:
        value: of the flag.
        flag: its name.
        run: the run's directory.
        out: the run's directory when it was begun.
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
    """What a message about a run that does not exist adds: the runs next to it and in the default folder."""
    configs = [*Path(path).parent.glob(f"*/{CONFIG}")]
    configs += [found for depth in ("*", "*/*", "*/*/*") for found in Path(RUNS).glob(f"{depth}/{CONFIG}")]
    runs = sorted({os.path.normpath(found.parent) for found in configs if newest_checkpoint(found.parent)})
    more = f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
    return f"; existing runs: {', '.join(runs[:LISTED])}{more}" if runs else ""


class Began(msgspec.Struct):
    """The fields of a fine-tuning run's `start`."""

    kind: str
    run: str | None = None


class Made(msgspec.Struct):
    """The fields of a run's `made` that reports show."""

    python: str
    torch: str
    device: str
    ranks: int
    began: str = ""
    version: str | None = None
    commit: str | None = None


class Samples(msgspec.Struct):
    """The field of a pretraining run's `data` that reports show."""

    samples: int


class Config(msgspec.Struct):
    """The fields of config.json that are counted on, of all kinds of runs."""

    flags: dict[str, Any]
    model: dict[str, Any] = {}
    tasks: list[str] = []
    tokens: dict[str, int] = {}
    heads: dict[str, int] = {}
    start: Began | None = None
    from_bert: list[str] = []
    made: Made | None = None
    data: Samples | None = None


@contextlib.contextmanager
def locked_run(run: Path, command: str, ranks: Ranks) -> Iterator[None]:
    """A block in which these ranks alone write a run directory, of which the first has the lock."""
    lock = FolderLock(run, command, ("checkpoints",))
    on_first(ranks, lock.acquire)
    try:
        yield
    finally:
        lock.release()


def checkpoint_to_go_on_from(run: Path, resume: bool, ranks: Ranks) -> Path | None:
    """The newest checkpoint, None of a run that is yet to begin; one that nobody asked to go on with is refused."""
    newest = on_first(ranks, lambda: newest_checkpoint(run))
    if newest and not resume:
        raise UserError(f"{run}: holds a run already; --resume goes on with it, or give another --out")
    if newest and not (newest / FACTS).exists():
        raise UserError(f"{newest}: is not to be seen from rank {ranks.rank}; --out should be shared by all machines")
    if newest and not (newest / TRAINING).exists():
        raise UserError(f"{run}: has weights alone and no training to go on with; start from it with --init")
    return newest


def stored_flags(flags: dict, run) -> dict:
    """The flags of the run that --resume goes on with, so that they need not be typed again. flags: as typed."""
    path = Path(run) / CONFIG
    if str(flags.get("resume", "")).lower() != "true" or not path.exists():
        return {}
    return read_config(run)["flags"]


def finished_result(run: Path, newest: Path | None, config, free: set[str], ranks: Ranks, kind) -> dict | None:
    """What result.json has of a run that is finished, the same on every rank; None where there is something to do.

    Args:
        newest: as checkpoint_to_go_on_from gives it.
        config: the flags; those that are None are not compared with the run's, which has stored what they stand for.
        free: flags that may differ.
        kind: a type of msgspec with the fields that are counted on.
    """

    def read() -> dict | None:
        if newest is None or not (run / RESULT).exists():
            return None
        check_flags({name: value for name, value in dataclasses.asdict(config).items() if value is not None}, run, free)
        return read_json(run / RESULT, kind, finite=False)

    result = on_first(ranks, read)
    if result is not None:
        ranks.say("this run was finished before; nothing to do")
    return result


def check_flags(flags: dict, run: Path, free: set[str]) -> None:
    """Refuses to go on with flags that would make it another run; those of `free` may differ."""
    stored = stored_form(read_config(run)["flags"])
    for name, value in flags.items():
        if name not in free and stored.get(name, value) not in (value, absolute(value, name)):
            raise UserError(
                f"--{name} {value}: the run in {run} has {stored[name]}; "
                "leave the flag out, or begin another run with another --out"
            )


def clear_run(run: Path) -> None:
    """An empty run directory; what an earlier run without a checkpoint left there is removed."""
    names = ("checkpoints", "metrics.jsonl", RESULT, "scores", DETECTOR, "events.out.tfevents.*")
    for path in (path for name in names for path in run.glob(name)):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
