"""The pretraining loop: steps, logs, validation, checkpoints, and stopping when asked to."""

import contextlib
import math
import signal
import time
from dataclasses import dataclass, field

import torch

from pretrain.batch import Batch
from pretrain.checkpoint import save_checkpoint
from pretrain.job import Job
from pretrain.logs import Clock, RunLog, duration
from pretrain.optimizer import lr_factor, set_lr
from pretrain.sources import training_batches
from pretrain.validate import validate
from shards.errors import UserError


@dataclass
class Sums:
    """Running sums between two lines of the log, kept on the device so that no step waits for it."""

    values: dict[str, torch.Tensor | float] = field(default_factory=dict)

    def add(self, **values) -> None:
        for name, value in values.items():
            self.values[name] = self.values.get(name, 0) + value

    def reading(self) -> dict[str, float]:
        """Means of what was added, as plain numbers; the sums begin anew."""
        v = {name: float(value) for name, value in self.values.items()}
        self.values = {}
        words, regions, pairs = max(v["word_count"], 1), max(v["region_count"], 1), v["pairs"]
        valid = max(v["valid"], 1)
        return {
            "loss": v["words"] / words + v["regions"] / regions + v["alignment"] / pairs,
            "loss_words": v["words"] / words,
            "loss_regions": v["regions"] / regions,
            "loss_alignment": v["alignment"] / pairs,
            "word_accuracy": v["words_right"] / words,
            "alignment_accuracy": v["alignment_right"] / pairs,
            "gradient_norm": v["gradient_norm"] / v["steps"],
            "hidden_by_choice": v["zeroed"] / valid,
            "hidden_by_overlap": (v["hidden"] - v["zeroed"]) / valid,
        }


class Stop:
    """Notes SIGINT and SIGTERM so that the step in progress ends well; a second one ends at once."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self):
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, _) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print("stopping after this step; once more to stop at once", flush=True)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def step(job: Job, batch: Batch, number: int, sums: Sums) -> None:
    """One optimizer step on a batch."""
    batch = batch.to(job.device)
    inputs = job.objective.mask(batch)
    with job.autocast():
        losses = job.objective.losses(job.model, batch, inputs)
    loss = losses.total(losses.word_count, losses.region_count, losses.pair_count)
    loss.backward()
    limit = job.config.clip or math.inf
    norm = torch.nn.utils.clip_grad_norm_(job.model.parameters(), limit)
    set_lr(job.optimizer, job.config.lr * lr_factor(number, job.total_steps, job.config.warmup))
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    sums.add(
        words=losses.words.detach(),
        regions=losses.regions.detach(),
        alignment=losses.alignment.detach(),
        words_right=losses.words_right,
        alignment_right=losses.alignment_right,
        word_count=losses.word_count,
        region_count=losses.region_count,
        pairs=losses.pair_count,
        gradient_norm=norm,
        steps=1,
        zeroed=inputs.hidden.zeroed.sum(),
        hidden=inputs.hidden.hidden.sum(),
        valid=batch.valid.sum(),
    )


def train(job: Job, log: RunLog) -> tuple[int | None, int, dict]:
    """Trains from job.first_step to the end.

    Returns the signal that stopped it (None: it is done), the steps that are done, and the last scores.
    """
    config, run = job.config, job.config.out
    sums, clock, scores = Sums(), Clock(), {}
    began = time.perf_counter()
    batches = training_batches(
        job.pairs,
        job.collator,
        epochs=config.epochs,
        batch_size=config.batch_size,
        first_step=job.first_step,
        workers=config.workers,
        pin=job.device.type == "cuda",
    )
    job.model.train()
    with Stop() as stop, contextlib.closing(batches):  # closing ends the data workers
        for number in range(job.first_step, job.total_steps):
            waiting = time.perf_counter()
            batch = next(batches)
            clock.waited += time.perf_counter() - waiting
            step(job, batch, number, sums)
            clock.samples += len(batch)
            done = number + 1
            stopped = stop.signal  # read once: it may come at any moment, also while this step is being logged
            last = done == job.total_steps or stopped is not None
            if done % config.log_every == 0 or last:
                _log_training(job, log, done, sums.reading(), clock, began)
            if done % config.save_every == 0 or last:
                scores = _validate(job, log, done) if stopped is None else {}
                save_checkpoint(run, done, job.model, job.optimizer, _facts(job, done, scores), scores.get("loss"))
                clock.restart()
            if stopped is not None:
                return stopped, done, scores
    return None, done, scores


def _facts(job: Job, done: int, scores: dict) -> dict:
    return {"optimizer_steps": done, "total_steps": job.total_steps, "scores": scores}


def _log_training(job: Job, log: RunLog, done: int, means: dict, clock: Clock, began: float) -> None:
    if not math.isfinite(means["loss"]):
        raise UserError(f"the loss is not finite at step {done}; lower --lr, or look for bad features in the data")
    rates = clock.reading()
    epoch = (done - 1) // job.steps_per_epoch
    pairs = len(job.pairs.training)
    samples = epoch * pairs + min((done - epoch * job.steps_per_epoch) * job.config.batch_size, pairs)
    lr = job.config.lr * lr_factor(done - 1, job.total_steps, job.config.warmup)
    log.write(done, "train", {"epoch": done / job.steps_per_epoch, "samples": samples, "lr": lr} | means | rates)
    left = (time.perf_counter() - began) / (done - job.first_step) * (job.total_steps - done)
    print(
        f"step {done}/{job.total_steps}  loss: words {means['loss_words']:.3f} regions {means['loss_regions']:.3f} "
        f"alignment {means['loss_alignment']:.3f}  accuracy: words {means['word_accuracy']:.1%} "
        f"alignment {means['alignment_accuracy']:.1%}  {rates['samples_per_second']:.0f} pairs/s  "
        f"{duration(left)} left",
        flush=True,
    )


def _validate(job: Job, log: RunLog, done: int) -> dict:
    if not len(job.validation):
        return {}
    scores = validate(job.model, job.objective, job.validation, job.device, job.frequent_word, job.autocast)
    log.write(done, "validation", scores)
    print(f"step {done}/{job.total_steps}  held out: {describe_scores(scores)}", flush=True)
    return scores


def describe_scores(scores: dict) -> str:
    return (
        f"alignment {scores['alignment_accuracy']:.1%} (chance {scores['alignment_chance']:.1%}), "
        f"masked words {scores['word_accuracy']:.1%} (most frequent word {scores['word_chance']:.1%}), "
        f"loss {scores['loss']:.3f}, on {scores['pairs']} pairs"
    )
