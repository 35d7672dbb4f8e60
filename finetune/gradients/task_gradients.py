"""The gradients of several tasks on the same parameters, side by side: scalar products and weighted sums."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

BLOCK = 1 << 22  # elements of a parameter that are multiplied at once: 16 MB of float32 per task
ALL_PARTS = "all"  # the parts together, in the results of scalar products
PARTS = ("text", "image", "co-attention")  # of the encoder, see part_of


def shared_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that every task may use, by name: those of the encoder without a contrastive head.

    Heads are not among them, although some tasks of the paper share one: a head concerns few of the tasks.
    """
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name.startswith("encoder.") and not name.startswith("encoder.contrast.")
    }


def part_of(name: str) -> str:
    """The part of the encoder that a parameter belongs to: the text or image stream, or the co-attention layers."""
    module = name.removeprefix("encoder.")
    return PARTS[2] if module.startswith("connections.") else PARTS[0] if module.startswith("text_") else PARTS[1]


class TaskGradients:
    """Gradients of several tasks, a row for each.

    They need rows * parameters * (4 bytes in float32, 2 in bf16), on the device of the parameters.

    Args:
        parameters: the shared parameters.
        rows: number of tasks.
        dtype: in which they are kept; None for the dtype of the parameters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rows: int, dtype: torch.dtype | None = None):
        self.parameters = list(parameters)
        self.used = [[False] * rows for _ in self.parameters]
        self.kept = [torch.zeros(rows, p.numel(), dtype=dtype or p.dtype, device=p.device) for p in self.parameters]

    @property
    def bytes(self) -> int:
        """The memory of the kept gradients."""
        return sum(kept.nbytes for kept in self.kept)

    def keep(self, row: int) -> None:
        """Replaces a row by the present gradients of the parameters; a parameter without one counts as zero."""
        for parameter, used, kept in zip(self.parameters, self.used, self.kept, strict=True):
            used[row] = parameter.grad is not None
            if used[row]:
                kept[row].copy_(parameter.grad.flatten())
            else:
                kept[row].zero_()

    def gradient(self, row: int) -> list[Tensor]:
        """The kept gradient of a task, for every parameter; views, not copies."""
        return [kept[row].view_as(p) for p, kept in zip(self.parameters, self.kept, strict=True)]

    def gramians(self, rows: Sequence[int], parts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Scalar products of the gradients of some tasks with each other.

        Products of float32 (bf16 is converted) are summed in float32 within blocks, and in float64 over blocks.

        Args:
            rows: of the tasks, without duplicates.
            parts: the part of the model of every parameter; None for no parts.

        Returns:
            Part, and ALL_PARTS for their sum -> float64 (tasks, tasks), on the CPU.
        """
        chosen, device = list(rows), self.kept[0].device
        sums = {part: torch.zeros(len(chosen), len(chosen), dtype=torch.float64, device=device) for part in _all(parts)}
        for number, kept in enumerate(self.kept):
            for block in kept.split(BLOCK, 1):
                own = block[chosen]
                own = own if own.dtype == torch.float64 else own.float()
                product = (own @ own.T).double()
                for part in (ALL_PARTS, *([parts[number]] if parts else [])):
                    sums[part] += product
        return {part: value.cpu() for part, value in sums.items()}

    def products_with(self, row: int, parts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Part, and ALL_PARTS -> scalar product, float64 (), of a kept row and the parameters' present gradients."""
        sums = {part: torch.zeros((), dtype=torch.float64, device=self.kept[0].device) for part in _all(parts)}
        for number, (parameter, kept) in enumerate(zip(self.parameters, self.kept, strict=True)):
            if parameter.grad is not None:
                product = (kept[row].to(parameter.dtype) @ parameter.grad.flatten()).double()
                for part in (ALL_PARTS, *([parts[number]] if parts else [])):
                    sums[part] += product
        return {part: value.cpu() for part, value in sums.items()}

    def set_combined(self, rows: Sequence[int], weights: Tensor) -> None:
        """Sets the parameters' gradients to the weighted sum of those of some tasks; None if none of them has one.

        Args:
            rows: of the tasks.
            weights: float64 (tasks,), on the CPU.
        """
        for parameter, used, kept in zip(self.parameters, self.used, self.kept, strict=True):
            if not any(used[row] for row in rows):
                parameter.grad = None
                continue
            total = torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
            for row, weight in zip(rows, weights.tolist(), strict=True):
                total.add_(kept[row].to(parameter.dtype), alpha=weight)
            parameter.grad = total.view_as(parameter)


def _all(parts: Sequence[str] | None) -> list[str]:
    return [ALL_PARTS, *sorted(set(parts or ()))]
