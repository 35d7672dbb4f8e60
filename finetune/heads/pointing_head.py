"""Pointing heads: one of the boxes of an image, scored by the same layer for all tasks of this kind."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from finetune.annotations.boxes import IOU_CORRECT
from finetune.heads.base import Head
from finetune.heads.inputs import TaskInputs
from pretrain.models.contrastive import region_logits
from pretrain.models.dropout import Dropout
from pretrain.models.model_config import ModelConfig
from pretrain.models.vilbert import Encoded, TwoStream

PADDING = -10000.0  # logit of padding rows, as in the reference implementation


class PointingLayer(nn.Linear):
    """Hidden states of image rows (B, R, size) -> logits (B, R): dropout, Linear."""

    def __init__(self, size: int, dropout: float):
        super().__init__(size, 1)
        self.dropout = Dropout(dropout)

    def forward(self, rows: Tensor, keys: Tensor | None = None) -> Tensor:
        """keys: int64 (B, R), seeds of dropout, or None."""
        return super().forward(self.dropout(rows, keys))[..., 0]


@dataclass(frozen=True)
class PointingHead(Head):
    """Base class of heads that score rows of the image stream; the layer is shared by all of them.

    The targets are the IoU of each row's box with the ground-truth box where it is at least 0.5, else 0, and 0 in
    padding rows. Losses are sums over the rows of a binary cross entropy; the reference implementation multiplies a
    mean by their number.

    softmax: the losses are the cross entropy of one distribution over the rows with the targets in proportion, and 0
    without a row whose IoU is at least 0.5; after pretraining with a contrastive loss, the similarity of the embeddings
    of the text and of each row is added to the logits, as RetrievalHead adds that of text and image.
    """

    softmax: bool = False

    @property
    def layer_name(self) -> str:
        return "pointing"

    def layer(self, sizes: ModelConfig, answers: int) -> nn.Module:
        return PointingLayer(sizes.v_hidden_size, sizes.v_hidden_dropout_prob)

    def first_row(self, inputs: TaskInputs) -> int:
        """The first row of the image stream that is scored; all rows after it are."""
        return 0

    def logits(self, layer: nn.Module, encoder: TwoStream, encoded: Encoded, inputs: TaskInputs) -> Tensor:
        """(B, scored rows), with PADDING in padding rows."""
        first = self.first_row(inputs)
        keys = None if encoded.image_keys is None else encoded.image_keys[:, first:]
        scores: Tensor = layer(encoded.image[:, first:], keys)
        if self.softmax and encoded.stream_states is not None:
            scores = scores + region_logits(*encoder.embed_regions(encoded.stream_states))[:, first:]
        return scores.masked_fill(~inputs.image_mask[:, first:], PADDING)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.softmax:
            # A sum is 0 or at least IOU_CORRECT.
            shares = targets / targets.sum(1, keepdim=True).clamp(min=IOU_CORRECT)
            return -(shares * logits.log_softmax(1)).sum(1)
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").sum(1)

    def confidence(self, logits: Tensor) -> Tensor:
        return logits.softmax(0) if self.softmax else super().confidence(logits)

    def training_scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Whether the IoU of the best box is at least 0.5."""
        return (targets.gather(1, logits.argmax(1)[:, None])[:, 0] > 0).float()
