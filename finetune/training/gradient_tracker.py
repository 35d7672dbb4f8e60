"""Records the similarity of the tasks' gradients during multi-task training (finetune.mt --track)."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finetune.data.task_batches import MicroBatch
from finetune.data.task_collate import TaskBatch
from finetune.gradients.interference_measurement import gradient_products
from finetune.gradients.task_gradients import TaskGradients, part_of, shared_parameters
from finetune.gradients.tracked_gradients import log_line
from pretrain.engine.distributed import all_reduce_sum
from pretrain.engine.step import Engine

TRACKED_BATCHES, TRACKED_EXAMPLES = 4, 8  # batches of every task, and examples of each
SHARE = 0.01  # of the examples of a run that records need, with all tasks in every iteration
MOST = 200  # records of a run


def default_interval(record: int, iteration: int, iterations: int) -> int:
    """Iterations between two records that need at most SHARE of the examples of a run, at most MOST of them.

    Args:
        record: examples of a record.
        iteration: examples of an iteration in which all tasks train.
        iterations: number of iterations of the run.
    """
    return max(math.ceil(record / (SHARE * iteration)), math.ceil(iterations / MOST))


@dataclass
class GradientTracker:
    """Measures the gradients of all tasks on fixed batches, as finetune.interference does, and changes nothing.

    Args:
        every: iterations between two records.
        batches: this rank's share of the batches of each task, on the CPU.
        counts: the number of examples of each task's batches over all ranks.
        gradients: of the shared parameters, a row per task.
    """

    every: int
    batches: Sequence[Sequence[TaskBatch]]
    counts: Sequence[int]
    gradients: TaskGradients

    def record(self, engine: Engine, device: torch.device) -> dict:
        """The values of a line of the log, the same on every rank. engine: of a MultiTaskPass."""
        began, multi_task_pass = time.perf_counter(), engine.replica
        names = [task.task.name for task in multi_task_pass.passes.values()]

        def loss_and_gradients(row: int, number: int) -> float:
            engine.optimizer.zero_grad()
            part = MicroBatch(row, 0, self.batches[row][number].to(device))
            unscaled = 1 / multi_task_pass.loss_factors[row]  # without the factor for the task's learning rate
            sums = engine.backward([part], [self.counts[row]], [unscaled])
            loss = sums[f"{names[row]}/loss"]
            loss = loss + multi_task_pass.passes[row].contrastive * sums.get(f"{names[row]}/contrastive", 0)
            return float(loss) / self.counts[row]

        parts = list(map(part_of, shared_parameters(engine.model)))
        engine.model.eval()  # without dropout
        measured = gradient_products(len(self.batches[0]), len(names), self.gradients, parts, loss_and_gradients)
        engine.model.train()
        engine.optimizer.zero_grad()
        all_reduce_sum(torch.from_numpy(measured.losses), engine.ranks)
        if engine.scaler.is_enabled():
            for products in (*measured.products.values(), *measured.repeated.values()):
                products /= engine.scaler.get_scale() ** 2
        return log_line(names, measured, round(time.perf_counter() - began, 3))
