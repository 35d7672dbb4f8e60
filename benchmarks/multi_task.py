"""Throughput with one optimizer step per task and with one for all tasks of an iteration, on one rank and on two.

    python benchmarks/multi_task.py [--iterations 24] [--init runs/pretrain] [--tasks all]

Runs finetune.mt on the miniature world, in turn, and reads its metrics: the median over the log lines after the first.
Every run trains on the same batches (round robin).
"""

import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

from benchmarks.training_runs import MultiTaskFlags, multi_task_metrics
from shards.common.cli import command, flag
from shards.world import complete_world


@dataclass
class Config(MultiTaskFlags):
    """Flags of this benchmark."""

    iterations: int = flag(24, "iterations per run", low=8)
    ranks: int = flag(2, "number of ranks of the distributed runs", low=2)


def examples_per_second(config: Config, one_step: bool, ranks: int) -> float:
    balance = "sum" if one_step else "steps"
    flags = {"iterations": config.iterations, "balance": balance, "validate_on": 2, "log_every": 4}
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    lines = multi_task_metrics(config, flags, launcher, {"OMP_NUM_THREADS": threads})
    rates = [line["samples_per_second"] for line in lines if line["kind"] == "train"]
    return statistics.median(rates[1:])


def run(config: Config) -> None:
    complete_world(config.data)
    for ranks in (1, config.ranks):
        rates = {one: examples_per_second(config, one, ranks) for one in (False, True)}
        print(f"{ranks} rank{'s' * (ranks > 1)}, tasks {config.tasks}")
        print(f"one step per task      {rates[False]:8.1f} examples/s    1.00x")
        print(f"one step for all       {rates[True]:8.1f} examples/s  {rates[True] / rates[False]:6.2f}x", flush=True)


if __name__ == "__main__":
    command(Config, run, "benchmarks/multi_task.py", __doc__.splitlines()[0], sys.argv[1:])
