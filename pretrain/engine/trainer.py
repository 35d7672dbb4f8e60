"""The training loop: steps, logging, validation, checkpoints, and signal handling.

The model, data and losses are given by a TrainingRun: that of pretraining is in pretrain/build.py, those of tasks are
in finetune/training.
"""

import contextlib
import dataclasses
import math
import os
import resource
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from pretrain.data.batch_schedule import Plan
from pretrain.data.dataloader import Places, check_workers
from pretrain.engine.checkpoint import FACTS, CheckpointWriter, restore
from pretrain.engine.distributed import all_reduce_ints, on_first
from pretrain.engine.metrics_logger import Clock, RunLog, duration
from pretrain.engine.optimizer import lr_factor, set_lr
from pretrain.engine.step import Engine, Sums
from shards.common.dist_info import Ranks
from shards.common.errors import ErrorOnAnotherRank, UserError
from shards.common.untrusted_input import reading

TOGETHER = 2.0  # seconds within which signals count as one: torchrun forwards the Ctrl-C of a terminal a second time


@dataclass
class TrainingRun(ABC):
    """The interface between the training loop and a kind of run.

    A batch has __len__, to(device), pin_memory(), record_stream(stream), and `problems`, the error messages of skipped
    samples.

    Attributes:
        config: flags of the run; the loop uses out, lr, warmup, log_to, log_every and save_minutes.
        bad_samples: number of skipped samples so far, over all ranks.
        unlogged: result of Progress.state at the checkpoint that is resumed.
    """

    samples: ClassVar[str] = "samples"  # the plural for a sample in console output

    config: object
    ranks: Ranks
    device: torch.device
    plan: Plan
    engine: Engine
    places: Places
    bad_samples: int
    unlogged: dict = field(default_factory=dict, kw_only=True)

    @abstractmethod
    def steps(self) -> Iterator[list | None]:
        """This rank's batches of every step from plan.first_step, one per accumulation step.

        None between two steps means that the next one depends on the results of the previous ones.
        """

    @abstractmethod
    def counts(self, parts: list) -> list[int]:
        """This rank's part of the denominators of the losses of a step; the last is the number of samples."""

    @abstractmethod
    def means(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics for the log, from the metric sums of the engine."""

    @abstractmethod
    def describe(self, values: dict) -> str:
        """The part of a progress line with the metrics, from the result of `means`."""

    @abstractmethod
    def validate(self, done: int) -> dict:
        """Validation scores after `done` steps, equal on all ranks; empty without validation data."""

    @abstractmethod
    def describe_scores(self, scores: dict) -> str:
        """Formats validation scores for the console."""

    @abstractmethod
    def selection_score(self, scores: dict) -> float | None:
        """The score that selects the best checkpoint; higher is better."""

    @property
    def save_every(self) -> int:
        """Steps between two checkpoints."""
        return self.config.save_every

    def validates_after(self, done: int) -> bool:
        """Whether to validate after `done` steps; the last step is always followed by validation."""
        return done % self.save_every == 0

    def take(self, step: int, parts: list, sums: Sums, counts: list[int]) -> None:
        """Takes an optimizer step. counts: denominators, summed over all ranks."""
        self.engine.step(step, parts, sums, counts)

    def so_far(self, done: int) -> dict:
        """The fields of a log line that measure progress after `done` steps."""
        return {"epoch": done / self.plan.steps_per_epoch, "samples": self.plan.samples_before(done)}

    @property
    def peak_lr(self) -> float:
        return self.config.lr

    def set_lr(self, step: int) -> float:
        """Sets and returns the learning rate of a step."""
        lr = self.peak_lr * lr_factor(step, self.plan.total_steps, self.config.warmup)
        set_lr(self.engine.optimizer, lr)
        return lr

    def over(self) -> bool:
        """Whether to stop early; called after each validation."""
        return False

    def facts(self, done: int) -> dict:
        """Additional fields of checkpoint.json after `done` steps."""
        return {}


class Stop:
    """Defers signals that stop a run to the end of the current step; a second one interrupts immediately.

    SIGHUP, sent when a terminal is closed, counts as SIGTERM, unless it is ignored, as under nohup.
    """

    def __init__(self, log=print):
        self.signal: int | None = None
        self.log, self.at = log, 0.0

    def __enter__(self):
        self.terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number, _) -> None:
        if number == signal.SIGHUP:
            self._leave_terminal()
            number = signal.SIGTERM
        if self.signal is None:
            self.signal, self.at = number, time.monotonic()
            self.log("stopping after this step; send the signal again to stop immediately")
        elif time.monotonic() - self.at > TOGETHER:
            raise KeyboardInterrupt

    def _leave_terminal(self) -> None:
        """Discards further output to the terminal, because writing to a closed one is an error."""
        with open(os.devnull, "w") as nowhere:
            for descriptor in self.terminals:
                os.dup2(nowhere.fileno(), descriptor)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def complete(training_run: TrainingRun) -> tuple[int, dict]:
    """Trains a run to its end.

    Returns:
        The exit status, 0 or 128 + the signal that stopped the run, and the last validation scores, empty if the run
        was stopped or was already finished.
    """
    ranks, plan, out, began = training_run.ranks, training_run.plan, training_run.config.out, time.perf_counter()
    if plan.first_step >= plan.total_steps or training_run.over():
        ranks.log("this run is already finished")
        return 0, {}
    with _opened_log(training_run) as log:
        stopped, done, scores = train(training_run, log)
    if stopped is not None:
        ranks.log(f"stopped at step {done} of {plan.total_steps}; use --resume to continue: {out}{os.sep}")
        return 128 + stopped, {}
    ranks.log(f"done in {duration(time.perf_counter() - began)}")
    return 0, scores


@contextlib.contextmanager
def _opened_log(training_run: TrainingRun) -> Iterator[RunLog | None]:
    """Context manager of the log on the first rank, None on other ranks; an error ends all ranks."""
    config, first_step, logs = training_run.config, training_run.plan.first_step, []
    flags = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    # The result of on_first is sent to the other ranks, and a log cannot be sent.
    on_first(training_run.ranks, lambda: logs.append(RunLog(config.out, first_step, config.log_to, flags)))
    try:
        yield logs[0] if logs else None
    finally:
        for log in logs:
            log.close()


@dataclass
class Agreed:
    """Sums over all ranks, known to every rank before a step.

    Attributes:
        interrupted, terminated, failed: number of ranks with SIGINT, with SIGTERM, and with an error.
        save: whether a checkpoint is due.
        bad_samples: number of skipped samples.
        counts: see TrainingRun.counts.
    """

    interrupted: int
    terminated: int
    failed: int
    save: int
    bad_samples: int
    counts: list[int]

    @property
    def signal(self) -> int | None:
        return signal.SIGTERM if self.terminated else signal.SIGINT if self.interrupted else None


def _agree(training_run: TrainingRun, parts: list, stop: Stop, failure: Exception | None, save: bool) -> Agreed:
    own = [
        int(stop.signal == signal.SIGINT),
        int(stop.signal == signal.SIGTERM),
        int(failure is not None),
        int(save),
        sum(len(part.problems) for part in parts),
        *training_run.counts(parts),
    ]
    interrupted, terminated, failed, save, bad_samples, *counts = all_reduce_ints(own, training_run.ranks)
    return Agreed(interrupted, terminated, failed, save, bad_samples, counts)


def on_device(steps: Iterable[list | None], device: torch.device) -> Iterator[list]:
    """Moves the batches of every step to the device; on a GPU, the next copy overlaps with the current step."""
    if device.type != "cuda":
        yield from (parts for parts in steps if parts is not None)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for parts in steps:
        if parts is None:
            if waiting:
                yield _arrived(*waiting)
            waiting = None
            continue
        with torch.cuda.stream(stream):
            following = [part.to(device) for part in parts], stream.record_event()
        if waiting:
            yield _arrived(*waiting)
        waiting = following
    if waiting:
        yield _arrived(*waiting)


def _arrived(parts: list, event: torch.cuda.Event) -> list:
    stream = torch.cuda.current_stream()
    stream.wait_event(event)
    for part in parts:
        part.record_stream(stream)
    return parts


def train(training_run: TrainingRun, log: RunLog | None) -> tuple[int | None, int, dict]:
    """Trains from plan.first_step to the end.

    Args:
        log: the log on the first rank; None on other ranks.

    Returns:
        The signal that stopped training (None if it finished), the number of completed steps, and the last validation
        scores.
    """
    config, plan, engine = training_run.config, training_run.plan, training_run.engine
    clock, progress, scores = Clock(), Progress(training_run, log), {}
    sums = Sums.restored(training_run.unlogged.get("sums", []), training_run.ranks, training_run.device)
    saving = Saving(training_run)
    reported: set[str] = set()
    steps = training_run.steps()
    saved = done = plan.first_step
    seen = 0  # samples, in this process
    over = False
    engine.model.train()
    with Stop(training_run.ranks.log) as stop, contextlib.closing(steps), check_workers(training_run.places), saving:
        ready, agreed = on_device(steps, training_run.device), None
        while done < plan.total_steps and not over:
            with clock.waiting():
                parts, failure = _next(ready)
            failure = failure or saving.failure
            agreed = _agree(training_run, parts, stop, failure, saving.due)
            if agreed.failed:
                raise failure or ErrorOnAnotherRank("another rank has stopped")
            if agreed.signal:
                break
            _report(parts, reported)
            training_run.bad_samples += agreed.bad_samples
            lr = training_run.set_lr(done)
            training_run.take(done, parts, sums, agreed.counts)
            engine.skipped.check()
            clock.samples += agreed.counts[-1]
            seen += agreed.counts[-1]
            done += 1
            last = done == plan.total_steps
            if done % config.log_every == 0 or last:
                progress.training(done, lr, sums, clock)
            scores = {}
            if training_run.validates_after(done) or last:
                scores = progress.validation(done)
                over = training_run.over()
                clock.restart()
            if last or over:
                _check_trained(engine, done, seen, training_run.selection_score(scores) if scores else None)
            if done % training_run.save_every == 0 or last or over or agreed.save:
                saving.save(done, scores, progress.state(sums))
                saved = done
        finished = over or done == plan.total_steps
        if not finished and (done > saved or done == 0):
            if sums.values:
                progress.training(done, lr, sums, clock)
            saving.save(done, {}, progress.state(sums))
    return None if finished else agreed.signal, done, scores


def _check_trained(engine: Engine, done: int, seen: int, score: float | None) -> None:
    """Raises UserError for a run without a useful result, because it would otherwise end like a successful one.

    No step changed the weights, or the last validation score is not finite.
    """
    engine.skipped.check(wait=True)
    if engine.skipped.count >= done:
        raise UserError(
            f"none of the {done} steps changed the weights: their gradients were not finite; use a lower --lr or "
            "another --precision, or check the features"
        )
    if not seen:
        raise UserError("all samples were skipped; see the printed errors and fix the data")
    if score is not None and not math.isfinite(score):
        raise UserError(
            f"the validation loss after {done} steps is {-score}: the weights have diverged; start a new run with a "
            "lower --lr or another --precision, or check the features"
        )


def _next(steps: Iterator[list]) -> tuple[list, UserError | None]:
    try:
        return next(steps), None
    except UserError as error:
        return [], error


def _report(parts: list, reported: set[str]) -> None:
    """Prints the error of the first skipped sample of every shard."""
    for problem in (problem for part in parts for problem in part.problems):
        shard = problem.partition(": ")[0]
        if shard not in reported:
            reported.add(shard)
            print(f"skipped: {problem} (more skipped samples of {shard} are counted without a message)", flush=True)


def restore_engine(engine: Engine, checkpoint: Path) -> dict:
    """Restores the engine of every rank from a checkpoint; returns the content of checkpoint.json."""
    facts = restore(checkpoint, engine.model, engine.optimizer, engine.ranks)
    with reading(checkpoint / FACTS):
        engine.restore(facts)
    return facts


class Saving:
    """Context manager that writes checkpoints in the background, on the first rank; exit waits for them."""

    def __init__(self, training_run: TrainingRun):
        self.training_run, self.minutes = training_run, training_run.config.save_minutes
        self.writer = CheckpointWriter(training_run.config.out) if training_run.ranks.first else None
        self.last = time.monotonic()

    @property
    def failure(self) -> Exception | None:
        """The error of the last checkpoint that could not be written; always None on ranks other than the first."""
        return self.writer.failure if self.writer else None

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is older than --save_minutes, on the first rank."""
        return self.writer is not None and 0 < self.minutes * 60 <= time.monotonic() - self.last

    def save(self, done: int, scores: dict, unlogged: dict) -> None:
        """Starts writing a checkpoint after `done` steps. unlogged: see Progress.state."""
        training_run, engine = self.training_run, self.training_run.engine
        engine.skipped.check(wait=True)
        facts = {
            "total_steps": training_run.plan.total_steps,
            "scores": scores,
            "bad_samples": training_run.bad_samples,
            "unlogged": unlogged,
        }
        facts |= engine.state() | training_run.facts(done)
        score = training_run.selection_score(scores) if scores else None
        on_first(training_run.ranks, lambda: self.writer.save(done, engine.model, engine.optimizer, facts, score))
        self.last = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            on_first(self.training_run.ranks, lambda: self.writer.wait())
        elif self.writer:  # the error that ends the run takes precedence over that of the checkpoint
            with contextlib.suppress(UserError):
                self.writer.wait()


class Progress:
    """Writes metrics over all ranks to the log and to the console."""

    def __init__(self, training_run: TrainingRun, log: RunLog | None):
        self.training_run, self.log = training_run, log
        self.began = time.perf_counter()
        self.skipped = training_run.unlogged.get("skipped", training_run.engine.skipped.count)

    def state(self, sums: Sums) -> dict:
        """State for a checkpoint between two log lines: the sums of the steps since the last line.

        `skipped` is the number of skipped steps at the last line.
        """
        return {"sums": sums.state(self.training_run.ranks), "skipped": self.skipped}

    def training(self, done: int, lr: float, sums: Sums, clock: Clock) -> None:
        training_run, plan, skips = self.training_run, self.training_run.plan, self.training_run.engine.skipped
        values = training_run.means(sums.reading(training_run.ranks))
        skips.check(wait=True)
        skipped, self.skipped = skips.count - self.skipped, skips.count
        rates = clock.reading()
        if self.log is None:
            return
        values |= training_run.so_far(done) | {
            "lr": lr,
            "skipped_steps": skipped,
            "bad_samples": training_run.bad_samples,
            "memory_gb": memory(training_run.device) / 1e9,
        }
        self.log.write(done, "train", values | rates)
        left = (time.perf_counter() - self.began) / (done - plan.first_step) * (plan.total_steps - done)
        training_run.ranks.log(
            f"step {done}/{plan.total_steps}  {training_run.describe(values)}  "
            f"{rates['samples_per_second']:.0f} {training_run.samples}/s  {duration(left)} left"
            + (f"  {skipped} steps skipped: gradients not finite" if skipped else "")
        )

    def validation(self, done: int) -> dict:
        scores = self.training_run.validate(done)
        if scores:
            if self.log is not None:
                self.log.write(done, "validation", scores)
            described = self.training_run.describe_scores(scores)
            self.training_run.ranks.log(f"step {done}/{self.training_run.plan.total_steps}  validation: {described}")
        return scores


def memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: allocated GPU memory, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
