"""Training runs that benchmarks compare, each a process of its own, several at a time."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import UserError


@dataclass(frozen=True)
class TrainingRun:
    """One call of a training command. flags: besides --out and --resume."""

    module: str
    out: Path
    flags: dict = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return (self.out / "result.json").exists()


def complete(runs: Sequence[TrainingRun], jobs: int) -> None:
    """Trains the runs that are not finished, `jobs` at a time; interrupted ones are resumed.

    Raises:
        UserError: a run failed; the message has the last line of its log.
    """
    waiting = [run for run in runs if not run.finished]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for number, run in enumerate(pool.map(lambda run: _train(run, jobs), waiting), 1):
                print(f"{number} of {len(waiting)}: {run.out}", file=sys.stderr, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _train(run: TrainingRun, jobs: int) -> TrainingRun:
    flags = [f"--{name}={value}" for name, value in run.flags.items() if value is not None]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    log = run.out.with_name(f"{run.out.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        command = [sys.executable, "-m", run.module, f"--out={run.out}", "--resume", *flags]
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | threads).returncode
    if status:
        last = (log.read_text(encoding="utf-8").splitlines() or [""])[-1]
        raise UserError(f"{log}: python -m {run.module} ended with status {status}: {last}")
    return run
