"""Peak memory of a pretraining step of the base model, for each option that reduces it.

    python benchmarks/memory.py [--batch_size 512] [--device cpu]

Every line is a separate process that takes one small step, which allocates the optimizer state, and then a whole one.
On a GPU the figure is the peak of the memory allocated by torch. On a CPU it is the peak resident memory of the
process, including the interpreter and libraries (about 0.6 GB).
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import torch

from benchmarks.pairs import SPECIAL, random_batch
from pretrain.engine.optimizer import make_optimizer
from pretrain.engine.step import Engine, MetricSums
from pretrain.engine.training_log import memory
from pretrain.models.model_config import read_model_config
from pretrain.models.precision import Precision
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.objective.pretraining_loss import Objective
from pretrain.objective.pretraining_pass import PretrainingPass
from shards.common.cli import command, flag
from shards.common.dist_info import ALONE


@dataclass
class Config:
    """Flags of this benchmark."""

    config: str = flag("base", "model configuration")
    batch_size: int = flag(512, "pairs per step", low=1)
    device: str = flag("cuda" if torch.cuda.is_available() else "cpu", "device", choices=("cpu", "cuda"))


@dataclass(frozen=True)
class Choice:
    """One variant of the step, given by flags of pretrain.run."""

    precision: str
    activation_checkpointing: bool = False
    accumulate: int = 1

    def flags(self) -> str:
        return (
            f"--precision {self.precision}"
            + (" --activation_checkpointing" if self.activation_checkpointing else "")
            + (f" --accumulate {self.accumulate}" if self.accumulate > 1 else "")
        )


CHOICES = (
    Choice("float32", accumulate=8),
    Choice("bf16"),
    Choice("bf16", accumulate=2),
    Choice("bf16", accumulate=8),
    Choice("bf16", True),
    Choice("bf16", True, accumulate=4),
)


def peak(config: Config, choice: Choice) -> int:
    """Peak memory in bytes of a step with one choice."""
    device = torch.device(config.device)
    sizes = read_model_config(config.config)
    model = PretrainingModel(sizes).train().to(device)
    model.encoder.activation_checkpointing = choice.activation_checkpointing
    objective = Objective(mask_id=SPECIAL - 1, ordinary_ids=torch.arange(SPECIAL, sizes.vocab_size))
    precision = Precision(choice.precision, device)
    optimizer = make_optimizer(model, 1e-4, (0.9, 0.98), 1e-8, 0.01)
    pretraining_pass = PretrainingPass(model, objective.to(device), precision)
    engine = Engine(pretraining_pass, model, optimizer, precision, precision.scaler(), ALONE, 1.0)
    for step, size in enumerate((1, config.batch_size // choice.accumulate)):
        batch = random_batch(size, sizes)
        batch.predicted_tokens, batch.predicted_regions = objective.count_predictions(batch)
        parts = [batch.to(device)] * (choice.accumulate if step else 1)
        engine.step(step, parts, MetricSums(), (batch.predicted_tokens, batch.predicted_regions, size))
    return memory(device)


def run(config: Config) -> None:
    print(f"{config.config}, batch {config.batch_size}, {config.device}")
    for choice in CHOICES:
        print(f"{choice.flags():<65}", end="", flush=True)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            try:
                print(f"{process.submit(peak, config, choice).result() / 1e9:6.1f} GB")
            except (torch.OutOfMemoryError, BrokenProcessPool):
                print("  does not fit")


if __name__ == "__main__":
    command(Config, run, "benchmarks/memory.py", __doc__.splitlines()[0], sys.argv[1:])
