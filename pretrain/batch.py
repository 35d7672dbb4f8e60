"""A batch of image-caption pairs as tensors."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """Pairs as read, nothing masked yet; B pairs, L words of the longest caption, N regions of the richest image.

    keys int64 (B,): the samples' random keys; input_ids int64 (B, L); lengths int64 (B,), with [CLS] and [SEP];
    features float16 (B, N, D); boxes float32 (B, N, 4); valid bool (B, N); class_ids int16 and class_probs
    float16 (B, N, k), or (B, N, 0) where there are no classes; misaligned bool (B,). word_count and
    region_count: how many of them will be predicted; pieces and regions: how many there are, None where nobody has
    counted; problems: why samples that belong here were left out. image_ids and text_ids int64 (B,): equal for pairs
    of the same image, and for captions of the same text; None without a contrastive loss.
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
    word_count: int = 0
    region_count: int = 0
    pieces: int | None = None
    regions: int | None = None
    problems: tuple[str, ...] = ()
    image_ids: Tensor | None = None
    text_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def image_rows(self) -> int | None:
        """How many rows all images have together, with row 0 of each, where that is known."""
        return None if self.regions is None else self.regions + len(self)

    def _map(self, function) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(x) for name, x in tensors.items() if isinstance(x, Tensor)})

    def pin_memory(self) -> "Batch":
        return self._map(Tensor.pin_memory)

    def to(self, device) -> "Batch":
        return self._map(lambda x: x.to(device, non_blocking=True))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the tensors' memory until what is queued in `stream` is done."""
        for value in vars(self).values():
            if isinstance(value, Tensor):
                value.record_stream(stream)
