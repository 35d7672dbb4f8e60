"""Time that training waits for a checkpoint: written in the background, and written before the next step.

    python benchmarks/checkpoint.py [--config base] [--device cpu] [--repeats 3]

Writes weights and both moments of every parameter (2.9 GB for base) to a temporary folder (in TMPDIR).
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import torch

from benchmarks.timing import print_table
from pretrain.engine.checkpoint import CheckpointWriter
from pretrain.engine.optimizer import make_optimizer, without_bias_correction
from pretrain.models.model_config import read_model_config
from pretrain.models.pretraining_heads import PretrainingModel
from shards.common.cli import command, flag


@dataclass
class Config:
    """Flags of this benchmark."""

    config: str = flag("base", "model configuration")
    device: str = flag("cuda" if torch.cuda.is_available() else "cpu", "device", choices=("cpu", "cuda"))
    repeats: int = flag(3, "number of checkpoints", low=2)


def run(config: Config) -> None:
    model = PretrainingModel(read_model_config(config.config)).to(config.device)
    optimizer = make_optimizer(model, 1e-4, (0.9, 0.98), 1e-8, 0.01)
    without_bias_correction(optimizer)  # makes both moments
    waits, wholes = [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(folder)
        for number in range(config.repeats):
            began = time.perf_counter()
            writer.save(number, model, optimizer, {}, None)
            waits.append(time.perf_counter() - began)
            writer.wait()
            wholes.append(time.perf_counter() - began)
    size = sum(3 * parameter.nbytes for parameter in model.parameters()) / 1e9
    print(f"{config.config}, {size:.1f} GB, {config.device}; the first checkpoint makes the buffers: {waits[0]:.3g} s")
    seconds = {"before the next step": statistics.median(wholes[1:]), "in the background": statistics.median(waits[1:])}
    print_table(seconds, "before the next step")


if __name__ == "__main__":
    command(Config, run, "benchmarks/checkpoint.py", __doc__.splitlines()[0], sys.argv[1:])
