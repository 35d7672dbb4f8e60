"""Classification heads: one of a few labels for an image, or for a pair of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.example import Box, Example
from finetune.heads.answer_head import Classifier
from finetune.heads.base import Head, Scene
from finetune.heads.inputs import TaskInputs
from pretrain.models.model_config import ModelConfig
from pretrain.models.vilbert import Encoded, TwoStream
from shards.storage.sample import Sample


@dataclass(frozen=True)
class ClassificationHead(Head):
    """A label of a statement about an image (SNLI-VE); the loss is the mean binary cross entropy of the labels.

    labels: names of the labels, in the order of the reference implementation's layer.
    """

    labels: tuple[str, ...]

    input_label, input_example = "Statement", "There is a star."

    @property
    def layer_settings(self) -> tuple[str, ...]:
        return self.labels

    def layer(self, sizes: ModelConfig, answers: int) -> nn.Module:
        return nn.Linear(sizes.bi_hidden_size, len(self.labels))

    def targets(
        self, examples: Sequence[Example], samples: Sequence[Sample], rows: int, vocabulary: AnswerVocabulary | None
    ) -> Tensor:
        """int64 (B,): numbers of the labels."""
        return torch.tensor([example.target for example in examples], dtype=torch.int64)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        one_hot = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").mean(1)

    def training_scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.argmax(1) == targets).float()

    def choices(self, scene: Scene, vocabulary: AnswerVocabulary | None) -> tuple[Sequence[str], Sequence[Box]]:
        return self.labels, ()

    def expected(self, example: Example) -> tuple[str, None]:
        return self.labels[example.target], None


@dataclass(frozen=True)
class PairClassificationHead(ClassificationHead):
    """A label of a statement about two images (NLVR2), from the fused vectors of both."""

    images_per_example = 2
    input_label, input_example = "Statement about two images", "There are more stars on the left."

    def layer(self, sizes: ModelConfig, answers: int) -> nn.Module:
        size = self.images_per_example * sizes.bi_hidden_size
        return Classifier(size, size, len(self.labels))

    def logits(self, layer: nn.Module, encoder: TwoStream, encoded: Encoded, inputs: TaskInputs) -> Tensor:
        """(B / 2, labels); the batch rows are left, right, left, right, ..."""
        fused, images = encoder.fuse(encoded), self.images_per_example
        scores: Tensor = layer(fused.reshape(len(fused) // images, images * fused.shape[-1]))
        return scores
