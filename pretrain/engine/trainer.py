"""The training loop: steps, agreement between ranks, logging, validation and checkpoints."""

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pretrain.data.dataloader import check_workers
from pretrain.engine.checkpoint import METADATA, CheckpointWriter, restore
from pretrain.engine.cpu_memory import CpuMemory
from pretrain.engine.device_batches import on_device
from pretrain.engine.distributed import all_reduce_ints, on_first
from pretrain.engine.metrics_logger import Clock, RunLog, duration
from pretrain.engine.optimizer import lr_factor, set_lr
from pretrain.engine.step import Engine, MetricSums
from pretrain.engine.stop_signals import StopSignals
from pretrain.engine.training_log import TrainingLog
from pretrain.engine.training_task import Evaluation, TrainingTask
from shards.common.dist_info import Ranks
from shards.common.errors import ErrorOnAnotherRank, UserError
from shards.common.untrusted_input import reading


@dataclass
class Agreed:
    """Sums over all ranks, known to every rank before a step.

    Attributes:
        interrupted, terminated: number of ranks with SIGINT and with SIGTERM.
        save: number of ranks on which a checkpoint is due, 0 or 1.
        bad_samples: number of skipped samples.
        denominators: see TrainingTask.denominators.
    """

    interrupted: int
    terminated: int
    save: int
    bad_samples: int
    denominators: list[int]

    @property
    def samples(self) -> int:
        """Number of samples of the step."""
        return self.denominators[-1]

    @property
    def signal(self) -> int | None:
        return signal.SIGTERM if self.terminated else signal.SIGINT if self.interrupted else None


class RunFlags(Protocol):
    """The flags of a run that its trainer uses."""

    out: str
    warmup: float
    log_every: int
    log_to: str | None
    save_minutes: float


@dataclass
class Trainer:
    """Trains a task from its first step to its end.

    Attributes:
        config: flags of the run, a dataclass.
        resumed: content of checkpoint.json of the checkpoint that is resumed; empty for a new run.
        bad_samples: number of skipped samples so far, over all ranks.
        trained: number of steps so far, without those in which no task trained; the learning rate follows it.
    """

    config: RunFlags
    engine: Engine
    task: TrainingTask
    resumed: dict = field(default_factory=dict)

    def __post_init__(self):
        self.ranks: Ranks = self.engine.ranks
        self.bad_samples: int = self.resumed.get("bad_samples", 0)
        self.trained: int = self.resumed.get("trained", self.task.schedule.first_step)

    def run(self) -> tuple[int, dict]:
        """Trains to the end.

        Returns:
            The exit status, 0 or 128 + the signal that stopped the run, and the last validation scores, empty if the
            run was stopped or was already finished.
        """
        schedule, out, began = self.task.schedule, self.config.out, time.perf_counter()
        if schedule.first_step >= schedule.total_steps or self.task.stopped_early:
            self.ranks.log("this run is already finished")
            return 0, {}
        with StopSignals(self.ranks.log) as stop, self._opened_log() as log:
            stopped, done, scores = self._train(log, stop)
        if stopped is not None:
            self.ranks.log(f"stopped at step {done} of {schedule.total_steps}; use --resume to continue: {out}{os.sep}")
            return 128 + stopped, {}
        self.ranks.log(f"done in {duration(time.perf_counter() - began)}")
        return 0, scores

    @contextlib.contextmanager
    def _opened_log(self) -> Iterator[RunLog | None]:
        """Context manager of the log on the first rank, None on other ranks; an error ends all ranks."""
        config, first_step, logs = self.config, self.task.schedule.first_step, []
        flags = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
        # The result of on_first is sent to the other ranks, and a log cannot be sent.
        on_first(self.ranks, lambda: logs.append(RunLog(config.out, first_step, config.log_to, flags)))
        try:
            yield logs[0] if logs else None
        finally:
            for log in logs:
                log.close()

    def _train(self, log: RunLog | None, stop: StopSignals) -> tuple[int | None, int, dict]:
        """Takes the steps.

        Args:
            log: the log on the first rank; None on other ranks.
            stop: the signals so far.

        Returns:
            The signal that stopped training (None if it finished), the number of completed steps, and the last
            validation scores.
        """
        task, engine, schedule, config = self.task, self.engine, self.task.schedule, self.config
        clock, memory = Clock(), CpuMemory(task.device)
        evaluation: Evaluation | None = None  # after the newest step
        training_log = TrainingLog(task, engine, log, self.resumed.get("unlogged", {}))
        saving = Saving(config.out, config.save_minutes, engine)
        reported: set[str] = set()
        batches = task.batches()
        saved = done = schedule.first_step
        seen, skipped_before = 0, self.bad_samples  # samples in this process, and in the run's earlier ones
        finished = False
        engine.model.train()
        with contextlib.closing(batches), check_workers(task.worker_status), saving:
            ready = on_device(batches, task.device)
            while not finished:
                with clock.waiting():
                    parts, failure = _next(ready)
                agreed = self._agree(parts, stop, failure or saving.failure, saving.due)
                if agreed.signal:
                    break
                _report(parts, reported)
                lr = self._take_step(done, parts, agreed, training_log.sums)
                done += 1
                clock.samples += agreed.samples
                seen += agreed.samples
                memory.after_step(done)
                last = done == schedule.total_steps
                if done % config.log_every == 0 or last:
                    training_log.training(done, lr, self.bad_samples, clock)
                training_log.extra_line(done)
                evaluation = None
                if task.validation_due(done) or last:
                    evaluation = training_log.validation(done)
                    clock.restart()
                selection = evaluation.selection if evaluation else None
                finished = last or task.stopped_early
                if finished:
                    _check_trained(engine, done, seen, self.bad_samples - skipped_before, selection)
                if done % task.save_every == 0 or finished or agreed.save:
                    saving.save(done, self._metadata(done, evaluation, training_log), selection)
                    saved = done
            if not finished and (done > saved or done == 0):
                if training_log.sums.values:
                    training_log.training(done, lr, self.bad_samples, clock)
                saving.save(done, self._metadata(done, None, training_log), None)
        return None if finished else agreed.signal, done, evaluation.scores if evaluation else {}

    def _agree(self, parts: list, stop: StopSignals, failure: Exception | None, save: bool) -> Agreed:
        """Tells all ranks what each has. Raises the error of this rank, or ErrorOnAnotherRank for that of another."""
        own = [
            int(stop.signal == signal.SIGINT),
            int(stop.signal == signal.SIGTERM),
            int(failure is not None),
            int(save),
            sum(len(part.problems) for part in parts),
            *self.task.denominators(parts),
        ]
        interrupted, terminated, failed, save, bad_samples, *denominators = all_reduce_ints(own, self.ranks)
        if failed:
            raise failure or ErrorOnAnotherRank("another rank has stopped")
        return Agreed(interrupted, terminated, save, bad_samples, denominators)

    def _take_step(self, step: int, parts: list, agreed: Agreed, sums: MetricSums) -> float:
        """Takes a step with this rank's batches, and returns its learning rate."""
        lr = self._set_lr()
        self.task.take_step(self.engine, step, parts, sums, agreed.denominators)
        self.engine.skipped.check()
        self.bad_samples += agreed.bad_samples
        self.trained += bool(parts)
        return lr

    def _set_lr(self) -> float:
        """Sets and returns the learning rate of the next step."""
        lr = self.task.peak_lr * lr_factor(self.trained, self.task.schedule.total_steps, self.config.warmup)
        set_lr(self.engine.optimizer, lr)
        return lr

    def _metadata(self, done: int, evaluation: Evaluation | None, training_log: TrainingLog) -> dict:
        """The content of checkpoint.json after `done` steps, without the engine's state."""
        metadata = {
            "total_steps": self.task.schedule.total_steps,
            "scores": evaluation.scores if evaluation else {},
            "bad_samples": self.bad_samples,
            "unlogged": training_log.state(),
            "trained": self.trained,
        }
        return metadata | self.task.state(done)


def _check_trained(engine: Engine, done: int, seen: int, skipped: int, selection: float | None) -> None:
    """Raises UserError for a run without a useful result, because it would otherwise end like a successful one.

    Args:
        done: number of steps.
        seen, skipped: number of samples that this process has trained on, and of those that could not be used.
        selection: the last validation score, None without.
    """
    engine.skipped.check(wait=True)
    if skipped and not seen:
        raise UserError("all samples were skipped; see the printed errors and fix the data")
    if not engine.skipped.applied:
        raise UserError(
            f"none of the {engine.skipped.count} optimizer steps changed the weights: their gradients were not finite; "
            "use a lower --lr or another --precision, or check the features"
        )
    if selection is not None and not math.isfinite(selection):
        raise UserError(
            f"the validation loss after {done} steps is {-selection}: the weights have diverged; start a new run with "
            "a lower --lr or another --precision, or check the features"
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
    metadata = restore(checkpoint, engine.model, engine.optimizer, engine.ranks)
    with reading(checkpoint / METADATA):
        engine.restore(metadata)
    return metadata


class Saving:
    """Context manager that writes checkpoints in the background, on the first rank; exit waits for them."""

    def __init__(self, out, minutes: float, engine: Engine):
        self.minutes, self.engine, self.ranks = minutes, engine, engine.ranks
        self.writer = CheckpointWriter(out) if self.ranks.first else None
        self.last = time.monotonic()

    @property
    def failure(self) -> Exception | None:
        """The error of the last checkpoint that could not be written; always None on ranks other than the first."""
        return self.writer.failure if self.writer else None

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is older than --save_minutes, on the first rank."""
        return self.writer is not None and 0 < self.minutes * 60 <= time.monotonic() - self.last

    def save(self, done: int, metadata: dict, selection: float | None) -> None:
        """Starts writing a checkpoint.

        Args:
            done: number of steps so far.
            metadata: content of checkpoint.json, to which the engine's state is added.
            selection: score that selects the best checkpoint, see Evaluation.
        """
        engine = self.engine
        engine.skipped.check(wait=True)
        metadata = metadata | engine.state()
        on_first(self.ranks, lambda: self.writer.save(done, engine.model, engine.optimizer, metadata, selection))
        self.last = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            on_first(self.ranks, lambda: self.writer.wait())
        elif self.writer:  # the error that ends the run takes precedence over that of the checkpoint
            with contextlib.suppress(UserError):
                self.writer.wait()
