"""Masked regions: the class distribution or the features of regions at masked positions."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pretrain.objective.loss_term import REGIONS, ForwardPass, LossTerm, TermSums, at_least_float32, weighted_sum


@dataclass(frozen=True)
class RegionTerm(LossTerm):
    """Predicts the class distributions of masked regions: Kullback-Leibler divergence. Right is the likeliest class."""

    name = "regions"
    label = "masked regions"
    count = REGIONS
    accuracy = "region_accuracy"

    def sums(self, forward: ForwardPass) -> TermSums:
        batch, weights = forward.batch, forward.inputs.region_weights
        scores = at_least_float32(forward.model.regions(forward.regions))
        positions = forward.inputs.region_positions
        class_ids, class_probs = (x.flatten(0, 1)[positions] for x in (batch.class_ids, batch.class_probs))
        target = class_distribution(class_ids, class_probs, scores.shape[-1])
        losses = F.kl_div(scores.log_softmax(-1), target, reduction="none").sum(-1)
        right = scores.detach().argmax(-1) == target.argmax(-1)
        return TermSums(weighted_sum(losses, weights), (right & weights).sum())


@dataclass(frozen=True)
class FeatureTerm(LossTerm):
    """Predicts the features of masked regions: mean squared error over the elements."""

    name = "regions"
    label = "masked regions' loss"
    count = REGIONS

    def sums(self, forward: ForwardPass) -> TermSums:
        predicted = at_least_float32(forward.model.regions(forward.regions))
        target = forward.batch.features.flatten(0, 1)[forward.inputs.region_positions].float()
        losses = F.mse_loss(predicted, target.to(predicted.dtype), reduction="none").mean(-1)
        return TermSums(weighted_sum(losses, forward.inputs.region_weights))


def class_distribution(class_ids: Tensor, class_probs: Tensor, num_classes: int) -> Tensor:
    """Distributions (n, num_classes) from the k stored classes (n, k); the rest is spread evenly over the others."""
    probs = class_probs.float()
    rest = (1 - probs.sum(-1, keepdim=True)).clamp(min=0)
    others = max(num_classes - class_ids.shape[-1], 1)
    target = (rest / others).expand(-1, num_classes).scatter(1, class_ids.long(), probs)
    return target / target.sum(-1, keepdim=True)
