"""A run's directory: beginning it, and going on with it."""

import dataclasses
import shutil
from pathlib import Path

from pretrain.checkpoint import FACTS, TRAINING, newest_checkpoint
from pretrain.distributed import on_first
from shards.errors import UserError
from shards.files import read_json
from shards.ranks import Ranks

CONFIG, RESULT = "config.json", "result.json"


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
    return read_json(path).get("flags", {})


def finished_result(run: Path, newest: Path | None, config, free: set[str], ranks: Ranks) -> dict | None:
    """What result.json has of a run that is finished, the same on every rank; None where there is something to do.

    Args:
        newest: as checkpoint_to_go_on_from gives it.
        config: the flags; those that are None are not compared with the run's, which has stored what they stand for.
        free: flags that may differ.
    """

    def read() -> dict | None:
        if newest is None or not (run / RESULT).exists():
            return None
        check_flags({name: value for name, value in dataclasses.asdict(config).items() if value is not None}, run, free)
        return read_json(run / RESULT)

    result = on_first(ranks, read)
    if result is not None:
        ranks.say("this run was finished before; nothing to do")
    return result


def check_flags(flags: dict, run: Path, free: set[str]) -> None:
    """Refuses to go on with flags that would make it another run; those of `free` may differ."""
    stored = read_json(run / CONFIG)["flags"]
    for name, value in flags.items():
        if name not in free and stored.get(name, value) != value:
            raise UserError(
                f"--{name} {value}: the run in {run} has {stored[name]}; "
                "leave the flag out, or begin another run with another --out"
            )


def clear_run(run: Path) -> None:
    """An empty run directory; what an earlier run without a checkpoint left there is removed."""
    names = ("checkpoints", "metrics.jsonl", RESULT, "scores", "events.out.tfevents.*")
    for path in (path for name in names for path in run.glob(name)):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
