"""Measures the throughput of pretraining, multi-task training and ranking for a minute each, before long runs."""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.photos.data import Counts
from benchmarks.photos.runs import RETRIEVAL, TASKS, Plan
from benchmarks.photos.scoring import BATCH, SPLIT
from finetune.config import MT_EPOCHS, EvaluateConfig, default_batch_size
from finetune.inference.model_loader import load
from finetune.inference.predictions import predict
from finetune.reporting.training_commands import TrainingCommand
from finetune.run_dirs.finished_runs import read_run
from finetune.tasks import find_task
from pretrain.config import PretrainConfig
from pretrain.engine.metrics_logger import duration
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.common.files import read_json, write_json

FIRST_IMAGES = 10  # images ranked at first; doubled until it takes long enough
POLL = 0.2  # seconds between reads of a run's metrics


@dataclass(frozen=True)
class Rates:
    """Pairs per second of pretraining, examples per second of multi-task training, and ranked pairs per second.

    threads: number of threads of each process.
    """

    pretraining: float
    together: float
    ranking: float
    threads: int


def _rates_file(plan: Plan) -> Path:
    return plan.folder.root / "rates.json"


def kept_rates(plan: Plan) -> Rates | None:
    """The rates measured by an earlier call, or None."""
    path = _rates_file(plan)
    return Rates(**read_json(path)) if path.exists() else None


def measured(plan: Plan, seconds: float, threads: int) -> Rates:
    """The rates of a plan's runs, each measured for `seconds`; those of an earlier call are reused."""
    if rates := kept_rates(plan):
        return rates
    kept, folder = _rates_file(plan), plan.folder.root / "measure"
    shutil.rmtree(folder, ignore_errors=True)
    pretraining = replace(plan.pretraining("main"), out=folder / "pretrain")
    together = plan.together("AT")
    together = replace(together, flags=together.flags | {"init": str(pretraining.out)}, out=folder / "mt")
    rates = Rates(
        pretraining=_training_rate(pretraining, seconds, threads),
        together=_training_rate(together, seconds, threads),
        ranking=_ranking_rate(pretraining.out, plan.folder.fold(0), seconds, plan.recipe.score),
        threads=threads,
    )
    write_json(kept, asdict(rates))
    shutil.rmtree(folder)
    return rates


def _training_rate(call: TrainingCommand, seconds: float, threads: int) -> float:
    """Samples per second of a run that is stopped after `seconds` of training: the median over its log."""
    call = replace(call, flags=call.flags | {"log_every": 1})
    log, metrics = call.out.with_suffix(".log"), call.out / "metrics.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen([sys.executable, *call.argv], stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
                time.sleep(POLL)
            until = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < until:
                time.sleep(POLL)
        finally:
            process.terminate()
            status = process.wait()
    if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
        last = (log.read_text(encoding="utf-8").splitlines() or [""])[-1]
        raise UserError(f"{log}: python -m {call.module} ended with status {status}: {last}")
    found = [line["samples_per_second"] for line in read_run(call.out).training]
    return statistics.median(found[1:] or found)


def _ranking_rate(run: Path, data: Path, seconds: float, flags: dict) -> float:
    """Pairs per second that a pretraining run scores, on enough images to take a sixth of `seconds`.

    flags: of finetune.evaluate, without effect of `rerank`: all pairs are scored.
    """
    task = find_task(RETRIEVAL)
    config = EvaluateConfig(run=str(run), task=task.name, data=str(data), **flags)
    task_pass, collator = load(config, task, SPLIT)
    images, count = list(dict.fromkeys(example.images[0] for example in collator.examples)), FIRST_IMAGES
    while True:
        chosen = set(images[:count])
        examples = [example for example in collator.examples if example.images[0] in chosen]
        began = time.perf_counter()
        scores = predict(task_pass, replace(collator, examples=examples), BATCH, 0, ALONE)
        took = time.perf_counter() - began
        if took >= seconds / 6 or count >= len(images):
            return scores.size / took
        count *= 2


def describe(plan: Plan, counts: Counts, rates: Rates) -> str:
    """Sizes, rates, and the estimated time of the main rows, as text."""
    recipe, sizes, flickr = plan.recipe, plan.recipe.sizes, counts.flickr
    config = PretrainConfig(**recipe.pretrain).with_size_defaults()
    images = sum(flickr.values())
    captions = counts.captions // images if config.captions_per_image == "all" else 1
    pairs = flickr["train"] * captions
    captions_dev, rerank = counts.captions * flickr["dev"] // images, recipe.score.get("rerank")
    ranked = captions_dev * flickr["dev"]
    if rerank:
        ranked = min(ranked, (captions_dev + flickr["dev"]) * rerank)
    steps = sum(default_batch_size(find_task(name), sizes) for name in TASKS)
    lines = [
        f"Flickr8k: {flickr['train']} photographs to train on, {flickr['val']} to choose checkpoints by, "
        f"{flickr['dev']} of the development part; {flickr['removed']} of other development parts removed",
        f"DAQUAR: {counts.daquar['train']} photographs to train on, {counts.daquar['dev']} of the development part; "
        f"e-SNLI-VE: {counts.esnli_ve} pairs",
        f"measured with {rates.threads} threads a process:",
        f"  pretraining {rates.pretraining:.0f} pairs/s: {duration(pairs * config.epochs / rates.pretraining)} for "
        f"{config.epochs} epochs of {pairs} pairs",
        f"  all tasks together {rates.together:.0f} examples/s, at most {steps} an iteration"
        + (
            f": {duration(recipe.together['iterations'] * steps / rates.together)}"
            if "iterations" in recipe.together
            else f", for {recipe.together.get('epochs', MT_EPOCHS)} epochs of the longest"
        ),
        f"  ranking {rates.ranking:.0f} pairs/s: {duration(ranked / rates.ranking)} for the {ranked} pairs of a row"
        + (" at most" if rerank else ""),
    ]
    return "\n".join(lines)
