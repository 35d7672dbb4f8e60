"""The answer head: one of a vocabulary of answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.example import Box, Example
from finetune.heads.base import Head, Scene
from pretrain.models.layers import Norm
from pretrain.models.model_config import ModelConfig
from shards.storage.sample import Sample

SHOWN = 3  # ground-truth answers that are shown of an example


class Classifier(nn.Module):
    """Vectors (B, size) -> logits (B, choices): Linear, GELU, LayerNorm, Linear."""

    def __init__(self, size: int, inner: int, choices: int):
        super().__init__()
        self.dense, self.norm, self.decoder = nn.Linear(size, inner), Norm(inner), nn.Linear(inner, choices)

    def forward(self, fused: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.norm(F.gelu(self.dense(fused))))
        return logits


@dataclass(frozen=True)
class AnswerHead(Head):
    """Soft scores of answers (VQA, Visual Genome QA, GQA); the loss is a binary cross entropy per answer.

    Losses are sums over the answers; the reference implementation multiplies a mean by their number.
    """

    has_vocabulary = True
    input_label, input_example = "Question", "What color is the star?"

    def layer(self, sizes: ModelConfig, answers: int) -> nn.Module:
        return Classifier(sizes.bi_hidden_size, 2 * sizes.bi_hidden_size, answers)

    def make_choices_rare(self, layer: nn.Module) -> None:
        assert isinstance(layer, Classifier)
        nn.init.constant_(layer.decoder.bias, -math.log(layer.decoder.out_features))

    def targets(
        self, examples: Sequence[Example], samples: Sequence[Sample], rows: int, vocabulary: AnswerVocabulary | None
    ) -> Tensor:
        """float32 (B, answers): the soft score of each answer."""
        assert vocabulary is not None  # the head has one
        targets = [vocabulary.target(example.target) for example in examples]
        return torch.from_numpy(np.array(targets, np.float32).reshape(-1, len(vocabulary)))

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").sum(1)

    def training_scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The soft score of the best answer."""
        return targets.gather(1, logits.argmax(1)[:, None])[:, 0]

    def to_predictions(self, numbers: np.ndarray, vocabulary: AnswerVocabulary | None) -> list[str]:
        assert vocabulary is not None
        return [vocabulary.answers[number] for number in numbers[:, 0].astype(np.int64)]

    def choices(self, scene: Scene, vocabulary: AnswerVocabulary | None) -> tuple[Sequence[str], Sequence[Box]]:
        assert vocabulary is not None
        return vocabulary.answers, ()

    def expected(self, example: Example) -> tuple[str, None]:
        best = sorted(example.target.items(), key=lambda pair: -pair[1])
        return ", ".join(answer for answer, _ in best[:SHOWN]), None
