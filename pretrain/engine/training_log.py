"""Metrics of a run, summed over all ranks, for its log and the console."""

import resource
import sys
import time

import torch

from pretrain.engine.metrics_logger import Clock, RunLog, duration
from pretrain.engine.step import Engine, Sums
from pretrain.engine.training_task import Evaluation, TrainingTask


class TrainingLog:
    """Writes metrics over all ranks to the log and to the console."""

    def __init__(self, task: TrainingTask, engine: Engine, log: RunLog | None, device: torch.device, unlogged: dict):
        self.task, self.engine, self.log, self.device = task, engine, log, device
        self.ranks = engine.ranks
        self.began = time.perf_counter()
        self.sums = Sums.restored(unlogged.get("sums", []), self.ranks, device)
        self.skipped = unlogged.get("skipped", engine.skipped.count)

    def state(self) -> dict:
        """State for a checkpoint between two log lines: the sums of the steps since the last line.

        `skipped` is the number of skipped steps at the last line.
        """
        return {"sums": self.sums.state(self.ranks), "skipped": self.skipped}

    def training(self, done: int, lr: float, bad_samples: int, clock: Clock) -> None:
        """Logs the steps since the last line."""
        task, plan, skips = self.task, self.task.plan, self.engine.skipped
        values = task.metrics(self.sums.reading(self.ranks))
        skips.check(wait=True)
        skipped, self.skipped = skips.count - self.skipped, skips.count
        rates = clock.reading()
        if self.log is None:
            return
        values |= {
            "epoch": done / plan.steps_per_epoch,
            "samples": task.samples_before(done),
            "lr": lr,
            "skipped_steps": skipped,
            "bad_samples": bad_samples,
            "memory_gb": memory(self.device) / 1e9,
        }
        self.log.write(done, "train", values | rates)
        left = (time.perf_counter() - self.began) / (done - plan.first_step) * (plan.total_steps - done)
        self.ranks.log(
            f"step {done}/{plan.total_steps}  {task.describe(values)}  "
            f"{rates['samples_per_second']:.0f} {task.unit}/s  {duration(left)} left"
            + (f"  {skipped} steps skipped: gradients not finite" if skipped else "")
        )

    def validation(self, done: int) -> Evaluation | None:
        """Validates and logs the scores."""
        found = self.task.evaluate(done)
        if found is not None:
            if self.log is not None:
                self.log.write(done, "validation", found.scores)
            self.ranks.log(f"step {done}/{self.task.plan.total_steps}  validation: {found.text}")
        return found


def memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: allocated GPU memory, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
