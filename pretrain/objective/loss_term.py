"""The interface of a term of the pretraining loss; docs/extending_training.md adds one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.models.contrastive import comparable, cosine_similarities
from pretrain.models.model_config import ModelConfig
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.models.vilbert import Encoded
from pretrain.objective.masking import MaskedInputs

# Keys of sums in checkpoint.json, which are older than the names of the fields of Batch.
WORDS, REGIONS, PAIRS = "word_count", "region_count", "pair_count"
COUNTS = (WORDS, REGIONS, PAIRS)  # what the mean of a term is over


@dataclass
class ForwardPass:
    """A batch after the two streams, of which the terms compute their losses."""

    model: PretrainingModel
    batch: Batch
    inputs: MaskedInputs
    encoded: Encoded

    @cached_property
    def pairs(self) -> Tensor:
        """bool (B,): false for the padding of a CUDA graph's buffers."""
        return self.batch.lengths > 0

    @cached_property
    def tokens(self) -> Tensor:
        """Hidden states of the tokens to predict, float (n, h_t)."""
        return self.encoded.text.flatten(0, 1)[self.inputs.token_positions]

    @cached_property
    def regions(self) -> Tensor:
        """Hidden states of the regions to predict, float (n, h_v)."""
        return self.encoded.image[:, 1:].flatten(0, 1)[self.inputs.region_positions]

    @cached_property
    def similarities(self) -> Tensor:
        """float (B, B): cosine similarity of caption i and image j before the first co-attention layer."""
        return cosine_similarities(*self.model.encoder.embed(self.encoded.stream_states))

    @cached_property
    def negatives(self) -> Tensor:
        """bool (B, B), see contrastive.comparable."""
        return comparable(self.batch.image_ids, self.batch.text_ids, self.pairs & ~self.batch.misaligned)


class TermSums(NamedTuple):
    """Sums over the predictions of a batch; scalars on the device.

    Attributes:
        loss: the losses.
        right: number of correct predictions, for a term with an accuracy.
        predicted: number of predictions, for a term with `counts_predictions`.
    """

    loss: Tensor
    right: Tensor | None = None
    predicted: Tensor | None = None


@dataclass(frozen=True)
class LossTerm(ABC):
    """A term of the pretraining loss: a weighted mean over tokens, regions or pairs.

    Attributes:
        name: the loss is logged as `loss_NAME`.
        label: name of the term in validation messages.
        count: what the mean is over, one of COUNTS.
        accuracy: name of the logged share of correct predictions, `THING_accuracy`; None without one.
        counts_predictions: whether the accuracy is over another number of predictions than `count`.
        chance_label: description of the validation score THING_chance, if there is one.
        weight: factor of the mean in the loss.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    count: ClassVar[str] = PAIRS
    accuracy: ClassVar[str | None] = None
    counts_predictions: ClassVar[bool] = False
    chance_label: ClassVar[str] = "chance"

    weight: float = 1.0

    @abstractmethod
    def sums(self, forward: ForwardPass) -> TermSums:
        """The sums over a batch. Every parameter has to take part, even if nothing is predicted."""

    @property
    def compares_pairs(self) -> bool:
        """Whether the term needs Batch.image_ids and text_ids, as ForwardPass.negatives does."""
        return False

    def layer(self, sizes: ModelConfig) -> nn.Module | None:
        """A layer of the term's own; it is `forward.model.extra[NAME]`."""
        return None

    @property
    def sum_names(self) -> tuple[str, ...]:
        """The names of the sums in logs and checkpoints."""
        right = (f"{self.name}_right",) if self.accuracy else ()
        predicted = (f"{self.name}_count",) if self.counts_predictions else ()
        return (self.name, *right, *predicted)

    def named_sums(self, forward: ForwardPass) -> dict[str, Tensor]:
        """sum_names -> sums."""
        sums = self.sums(forward)
        named = {self.name: sums.loss}
        if self.accuracy:
            named[f"{self.name}_right"] = sums.right
        if self.counts_predictions:
            named[f"{self.name}_count"] = sums.predicted
        return named

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """The mean loss and the accuracy, from sums over any number of batches."""
        count = max(sums[self.count], 1)
        metrics = {f"loss_{self.name}": sums[self.name] / count}
        if self.accuracy:
            predicted = max(sums[f"{self.name}_count"], 1) if self.counts_predictions else count
            metrics[self.accuracy] = sums[f"{self.name}_right"] / predicted
        return metrics

    def describe(self, scores: dict[str, float]) -> str:
        """Formats the accuracy on the validation pairs, or the loss of a term without one."""
        if not self.accuracy:
            return f"{self.label} {scores[f'loss_{self.name}']:.3f}"
        chance = scores.get(self.accuracy.replace("_accuracy", "_chance"))
        known = "" if chance is None else f" ({self.chance_label} {chance:.1%})"
        return f"{self.label} {scores[self.accuracy]:.1%}{known}"


def at_least_float32(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    """Sum of losses (n,) where weights, bool (n,), are true."""
    return losses.masked_fill(~weights, 0).sum()
