"""python -m pretrain.run: pretraining on image-caption pairs, from region shards to a run directory."""

import dataclasses
import os
import time
from pathlib import Path

from pretrain.checkpoint import FACTS, best_checkpoint, newest_checkpoint
from pretrain.job import Job, prepare
from pretrain.logs import RunLog, duration
from pretrain.settings import DEFAULT_DATA, PretrainConfig
from pretrain.trainer import describe_scores, train
from shards.files import read_json, write_json
from shards.flags import command
from shards.world import WorldConfig, is_world, make_world, pairs_folder


def stored_flags(flags: dict) -> dict:
    """The flags of the run that --resume goes on with, so that they need not be typed again."""
    path = Path(flags.get("out", PretrainConfig.out)) / "config.json"
    if str(flags.get("resume", "")).lower() != "true" or not path.exists():
        return {}
    return read_json(path).get("flags", {})


def region_shards(data: str | None) -> str:
    """The region shards to train on; the miniature world is made where nothing is given."""
    if data is None:
        return str(pairs_folder(make_world(WorldConfig(out=DEFAULT_DATA))))
    return str(pairs_folder(data)) if is_world(data) else data


def run(config: PretrainConfig) -> int:
    """Pretrains; the exit status is 0, or 128 + the signal that stopped the run."""
    began = time.perf_counter()
    out = Path(config.out)
    job = prepare(dataclasses.replace(config, data=region_shards(config.data)).settled())
    if job.first_step < job.total_steps:
        log = RunLog(out, job.first_step)
        try:
            stopped, done, scores = train(job, log)
        finally:
            log.close()
        if stopped is not None:
            print(f"stopped at step {done} of {job.total_steps}; --resume goes on: {out}{os.sep}")
            return 128 + stopped
        seconds = time.perf_counter() - began
        write_json(out / "result.json", result(job, scores) | {"seconds": round(seconds, 1)})
        print(f"done in {duration(seconds)}")
    else:
        print("this run was finished before")
        scores = read_json(newest_checkpoint(out) / FACTS)["scores"]
        if not (out / "result.json").exists():  # it was killed between its last checkpoint and its result
            write_json(out / "result.json", result(job, scores))
    if scores:
        print(f"held out: {describe_scores(scores)}")
    print(f"the run is in {out}{os.sep}; curves: tensorboard --logdir {out.parent}")
    return 0


def result(job: Job, scores: dict) -> dict:
    """What result.json says of a finished run."""
    return {
        "steps": job.total_steps,
        "epochs": job.config.epochs,
        "pairs": len(job.pairs.training),
        "validation": scores,
        "best_checkpoint": best_checkpoint(job.config.out).name,
    }


if __name__ == "__main__":
    summary = "Pretraining of the two-stream model on image-caption pairs."
    command(PretrainConfig, run, "pretrain.run", summary, inherit=stored_flags)
