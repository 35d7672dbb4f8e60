"""Training runs for benchmarks: concurrent ones, and short ones whose metrics are read."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.reporting.training_commands import Processes, TrainingCommand
from pretrain.engine.metrics_logger import METRICS
from shards.common.cli import flag
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.world import DEFAULT_WORLD


def complete(calls: Sequence[TrainingCommand], jobs: int) -> None:
    """Completes unfinished runs, `jobs` at a time; interrupted ones are resumed. SIGTERM stops all of them.

    Raises:
        UserError: a run failed; the message has the last line of its log.
    """
    waiting, processes = [call for call in calls if not call.finished], Processes(jobs, ALONE)
    with processes.threads(jobs) as pool:
        for number, (call, _) in enumerate(zip(waiting, pool.map(processes.call, waiting), strict=True), 1):
            print(f"{number} of {len(waiting)}: {call.out}", file=sys.stderr, flush=True)


@dataclass
class MultiTaskFlags:
    """Flags of benchmarks that run finetune.mt on the miniature world."""

    init: str = flag("runs/pretrain", "run with initial weights, or scratch")
    tasks: str = flag("all", "comma-separated names or groups of tasks")
    data: str = flag(DEFAULT_WORLD, "folder of the miniature world; the default one is created if missing")


def multi_task_metrics(
    config: MultiTaskFlags, flags: Mapping, launcher: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> list[dict]:
    """The lines of metrics.jsonl of a run in a temporary folder, in which every iteration trains all tasks.

    Args:
        config: the flags that benchmarks share.
        flags: further flags of finetune.mt.
        launcher: arguments of Python before `-m finetune.mt`.
        environment: variables that replace those of this process.

    Raises:
        UserError: the run failed; the message is the last line of its errors.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        given = vars(MultiTaskFlags(config.init, config.tasks, config.data)) | {"regime": "round_robin", "out": out}
        argv = [f"--{name}={value}" for name, value in {**given, **flags}.items()]
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "finetune.mt", *argv],
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
        return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
