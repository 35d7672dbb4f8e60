"""python -m finetune.st --task refcoco: single-task fine-tuning from a multi-task or pretraining run, or scratch."""

import dataclasses
import time
from pathlib import Path

import torch

from finetune.config import FREE_FLAGS, StConfig
from finetune.evaluation.scores import describe_scores
from finetune.run_dirs.result_files import SingleResult
from finetune.task_types.base import Task
from finetune.training.single_task_setup import build_single_task, default_out, result_of, task_of_flags
from pretrain.engine.distributed import choose_device, connected, exiting, on_first
from pretrain.engine.experiment_trackers import tracker_names
from pretrain.engine.metrics_logger import run_directory_note
from pretrain.engine.run_dir import RESULT, checkpoint_to_resume, finished_result, locked_run, stored_flags
from shards.common.cli import command
from shards.common.dist_info import Ranks, launched
from shards.common.files import write_json
from shards.world import complete_world


def run(config: StConfig) -> int:
    """Fine-tunes; returns the exit status, 0 or 128 + the signal that stopped the run."""
    ranks = launched()
    device = choose_device(config.device, ranks)
    tracker_names(config.log_to)  # raises UserError for an unknown one, before anything is read
    task = task_of_flags(config)
    config = dataclasses.replace(config, task=task.name, out=config.out or default_out(task.name))
    with connected(ranks, device), locked_run(Path(config.out), "finetune.st", ranks):
        return finetune(config, task, ranks, device)


def finetune(config: StConfig, task: Task, ranks: Ranks, device: torch.device) -> int:
    """One rank's part of a run, from its flags to its result."""
    began, out = time.perf_counter(), Path(config.out)
    newest = checkpoint_to_resume(out, config.resume, ranks)
    result = finished_result(out, newest, config, FREE_FLAGS, ranks, SingleResult)
    if result is None:
        on_first(ranks, lambda: complete_world(config.data))
        trainer, kind = build_single_task(config, task, ranks, device, newest)
        status, _ = trainer.run()
        if status:
            return status
        result = result_of(trainer, kind, time.perf_counter() - began)
        if ranks.first:
            write_json(out / RESULT, result)
    scores, step = describe_scores(result["validation"]), result["best_step"]
    ranks.log(f"{task.title}, {result['kind']}: {scores}, best at step {step}")
    ranks.log(run_directory_note(out, config.log_to))
    return 0


EXAMPLES = (
    "python -m finetune.st --task refcoco",
    "python -m finetune.st --task vqa --init runs/pretrain --out runs/st-vqa",
    "python -m finetune.st --task_file mine.toml --data data/mine",
)


if __name__ == "__main__":
    with exiting():
        command(
            StConfig,
            run,
            "finetune.st",
            "Single-task fine-tuning.",
            inherit=lambda flags: stored_flags(
                flags, flags.get("out") or default_out(flags.get("task"), flags.get("task_file")), "finetune.st"
            ),
            examples=EXAMPLES,
        )
