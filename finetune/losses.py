"""The tasks' losses: one value an example, whose mean over the whole batch is the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.heads import OPTIONS, POINTING


def example_losses(head: str, scores: Tensor, target: Tensor | None) -> Tensor:
    """(examples,): the losses of the examples of a batch, from the scores of a head (heads.TaskModel).

    target: vqa, gqa: soft scores (B, answers); regions, candidates: the IoU with what is meant (B, rows), 0 on padding;
    nlvr2, entailment: labels int64 (B,); retrieval: None, the first of every OPTIONS is the pair.
    Sums over answers or regions where the published code multiplies a mean by their number.
    """
    if head == "retrieval":
        scores = scores.reshape(len(scores) // OPTIONS, OPTIONS)
        return F.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.int64), reduction="none")
    if head in ("nlvr2", "entailment"):
        target = F.one_hot(target, scores.shape[1])
        return F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype), reduction="none").mean(1)
    return F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype), reduction="none").sum(1)


def training_scores(head: str, scores: Tensor, target: Tensor | None) -> Tensor:
    """float (examples,): how right the likeliest choice of each example is, between 0 and 1.

    Of retrieval whether the pair scores above its negatives; equal scores count against it, as in R@k. Of answers the
    soft score; of regions and candidates whether the IoU is 0.5 or more, as the targets have it.
    """
    if head == "retrieval":
        scores = scores.reshape(len(scores) // OPTIONS, OPTIONS)
        return (scores[:, 0] > scores[:, 1:].amax(1)).float()
    best = scores.argmax(1)
    if head in ("nlvr2", "entailment"):
        return (best == target).float()
    chosen = target.gather(1, best[:, None])[:, 0]
    return (chosen > 0).float() if head in POINTING else chosen
