"""python -m finetune.mt: multi-task training of one model, or of one per set of tasks, with dynamic stop-and-go."""

from pathlib import Path

import torch

from finetune.config import MtConfig
from finetune.decontamination.manifest import is_cleaned
from finetune.reporting.multi_task_summary import describe_result
from finetune.reporting.task_set_table import write_set_table
from finetune.training.multi_task_run import train_tasks
from finetune.training.task_sets import begin_sets
from pretrain.engine.distributed import choose_device, connected, exiting, on_first
from pretrain.engine.experiment_trackers import tracker_names
from pretrain.engine.metrics_logger import run_directory_note
from pretrain.engine.run_dir import locked_run, read_config, stored_flags
from shards.common.cli import command
from shards.common.dist_info import Ranks, launched


def run(config: MtConfig) -> int:
    """Trains; returns the exit status, 0 or 128 + the signal that stopped the run."""
    ranks = launched()
    device = choose_device(config.device, ranks)
    tracker_names(config.log_to)  # raises UserError for an unknown one, before anything is read
    train = train_sets if config.groups else train_together
    with connected(ranks, device):
        return train(config, ranks, device)


def train_together(config: MtConfig, ranks: Ranks, device: torch.device) -> int:
    """One rank's part of a run of all tasks, from its flags to its printed scores."""
    out = Path(config.out)
    with locked_run(out, "finetune.mt", ranks):
        status, finished = train_tasks(config, ranks, device)
        if finished is not None:
            if ranks.first:
                describe_result(finished, is_cleaned(read_config(out)))
            ranks.log(run_directory_note(out, config.log_to))
    return status


def train_sets(config: MtConfig, ranks: Ranks, device: torch.device) -> int:
    """One rank's part of a run for each set of tasks, one after another, and of the table that compares them."""
    with locked_run(Path(config.out), "finetune.mt", ranks):
        runs = on_first(ranks, lambda: begin_sets(config))
        for number, one in enumerate(runs, 1):
            ranks.log(f"set {number} of {len(runs)}: {one.tasks}")
            if status := train_together(one, ranks, device):
                return status
        ranks.log(on_first(ranks, lambda: write_set_table(config, runs)))
    return 0


EXAMPLES = (
    "python -m finetune.mt",
    "python -m finetune.mt --tasks vqa,gqa,refcoco --clean true --out runs/three",
    "python -m finetune.mt --groups auto --together runs/mt --out runs/sets",
    "torchrun --standalone --nproc-per-node 8 -m finetune.mt --data data/real --init runs/cc --precision bf16",
)


if __name__ == "__main__":
    with exiting():
        summary = "Multi-task training of one model, or of one model for each set of tasks."
        command(
            MtConfig,
            run,
            "finetune.mt",
            summary,
            inherit=lambda flags: stored_flags(flags, flags.get("out", MtConfig.out), "finetune.mt"),
            examples=EXAMPLES,
        )
