"""Alignment: whether a caption belongs to the image, optionally also of hard negatives."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data import random_choices
from pretrain.models.contrastive import hard_negatives
from pretrain.models.vilbert import Encoded
from pretrain.objective.loss_term import ForwardPass, LossTerm, TermSums, at_least_float32, weighted_sum


@dataclass(frozen=True)
class AlignmentTerm(LossTerm):
    """Classifies pairs as aligned (class 0) or misaligned.

    Attributes:
        hard_negatives: in training, one misaligned pair per pair is sampled from the batch by similarity (an
            extension); the loss is the mean of both, so that each pair contributes one.
    """

    name = "alignment"
    label = "alignment"
    accuracy = "alignment_accuracy"

    hard_negatives: bool = False

    @property
    def compares_pairs(self) -> bool:
        return self.hard_negatives

    def sums(self, forward: ForwardPass) -> TermSums:
        labels = forward.batch.misaligned.long()
        losses, right = _classified(forward, forward.encoded, labels)
        if self.hard_negatives and forward.model.training:
            keys = random_choices.negative_keys(forward.batch.keys)
            captions, images, found = hard_negatives(forward.similarities, forward.negatives, keys)
            states = forward.encoded.stream_states.recombined(captions, images, keys)
            misaligned, rejected = _classified(forward, forward.model.encoder.finish(states), torch.ones_like(labels))
            losses = torch.where(found, (losses + misaligned) / 2, losses)
            right = torch.where(found, (right + rejected) / 2, right)
        return TermSums(weighted_sum(losses, forward.pairs), weighted_sum(right, forward.pairs))


def _classified(forward: ForwardPass, encoded: Encoded, labels: Tensor) -> tuple[Tensor, Tensor]:
    """float (B,) each: the losses, and 1 for a correct prediction. labels: int64 (B,)."""
    scores = at_least_float32(forward.model.alignment(forward.model.encoder.fuse(encoded)))
    return F.cross_entropy(scores, labels, reduction="none"), (scores.detach().argmax(-1) == labels).float()
