"""Metrics of a run, summed over all ranks, for its log and the console."""

import resource
import sys
import time

import torch

from pretrain.engine.metrics_logger import Clock, RunLog, duration
from pretrain.engine.step import Engine, MetricSums
from pretrain.engine.training_task import Evaluation, TrainingTask
from shards.common.counted import counted

# A validation that takes a larger share of a run, and more seconds in total, is reported.
LARGE, LONG = 0.05, 300.0


class TrainingLog:
    """Writes metrics over all ranks to the log and to the console."""

    def __init__(self, task: TrainingTask, engine: Engine, log: RunLog | None, unlogged: dict):
        self.task, self.engine, self.log = task, engine, log
        self.ranks = engine.ranks
        self.began = time.perf_counter()
        self.sums = MetricSums.restored(unlogged.get("sums", []), self.ranks, task.device)
        self.skipped = unlogged.get("skipped", engine.skipped.count)
        self.cost = ValidationCost(task)

    def state(self) -> dict:
        """State for a checkpoint between two log lines: the sums of the steps since the last line.

        `skipped` is the number of skipped steps at the last line.
        """
        return {"sums": self.sums.state(self.ranks), "skipped": self.skipped}

    def training(self, done: int, lr: float, bad_samples: int, clock: Clock) -> None:
        """Logs the steps since the last line."""
        task, schedule, skips = self.task, self.task.schedule, self.engine.skipped
        values = task.metrics(self.sums.pop_totals(self.ranks))
        skips.check(wait=True)
        skipped, self.skipped = skips.count - self.skipped, skips.count
        rates = clock.pop_rates()
        if self.log is None:
            return
        values |= {
            "epoch": done / schedule.steps_per_epoch,
            "samples": task.samples_before(done),
            "lr": lr,
            "skipped_steps": skipped,
            "bad_samples": bad_samples,
            "memory_gb": memory(self.task.device) / 1e9,
        }
        self.log.write(done, "train", values | rates)
        left = (time.perf_counter() - self.began) / (done - schedule.first_step) * (schedule.total_steps - done)
        self.ranks.log(
            f"step {done}/{schedule.total_steps}  {task.describe(values)}  "
            f"{rates['samples_per_second']:.0f} {task.unit}/s  {duration(left)} left"
            + (f"  {counted(skipped, 'step')} skipped: gradients not finite" if skipped else "")
        )

    def extra_line(self, done: int) -> None:
        """Logs what the task measures besides, see TrainingTask.extra_log_line."""
        line = self.task.extra_log_line(self.engine, done)
        if line is not None and self.log is not None:
            self.log.write(done, *line)

    def validation(self, done: int) -> Evaluation | None:
        """Validates, and logs the scores and the time that it took."""
        began, schedule = time.perf_counter(), self.task.schedule
        evaluation = self.task.evaluate(done)
        if evaluation is None:
            return None
        seconds = evaluation.seconds or {"": time.perf_counter() - began}
        if self.log is not None:
            times = {f"{name}/validation_seconds".lstrip("/"): value for name, value in seconds.items()}
            self.log.write(done, "validation", evaluation.scores | times)
        self.ranks.log(f"step {done}/{schedule.total_steps}  validation: {evaluation.text}")
        per_step = (began - self.began - self.cost.total) / (done - schedule.first_step)
        if sentence := self.cost.note(seconds, per_step):
            self.ranks.log(sentence)
        return evaluation


class ValidationCost:
    """The time of the validations of a run, and a message if it will be a large part of it.

    total: seconds so far.
    """

    def __init__(self, task: TrainingTask):
        self.task, self.total, self.reported = task, 0.0, False
        self.newest: dict[str, float] = {}

    def note(self, seconds: dict[str, float], per_step: float) -> str | None:
        """Notes a validation; returns the message, the first time that it applies.

        Parts that have not been validated yet are not counted.

        Args:
            seconds: of each part of the validation.
            per_step: seconds of a training step.
        """
        self.total += sum(seconds.values())
        self.newest |= seconds
        times = self.task.validations()
        expected = {name: value * times[name] for name, value in self.newest.items()}
        whole = sum(expected.values())
        if self.reported or whole < LONG:
            return None
        share = whole / (whole + per_step * self.task.schedule.total_steps)
        if share < LARGE:
            return None
        self.reported = True
        longest = sorted((name for name in expected if name), key=expected.get, reverse=True)[:3]
        parts = f", longest {', '.join(longest)}" if longest else ""
        return f"validation will take {share:.0%} of the run ({duration(whole)}{parts}); {self.task.shorter_validation}"


def memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: allocated GPU memory, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
