"""The tasks' losses, one value per example; their mean over the global batch is the training loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.models.task_model import POINTING, RETRIEVAL_OPTIONS


def example_losses(head: str, scores: Tensor, target: Tensor | None) -> Tensor:
    """The losses of the examples of a batch.

    Args:
        head: head of task_model.TaskModel.
        scores: its scores.
        target: answer heads: soft scores (B, answers); regions, candidates: IoU with the ground-truth box (B, rows), 0
            in padding rows; nlvr2, entailment: labels int64 (B,); retrieval: None, the first of every OPTIONS pairs is
            the aligned one.

    Returns:
        (examples,). Sums over answers or regions; the reference implementation multiplies a mean by their number.
    """
    if head == "retrieval":
        scores = scores.reshape(len(scores) // RETRIEVAL_OPTIONS, RETRIEVAL_OPTIONS)
        return F.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.int64), reduction="none")
    if head in ("nlvr2", "entailment"):
        target = F.one_hot(target, scores.shape[1])
        return F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype), reduction="none").mean(1)
    return F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype), reduction="none").sum(1)


def training_scores(head: str, scores: Tensor, target: Tensor | None) -> Tensor:
    """float (examples,): training accuracy of the predictions with the highest scores, between 0 and 1.

    Retrieval: whether the aligned pair scores above its negatives, ties counting as wrong as in R@k. Answers: the soft
    score. Regions and candidates: whether the IoU is at least 0.5, as in the targets. Others: whether the label is
    correct.
    """
    if head == "retrieval":
        scores = scores.reshape(len(scores) // RETRIEVAL_OPTIONS, RETRIEVAL_OPTIONS)
        return (scores[:, 0] > scores[:, 1:].amax(1)).float()
    best = scores.argmax(1)
    if head in ("nlvr2", "entailment"):
        return (best == target).float()
    chosen = target.gather(1, best[:, None])[:, 0]
    return (chosen > 0).float() if head in POINTING else chosen
