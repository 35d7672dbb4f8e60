"""python -m pretrain.run: pretrains the two-stream model on image-caption pairs in region shards."""

import dataclasses
import time
from pathlib import Path

import torch

from pretrain.build import build_pretraining, region_shards, result_of
from pretrain.config import FREE_FLAGS, PretrainConfig, check_contrastive, loss_terms
from pretrain.engine import cuda_graph
from pretrain.engine.checkpoint import newest_checkpoint, read_metadata
from pretrain.engine.distributed import choose_device, connected, exiting, on_first
from pretrain.engine.experiment_trackers import tracker_names
from pretrain.engine.metrics_logger import run_directory_note
from pretrain.engine.result_file import Result
from pretrain.engine.run_dir import RESULT, checkpoint_to_resume, finished_result, locked_run, stored_flags
from pretrain.objective.validation import describe_validation
from shards.common.cli import command
from shards.common.dist_info import Ranks, launched
from shards.common.errors import UserError
from shards.common.files import write_json


def run(config: PretrainConfig) -> int:
    """Pretrains a model; returns the exit status, 0 or 128 + the signal that stopped the run."""
    ranks = launched()
    device = choose_device(config.device, ranks)
    if config.cuda_graph and (config.accumulate > 1 or not cuda_graph.runs_on(device)):
        raise UserError(f"--cuda_graph true: requires a GPU and --accumulate 1; the device is {device}")
    check_contrastive(config)
    tracker_names(config.log_to)  # raises UserError for an unknown one, before anything is read
    with connected(ranks, device):
        data = on_first(ranks, lambda: region_shards(config.data))
        config = dataclasses.replace(config, data=data).with_size_defaults()
        with locked_run(Path(config.out), "pretrain.run", ranks):
            return pretrain(config, ranks, device)


def pretrain(config: PretrainConfig, ranks: Ranks, device: torch.device) -> int:
    """One rank's part of a run, from its flags to its result."""
    began, out = time.perf_counter(), Path(config.out)
    newest = checkpoint_to_resume(out, config.resume, ranks)
    finished = finished_result(out, newest, config, FREE_FLAGS, ranks, Result)
    if finished is None:
        trainer = build_pretraining(config, ranks, device, newest)
        status, scores = trainer.run()
        if status:
            return status
        scores = scores or read_metadata(newest_checkpoint(out))["scores"]
        finished = result_of(trainer, scores, time.perf_counter() - began)
        if ranks.first:
            write_json(out / RESULT, finished)
    if finished["validation"]:
        ranks.log(f"validation: {describe_validation(loss_terms(config), finished['validation'])}")
    ranks.log(run_directory_note(out, config.log_to))
    return 0


EXAMPLES = (
    "python -m pretrain.run --data data/photos --bert bert-base-uncased --epochs 5 --out runs/photos",
    "torchrun --standalone --nproc-per-node 8 -m pretrain.run --config base --data data/cc --precision bf16",
)


if __name__ == "__main__":
    summary = "Pretrain the two-stream model on image-caption pairs."
    with exiting():
        command(
            PretrainConfig,
            run,
            "pretrain.run",
            summary,
            inherit=lambda flags: stored_flags(flags, flags.get("out", PretrainConfig.out), "pretrain.run"),
            examples=EXAMPLES,
        )
