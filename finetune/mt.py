"""python -m finetune.mt: multi-task training of one model, with dynamic stop-and-go."""

import os
import time
from pathlib import Path

import torch

from finetune.config import FREE_FLAGS, MtConfig, chosen_tasks
from finetune.decontamination.manifest import is_cleaned
from finetune.evaluation.scores import save_values
from finetune.reporting.multi_task_summary import describe_result
from finetune.run_dirs.result_files import VALUES, MultiResult
from finetune.training.multi_task_setup import build_multi_task, result_of
from finetune.training.task_schedulers import find_regime
from pretrain.engine.distributed import choose_device, connected, exiting, on_first
from pretrain.engine.experiment_trackers import tracker_names
from pretrain.engine.metrics_logger import where_curves_are
from pretrain.engine.run_dir import RESULT, checkpoint_to_resume, finished_result, locked_run, read_config, stored_flags
from shards.common.cli import command
from shards.common.dist_info import Ranks, launched
from shards.common.files import write_json
from shards.world import complete_world


def run(config: MtConfig) -> int:
    """Trains; returns the exit status, 0 or 128 + the signal that stopped the run."""
    ranks = launched()
    device = choose_device(config.device, ranks)
    tracker_names(config.log_to)
    with connected(ranks, device), locked_run(Path(config.out), "finetune.mt", ranks):
        return train_tasks(config, ranks, device)


def train_tasks(config: MtConfig, ranks: Ranks, device: torch.device) -> int:
    """One rank's part of a run, from its flags to its result."""
    began, out = time.perf_counter(), Path(config.out)
    tasks = chosen_tasks(config, config.out)
    on_first(ranks, lambda: find_regime(config.regime).check([task.group for task in tasks]))
    newest = checkpoint_to_resume(out, config.resume, ranks)
    finished = finished_result(out, newest, config, FREE_FLAGS, ranks, MultiResult)
    if finished is None:
        on_first(ranks, lambda: complete_world(config.data))
        trainer = build_multi_task(config, tasks, ranks, device, newest)
        status, _ = trainer.run()
        if status:
            return status
        training = trainer.task
        for state in training.task_states:
            if state.score is None:  # the last process was stopped between its last checkpoint and its result
                training.score(state)
        finished = result_of(training, time.perf_counter() - began)
        if ranks.first:
            save_values(out / VALUES, training.scores())
            write_json(out / RESULT, finished)
    if ranks.first:
        describe_result(finished, is_cleaned(read_config(out)))
    ranks.log(f"the run is in {out}{os.sep}{where_curves_are(config.log_to, out)}")
    return 0


EXAMPLES = (
    "python -m finetune.mt",
    "python -m finetune.mt --tasks vqa,gqa,refcoco --clean true --out runs/three",
    "torchrun --standalone --nproc-per-node 8 -m finetune.mt --data data/real --init runs/cc --precision bf16",
)


if __name__ == "__main__":
    with exiting():
        command(
            MtConfig,
            run,
            "finetune.mt",
            "Multi-task training of one model.",
            inherit=lambda flags: stored_flags(flags, flags.get("out", MtConfig.out)),
            examples=EXAMPLES,
        )
