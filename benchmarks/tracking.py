"""The cost of finetune.mt --track: the time of a record next to that of an iteration, and its share at the default.

    python benchmarks/tracking.py [--iterations 12] [--init runs/pretrain] [--tasks all]

Trains once on the miniature world, every task in every iteration, with a record after every fourth iteration.
"""

import itertools
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

from benchmarks.training_runs import MultiTaskFlags, multi_task_metrics
from finetune.gradients.tracked_gradients import GRADIENTS_KIND
from finetune.training.gradient_tracker import TRACKED_BATCHES, TRACKED_EXAMPLES, default_interval
from shards.common.cli import command, flag
from shards.world import complete_world

EVERY = 4  # iterations between two records


@dataclass
class Config(MultiTaskFlags):
    """Flags of this benchmark."""

    iterations: int = flag(12, "iterations", low=8)


def run(config: Config) -> None:
    complete_world(config.data)
    flags = {"iterations": config.iterations, "validate_on": 16, "log_every": 1, "track": True, "track_every": EVERY}
    lines = multi_task_metrics(config, flags)
    records = [line for line in lines if line["kind"] == GRADIENTS_KIND]
    training = [line for line in lines if line["kind"] == "train"]
    examples = training[0]["samples"]
    # The line after a record contains its time, and the first one the start of the data workers.
    pairs = [(before, line) for before, line in itertools.pairwise(training) if line["step"] % EVERY != 1]
    times = [(line["samples"] - before["samples"]) / line["samples_per_second"] for before, line in pairs]
    iteration = statistics.median(times)
    record = statistics.median(line["seconds"] for line in records)
    every = default_interval(TRACKED_BATCHES * TRACKED_EXAMPLES * len(records[0]["tasks"]), examples, iterations=1)
    print(f"{len(records[0]['tasks'])} tasks, {examples} examples per iteration, a record by default every {every}")
    print(f"iteration              {iteration:8.3f} s    1.00x")
    print(f"record                 {record:8.3f} s  {record / iteration:6.2f}x")
    print(f"share of training      {record / (every * iteration):8.1%}")


if __name__ == "__main__":
    command(Config, run, "benchmarks/tracking.py", __doc__.splitlines()[0], sys.argv[1:])
