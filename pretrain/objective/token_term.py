"""Masked tokens: the cross-entropy of the original token at masked positions."""

from dataclasses import dataclass

import torch.nn.functional as F

from pretrain.objective.loss_term import WORDS, ForwardPass, LossTerm, TermSums, at_least_float32, weighted_sum


@dataclass(frozen=True)
class TokenTerm(LossTerm):
    """Predicts masked tokens with the masked-token head."""

    name = "words"
    label = "masked tokens"
    count = WORDS
    accuracy = "word_accuracy"
    chance_label = "most frequent token"

    def sums(self, forward: ForwardPass) -> TermSums:
        labels, weights = forward.inputs.token_labels, forward.inputs.token_weights
        scores = at_least_float32(forward.model.word_scores(forward.tokens))
        losses = F.cross_entropy(scores, labels, reduction="none")
        return TermSums(weighted_sum(losses, weights), ((scores.detach().argmax(-1) == labels) & weights).sum())
