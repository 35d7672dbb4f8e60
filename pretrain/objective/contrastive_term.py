"""The contrastive loss of the two streams, an extension (see pretrain/models/contrastive.py)."""

from dataclasses import dataclass

from pretrain.models.contrastive import contrastive_losses, retrieved
from pretrain.objective.loss_term import ForwardPass, LossTerm, TermSums, weighted_sum


@dataclass(frozen=True)
class ContrastiveTerm(LossTerm):
    """Contrasts the similarity of a caption and its image with those of the batch's other pairs.

    The accuracy is image retrieval in the batch, over the pairs that have a negative there.
    """

    name = "contrastive"
    label = "contrastive in a batch"
    accuracy = "contrastive_accuracy"
    counts_predictions = True
    compares_pairs = True

    def sums(self, forward: ForwardPass) -> TermSums:
        scores, negatives = forward.similarities, forward.negatives
        counted = negatives.any(1)
        loss = weighted_sum(contrastive_losses(scores, negatives), counted)
        return TermSums(loss, (retrieved(scores.detach(), negatives) & counted).sum(), counted.sum())
