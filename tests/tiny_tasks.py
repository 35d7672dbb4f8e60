"""Tasks on a tiny two-stream model in float64: regressions of random targets, each with a head of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.objective.task_pass import MultiTaskPass
from pretrain.models.model_config import read_model_config
from pretrain.models.precision import Precision
from pretrain.models.vilbert import TwoStream

PARITY = Path(__file__).parent / "parity"
NAMES = ("first", "second", "third")


class TinyModel(nn.Module):
    """An encoder, a head per task, and one that all tasks but the last share."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        sizes = read_model_config(PARITY / "config.json").replace(task_tokens=20).with_dropout(dropout)
        self.encoder = TwoStream(sizes)
        for parameter in self.encoder.parameters():  # so large that gradients are not tiny
            nn.init.normal_(parameter, std=0.2)
        self.heads = nn.ModuleDict({name: nn.Linear(sizes.bi_hidden_size, 2) for name in (*NAMES, "together")})


@dataclass
class TinyBatch:
    """Rows of the parity inputs with targets, float64 (n, 2)."""

    rows: Tensor
    target: Tensor

    problems = ()

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device) -> "TinyBatch":
        return self


class TinyTask(nn.Module):
    """As finetune.objective.task_pass.TaskPass."""

    precision = Precision("float64", torch.device("cpu"))
    device = precision.device
    contrastive = 0.0

    def __init__(self, model: TinyModel, number: int):
        super().__init__()
        self.model, self.number = model, number
        self.task = SimpleNamespace(name=NAMES[number], title=NAMES[number].title(), group=f"G{number + 1}")
        self.inputs = load_file(PARITY / "inputs.safetensors")

    def batch(self, seed: int, size: int = 4) -> TinyBatch:
        generator = torch.Generator().manual_seed(100 * self.number + seed)
        rows = torch.randperm(5, generator=generator)[:size]
        return TinyBatch(rows, torch.randn(size, 2, dtype=torch.float64, generator=generator))

    def forward(self, batch: TinyBatch, denominators: Sequence[int]) -> tuple[Tensor, dict[str, Tensor | int]]:
        x = {name: value[batch.rows] for name, value in self.inputs.items()}
        encoded = self.model.encoder(
            x["input_ids"],
            x["text_mask"].bool(),
            x["features"].double(),
            x["locations"].double(),
            x["region_mask"].bool(),
            task_ids=torch.full((len(batch),), self.number + 1),
            sample_keys=batch.rows + 10 * self.number,
        )
        fused, name = self.model.encoder.fuse(encoded), self.task.name
        scores = self.model.heads[name](fused)
        if name != NAMES[-1]:
            scores = scores + self.model.heads["together"](fused)
        losses = (scores - batch.target).square().sum(1)
        numbers = {"loss": losses.detach().sum(), "score": losses.detach().sum(), "examples": len(batch)}
        return losses.sum() / max(denominators[-1], 1), numbers


@dataclass
class TinyPart:
    """As finetune.data.task_batches.MicroBatch."""

    task: int
    task_step: int
    batch: TinyBatch

    def __len__(self) -> int:
        return len(self.batch)


def tiny_tasks(count: int = 3, dropout: float = 0.0) -> list[TinyTask]:
    """Tasks that share one model, in training mode."""
    model = TinyModel(dropout).double().train()
    return [TinyTask(model, number) for number in range(count)]


def tiny_pass(tasks: list[TinyTask]) -> MultiTaskPass:
    return MultiTaskPass(tasks, [1.0, 2.0, 0.5][: len(tasks)])


def tiny_parts(tasks: list[TinyTask], seed: int, halves: bool = False) -> list[list[TinyPart]]:
    """The micro-batches of every task's step; with `halves` two of each."""
    found = []
    for number, task in enumerate(tasks):
        batch = task.batch(seed)
        cuts = (slice(0, 1), slice(1, None)) if halves else (slice(None),)
        found.append([TinyPart(number, number, TinyBatch(batch.rows[cut], batch.target[cut])) for cut in cuts])
    return found
