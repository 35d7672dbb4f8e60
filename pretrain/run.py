"""python -m pretrain.run: pretrains the two-stream model on image-caption pairs in region shards."""

import dataclasses
import os
import time
from pathlib import Path

import msgspec
import torch

from pretrain.build import Job, describe_scores, prepare
from pretrain.config import FREE_FLAGS, PretrainConfig
from pretrain.engine import cuda_graph
from pretrain.engine.checkpoint import best_checkpoint, newest_checkpoint, read_facts
from pretrain.engine.distributed import choose_device, connected, exiting, on_first
from pretrain.engine.run_dir import RESULT, checkpoint_to_resume, finished_result, locked_run, stored_flags
from pretrain.engine.trainer import complete
from shards.common.cli import command
from shards.common.dist_info import Ranks, launched
from shards.common.errors import UserError
from shards.common.files import write_json
from shards.world import DEFAULT_WORLD, complete_world, is_world, pairs_folder


class Result(msgspec.Struct):
    """The fields of result.json that are validated."""

    validation: dict[str, float | None]
    pairs: int
    seconds: float


def region_shards(data: str | None) -> str:
    """The region shards to train on; without --data, those of the miniature world, which is created if missing."""
    if data is None:
        complete_world(DEFAULT_WORLD, tasks=False)
    data = data or DEFAULT_WORLD
    return str(pairs_folder(data)) if is_world(data) else data


def run(config: PretrainConfig) -> int:
    """Pretrains a model; returns the exit status, 0 or 128 + the signal that stopped the run."""
    ranks = launched()
    device = choose_device(config.device, ranks)
    if config.cuda_graph and (config.accumulate > 1 or not cuda_graph.runs_on(device)):
        raise UserError(f"--cuda_graph true: requires a GPU and --accumulate 1; the device is {device}")
    _check_contrastive(config)
    with connected(ranks, device):
        data = on_first(ranks, lambda: region_shards(config.data))
        return pretrain(dataclasses.replace(config, data=data).settled(), ranks, device)


def _check_contrastive(config: PretrainConfig) -> None:
    """Raises UserError for flags that require, or are incompatible with, a contrastive loss."""
    if config.negatives == "hard" and not config.contrastive:
        raise UserError("--negatives hard: requires the contrastive loss; set its weight, for example --contrastive 1")
    for name in ("compile", "cuda_graph"):
        if config.contrastive and getattr(config, name):
            raise UserError(f"--contrastive {config.contrastive:g}: cannot be combined with --{name} true; remove one")


def pretrain(config: PretrainConfig, ranks: Ranks, device: torch.device) -> int:
    """Runs pretraining on one rank and returns the exit status."""
    with locked_run(Path(config.out), "pretrain.run", ranks):
        return _pretrain(config, ranks, device)


def _pretrain(config: PretrainConfig, ranks: Ranks, device: torch.device) -> int:
    began, out = time.perf_counter(), Path(config.out)
    newest = checkpoint_to_resume(out, config.resume, ranks)
    finished = finished_result(out, newest, config, FREE_FLAGS, ranks, Result)
    if finished is None:
        job = prepare(config, ranks, device, newest)
        status, scores = complete(job)
        if status:
            return status
        scores = scores or read_facts(newest_checkpoint(out))["scores"]
        finished = result(job, scores, time.perf_counter() - began)
        if ranks.first:
            write_json(out / RESULT, finished)
    if finished["validation"]:
        ranks.log(f"validation: {describe_scores(finished['validation'])}")
    ranks.log(f"run directory: {out}{os.sep}; curves: tensorboard --logdir {out.parent}")
    return 0


def result(job: Job, scores: dict, seconds: float) -> dict:
    """The content of result.json. seconds: wall time of the process that finished the run."""
    return {
        "steps": job.plan.total_steps,
        "epochs": job.config.epochs or round(job.plan.total_steps / job.plan.steps_per_epoch, 3),
        "pairs": len(job.pairs.training),
        "validation": scores,
        "skipped_steps": job.engine.skipped.count,
        "bad_samples": job.bad_samples,
        "best_checkpoint": best_checkpoint(job.config.out).name,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    summary = "Pretrain the two-stream model on image-caption pairs."
    with exiting():
        command(
            PretrainConfig,
            run,
            "pretrain.run",
            summary,
            inherit=lambda flags: stored_flags(flags, flags.get("out", PretrainConfig.out)),
        )
