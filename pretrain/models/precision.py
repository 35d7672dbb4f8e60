"""The precision of a model's weights and matrix products."""

import contextlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """The precision of matrix products. Weights, losses, softmax and LayerNorm are float32 (or float64).

    Attributes:
        name: value of --precision.
        device: of the model.
    """

    name: str
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "float64": torch.float64}.get(self.name, torch.float32)

    @property
    def weight_dtype(self) -> torch.dtype:
        return torch.float64 if self.name == "float64" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.name in ("bf16", "fp16"):
            return torch.autocast(self.device.type, self.dtype)
        return contextlib.nullcontext()

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")
