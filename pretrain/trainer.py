"""The pretraining loop: steps, logs, validation, checkpoints, and stopping when asked to."""

import contextlib
import resource
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import torch

from pretrain.batch import Batch
from pretrain.checkpoint import save_checkpoint
from pretrain.distributed import add_up_numbers, on_first
from pretrain.job import Job
from pretrain.logs import Clock, RunLog, duration
from pretrain.optimizer import lr_factor, set_lr
from pretrain.sources import Places, training_steps, watched_workers
from pretrain.step import Sums
from pretrain.validate import validate
from pretrain.work import means
from shards.errors import ErrorElsewhere, UserError

TOGETHER = 2.0  # seconds within which signals are one: a terminal's Ctrl-C comes once more by way of torchrun


class Stop:
    """Notes SIGINT and SIGTERM so that the step in progress ends well; a later one ends at once."""

    def __init__(self, say=print):
        self.signal: int | None = None
        self.say, self.at = say, 0.0

    def __enter__(self):
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, _) -> None:
        if self.signal is None:
            self.signal, self.at = number, time.monotonic()
            self.say("stopping after this step; once more to stop at once")
        elif time.monotonic() - self.at > TOGETHER:
            raise KeyboardInterrupt

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


@dataclass
class Agreed:
    """What all ranks know before a step: sums over them."""

    words: int
    regions: int
    pairs: int
    interrupted: int
    terminated: int
    failed: int
    bad_samples: int

    @property
    def signal(self) -> int | None:
        return signal.SIGTERM if self.terminated else signal.SIGINT if self.interrupted else None


def _agree(job: Job, parts: list[Batch], stop: Stop, failure: UserError | None) -> Agreed:
    own = Agreed(
        words=sum(part.word_count for part in parts),
        regions=sum(part.region_count for part in parts),
        pairs=sum(map(len, parts)),
        interrupted=stop.signal == signal.SIGINT,
        terminated=stop.signal == signal.SIGTERM,
        failed=failure is not None,
        bad_samples=sum(len(part.problems) for part in parts),
    )
    return Agreed(*add_up_numbers(list(map(int, asdict(own).values())), job.ranks))


def on_device(steps: Iterable[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """The parts of every step on the device; to a GPU, the next step's travel while this one is computed."""
    if device.type != "cuda":
        yield from steps
        return
    stream, waiting = torch.cuda.Stream(device), None
    for parts in steps:
        with torch.cuda.stream(stream):
            following = [part.to(device) for part in parts], stream.record_event()
        if waiting:
            yield _arrived(*waiting)
        waiting = following
    if waiting:
        yield _arrived(*waiting)


def _arrived(parts: list[Batch], event: torch.cuda.Event) -> list[Batch]:
    stream = torch.cuda.current_stream()
    stream.wait_event(event)
    for part in parts:
        part.record_stream(stream)
    return parts


def train(job: Job, log: RunLog | None) -> tuple[int | None, int, dict]:
    """Trains from plan.first_step to the end.

    log: of the first rank, None on the others. Returns the signal that stopped it (None: it is done), the steps
    that are done, and the last scores.
    """
    config, plan, engine = job.config, job.plan, job.engine
    sums, clock, progress, scores = Sums(), Clock(), Progress(job, log), {}
    places, reported = Places(plan.workers, job.pairs.shards), set()
    steps = training_steps(job.pairs, job.collator, plan, places, pin=job.device.type == "cuda")
    saved = done = plan.first_step
    engine.model.train()
    with Stop(job.ranks.say) as stop, contextlib.closing(steps), watched_workers(places):
        ready, agreed = on_device(steps, job.device), None
        while done < plan.total_steps:
            with clock.waiting():
                parts, failure = _next(ready)
            agreed = _agree(job, parts, stop, failure)
            if agreed.failed:
                raise failure or ErrorElsewhere("another rank has stopped")
            if agreed.signal:
                break
            _report(parts, reported)
            job.bad_samples += agreed.bad_samples
            set_lr(engine.optimizer, config.lr * lr_factor(done, plan.total_steps, config.warmup))
            engine.step(done, parts, sums, (agreed.words, agreed.regions, agreed.pairs))
            engine.skipped.check()
            clock.samples += agreed.pairs
            done += 1
            last = done == plan.total_steps
            if done % config.log_every == 0 or last:
                progress.training(done, sums, clock)
            if done % config.save_every == 0 or last:
                scores = progress.validation(done)
                _save(job, done, scores)
                saved = done
                clock.restart()
    if done < plan.total_steps and (done > saved or done == 0):
        if sums.values:
            progress.training(done, sums, clock)
        _save(job, done, {})
    return agreed.signal if done < plan.total_steps else None, done, scores


def _next(steps: Iterator[list[Batch]]) -> tuple[list[Batch], UserError | None]:
    try:
        return next(steps), None
    except UserError as error:
        return [], error


def _report(parts: list[Batch], reported: set[str]) -> None:
    """Says once for every shard what was wrong with its first sample that was left out."""
    for problem in (problem for part in parts for problem in part.problems):
        shard = problem.partition(": ")[0]
        if shard not in reported:
            reported.add(shard)
            print(f"left out: {problem}; what more of {shard} is left out is counted only", flush=True)


def _save(job: Job, done: int, scores: dict) -> None:
    """A checkpoint, written by the first rank."""
    engine = job.engine
    engine.skipped.check(wait=True)
    facts = {
        "total_steps": job.plan.total_steps,
        "scores": scores,
        "scaler": engine.scaler.state_dict(),
        "skipped_steps": engine.skipped.count,
        "bad_samples": job.bad_samples,
        "stages": [stage.to_dict() for stage in job.plan.stages_at(done)],
    }

    def write() -> None:
        save_checkpoint(job.config.out, done, engine.model, engine.optimizer, facts, scores.get("loss"))

    on_first(job.ranks, write)


class Progress:
    """What a run says of itself as it goes, to its log and on the screen: figures over all ranks."""

    def __init__(self, job: Job, log: RunLog | None):
        self.job, self.log = job, log
        self.began, self.skipped = time.perf_counter(), job.engine.skipped.count

    def training(self, done: int, sums: Sums, clock: Clock) -> None:
        job, plan = self.job, self.job.plan
        values = means(sums.reading(job.ranks))
        job.engine.skipped.check(wait=True)
        skipped, self.skipped = job.engine.skipped.count - self.skipped, job.engine.skipped.count
        rates = clock.reading()
        if self.log is None:
            return
        values |= {
            "epoch": done / plan.steps_per_epoch,
            "samples": plan.samples_before(done),
            "lr": job.config.lr * lr_factor(done - 1, plan.total_steps, job.config.warmup),
            "skipped_steps": skipped,
            "bad_samples": job.bad_samples,
            "memory_gb": memory(job.device) / 1e9,
        }
        self.log.write(done, "train", values | rates)
        left = (time.perf_counter() - self.began) / (done - plan.first_step) * (plan.total_steps - done)
        job.ranks.say(
            f"step {done}/{plan.total_steps}  loss: words {values['loss_words']:.3f} regions "
            f"{values['loss_regions']:.3f} alignment {values['loss_alignment']:.3f}  accuracy: words "
            f"{values['word_accuracy']:.1%} alignment {values['alignment_accuracy']:.1%}  "
            f"{rates['samples_per_second']:.0f} pairs/s  {duration(left)} left"
            + (f"  {skipped} steps skipped: gradients not finite" if skipped else "")
        )

    def validation(self, done: int) -> dict:
        job = self.job
        if not len(job.validation):
            return {}
        scores = validate(job.work, job.validation, job.device, job.frequent_word)
        if self.log is not None:
            self.log.write(done, "validation", scores)
        job.ranks.say(f"step {done}/{job.plan.total_steps}  held out: {describe_scores(scores)}")
        return scores


def memory(device: torch.device) -> int:
    """The most bytes that this process has held: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe_scores(scores: dict) -> str:
    return (
        f"alignment {scores['alignment_accuracy']:.1%} (chance {scores['alignment_chance']:.1%}), "
        f"masked words {scores['word_accuracy']:.1%} (most frequent word {scores['word_chance']:.1%}), "
        f"loss {scores['loss']:.3f}, on {scores['pairs']} pairs"
    )
