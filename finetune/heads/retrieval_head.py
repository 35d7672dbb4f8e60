"""The retrieval head: how well a caption and an image fit together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.example import Box, Example
from finetune.heads.base import Head, Scene
from finetune.heads.inputs import TaskInputs
from pretrain.data.caption_pairs import text_id
from pretrain.models.contrastive import comparable, contrastive_losses, cosine_similarities, pair_logits
from pretrain.models.model_config import ModelConfig
from pretrain.models.vilbert import Encoded, TwoStream
from shards.common.errors import UserError
from shards.storage.sample import Sample

OPTIONS = 4  # pairs of an example in training: the aligned one and three negatives


@dataclass(frozen=True)
class RetrievalHead(Head):
    """Ranks images for captions. In training, each caption is a choice among OPTIONS pairs, the aligned one first."""

    name: str = "retrieval"

    ranks_images = True
    input_label, input_example = "Caption", "a red star and a blue disc"

    def layer(self, sizes: ModelConfig, answers: int) -> nn.Module:
        return nn.Linear(sizes.bi_hidden_size, 1)

    def logits(
        self, layer: nn.Module, encoder: TwoStream, encoded: Encoded, inputs: TaskInputs | None = None
    ) -> Tensor:
        """(B,), of each pair; the inputs are not needed.

        After pretraining with a contrastive loss, the similarity of the embeddings is added.
        """
        scores: Tensor = layer(encoder.fuse(encoded))
        contrastive = 0 if encoded.stream_states is None else pair_logits(*encoder.embed(encoded.stream_states))
        return scores[..., 0] + contrastive

    def targets(
        self, examples: Sequence[Example], samples: Sequence[Sample], rows: int, vocabulary: AnswerVocabulary | None
    ) -> Tensor:
        """int64 (examples, 2), for `batch_losses`: numbers of the image and of the text, equal if these are.

        The 4-way choice needs no targets: the first of OPTIONS pairs is the aligned one.
        """
        images = {example.images[0]: number for number, example in enumerate(examples)}
        texts = {text_id(example.text): number for number, example in enumerate(examples)}
        numbers = [(images[example.images[0]], texts[text_id(example.text)]) for example in examples]
        return torch.tensor(numbers, dtype=torch.int64).reshape(-1, 2)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        options = _options(logits)
        return F.cross_entropy(options, options.new_zeros(len(options), dtype=torch.int64), reduction="none")

    def batch_losses(self, encoder: TwoStream, encoded: Encoded, targets: Tensor) -> Tensor | None:
        """The contrastive loss of the aligned pairs (see pretrain/models/contrastive.py); None without that head."""
        if encoded.stream_states is None:
            return None
        texts, images = (embeddings[::OPTIONS] for embeddings in encoder.embed(encoded.stream_states))
        image_ids, text_ids = targets.unbind(1)
        negatives = comparable(image_ids, text_ids, torch.ones_like(image_ids, dtype=torch.bool))
        return contrastive_losses(cosine_similarities(texts, images), negatives)

    def training_scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Whether the aligned pair scores above its negatives; ties count as wrong, as in R@k."""
        options = _options(logits)
        return (options[:, 0] > options[:, 1:].amax(1)).float()

    def choices(self, scene: Scene, vocabulary: AnswerVocabulary | None) -> tuple[Sequence[str], Sequence[Box]]:
        return scene.images, ()

    def confidence(self, logits: Tensor) -> Tensor:
        """A softmax over the images that are ranked."""
        return logits.softmax(0)

    def expected(self, example: Example) -> tuple[str, None]:
        return example.images[0], None


def _options(logits: Tensor) -> Tensor:
    return logits.reshape(len(logits) // OPTIONS, OPTIONS)


def alignment_as_retrieval(weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Converts the alignment head of pretraining weights to a retrieval head, for zero-shot retrieval.

    The alignment head has two logits, class 0 for "aligned". Their difference, logit 0 - logit 1, is the log odds that
    a caption and an image are aligned, and is linear in the fused vector too.

    Args:
        weights: state dict with this package's names, including the alignment head (2, size).
        where: file or directory, for error messages.
    """
    weights = dict(weights)
    for kind in ("weight", "bias"):
        if f"alignment.{kind}" not in weights:
            raise UserError(
                f"{where}: has no alignment head (cls.bi_seq_relationship in published weights), which zero-shot "
                "retrieval needs; fine-tune these weights first"
            )
        aligned, misaligned = weights.pop(f"alignment.{kind}")
        weights[f"heads.retrieval.{kind}"] = (aligned - misaligned)[None]
    return weights
