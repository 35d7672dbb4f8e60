"""The cost of finetune.mt --track: the time of a record next to that of an iteration, and its share at the default.

    python benchmarks/tracking.py [--iterations 12] [--init runs/pretrain] [--tasks all]

Trains once on the miniature world, every task in every iteration, with a record after every fourth iteration.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

from finetune.gradients.tracked_gradients import KIND
from finetune.training.gradient_tracker import BATCHES, EXAMPLES, default_interval
from shards.common.cli import command, flag
from shards.common.errors import UserError
from shards.world import DEFAULT_WORLD, complete_world

EVERY = 4  # iterations between two records


@dataclass
class Config:
    """Flags of this benchmark."""

    iterations: int = flag(12, "iterations", low=8)
    init: str = flag("runs/pretrain", "run with initial weights, or scratch")
    tasks: str = flag("all", "comma-separated names or groups of tasks")
    data: str = flag(DEFAULT_WORLD, "folder of the miniature world, created if missing")


def run(config: Config) -> None:
    complete_world(config.data)
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "iterations": config.iterations,
            "init": config.init,
            "tasks": config.tasks,
            "data": config.data,
            "regime": "round_robin",
            "validate_on": 16,
            "log_every": 1,
            "track": True,
            "track_every": EVERY,
            "out": f"{folder}/run",
        }
        command_line = [sys.executable, "-m", "finetune.mt", *(f"--{name}={value}" for name, value in flags.items())]
        done = subprocess.run(command_line, capture_output=True, text=True)
        if done.returncode:
            raise UserError(done.stderr.strip().splitlines()[-1])
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    records = [line for line in lines if line["kind"] == KIND]
    training = [line for line in lines if line["kind"] == "train"]
    examples = training[0]["samples"]
    # The line after a record contains its time, and the first one the start of the data workers.
    pairs = [(before, line) for before, line in itertools.pairwise(training) if line["step"] % EVERY != 1]
    times = [(line["samples"] - before["samples"]) / line["samples_per_second"] for before, line in pairs]
    iteration = statistics.median(times)
    record = statistics.median(line["seconds"] for line in records)
    every = default_interval(BATCHES * EXAMPLES * len(records[0]["tasks"]), examples, iterations=1)
    print(f"{len(records[0]['tasks'])} tasks, {examples} examples per iteration, a record by default every {every}")
    print(f"iteration              {iteration:8.3f} s    1.00x")
    print(f"record                 {record:8.3f} s  {record / iteration:6.2f}x")
    print(f"share of training      {record / (every * iteration):8.1%}")


if __name__ == "__main__":
    command(Config, run, "benchmarks/tracking.py", __doc__.splitlines()[0], sys.argv[1:])
