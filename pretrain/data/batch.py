"""Batches of image-caption pairs and of regions as tensors."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class TensorFields:
    """A dataclass whose tensors are moved together."""

    def _map(self, function) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(x) for name, x in tensors.items() if isinstance(x, Tensor)})

    def pin_memory(self) -> Self:
        return self._map(Tensor.pin_memory)

    def to(self, device) -> Self:
        return self._map(lambda x: x.to(device, non_blocking=True))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory of the tensors allocated until the work queued in `stream` is done."""
        for value in vars(self).values():
            if isinstance(value, Tensor):
                value.record_stream(stream)


@dataclass
class PaddedRegions(TensorFields):
    """The regions of B images, padded to N.

    Attributes:
        features: float16 (B, N, D).
        boxes: float32 (B, N, 4), relative to width and height.
        valid: bool (B, N), false for padding.
        total: number of regions without padding.
    """

    features: Tensor
    boxes: Tensor
    valid: Tensor
    total: int


@dataclass
class Batch(TensorFields):
    """A padded batch before masking: B pairs, L tokens in the longest caption, at most N regions per image.

    Attributes:
        keys: int64 (B,), random keys of the samples.
        input_ids: int64 (B, L).
        lengths: int64 (B,), number of tokens, including [CLS] and [SEP].
        features: float16 (B, N, D).
        boxes: float32 (B, N, 4).
        valid: bool (B, N), false for padding.
        class_ids, class_probs: int16 and float16 (B, N, k); k is 0 without a class distribution.
        misaligned: bool (B,).
        predicted_tokens, predicted_regions: number of tokens and regions to predict.
        total_tokens, total_regions: number of tokens and regions in the batch; None if they have not been counted.
        problems: error messages of the skipped samples.
        image_ids, text_ids: int64 (B,), equal for pairs of the same image and for captions with the same text; None
            without a contrastive loss.
    """

    keys: Tensor
    input_ids: Tensor
    lengths: Tensor
    features: Tensor
    boxes: Tensor
    valid: Tensor
    class_ids: Tensor
    class_probs: Tensor
    misaligned: Tensor
    predicted_tokens: int = 0
    predicted_regions: int = 0
    total_tokens: int | None = None
    total_regions: int | None = None
    problems: tuple[str, ...] = ()
    image_ids: Tensor | None = None
    text_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def image_row_count(self) -> int | None:
        """Number of image rows in the batch, including the image token of each image; None if unknown."""
        return None if self.total_regions is None else self.total_regions + len(self)
