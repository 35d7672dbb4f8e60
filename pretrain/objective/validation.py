"""Validation scores of pretraining, each with its chance level."""

import numpy as np
import torch

from pretrain.data.batch import Batch
from pretrain.data.pair_batches import ValidationBatches
from pretrain.engine.distributed import all_reduce_sum
from pretrain.objective.loss_term import COUNTS, PAIRS, WORDS, LossTerm
from pretrain.objective.pretraining_pass import PretrainingPass
from shards.common.counted import counted
from shards.common.errors import ErrorOnAnotherRank, UserError


def most_frequent_word(captions, numbers, tokenizer, limit: int, at_most: int = 100_000) -> int:
    """The id of the most frequent token in the training captions (in at most `at_most` of them, evenly spaced)."""
    numbers = numbers[:: max(1, len(numbers) // at_most)]
    counts = np.zeros(len(tokenizer), np.int64)
    for begin in range(0, len(numbers), 4096):
        for ids in tokenizer.encode([captions[number] for number in numbers[begin : begin + 4096].tolist()], limit):
            np.add.at(counts, ids[1:-1], 1)
    return int(counts.argmax())


@torch.no_grad()
def validate(pretraining_pass: PretrainingPass, batches: ValidationBatches, device, frequent: int) -> dict:
    """Losses and accuracies on the validation pairs of all ranks, in evaluation mode.

    `alignment_chance` is the share of the more frequent label; `word_chance` is the accuracy of predicting `frequent`,
    the most frequent training token, at all masked positions.
    """
    names = (*pretraining_pass.objective.sum_names, *COUNTS, "misaligned", "frequent")
    sums = torch.zeros(len(names) + 1, dtype=torch.float64)  # the last: ranks that have failed
    failure = None
    pretraining_pass.model.eval()
    try:
        for batch in batches:
            sums[:-1] += _of_batch(pretraining_pass, batch.to(device), frequent, names)
    except UserError as error:  # raised below, when every rank knows
        failure, sums[-1] = error, 1
    pretraining_pass.model.train()
    *values, failed = all_reduce_sum(sums, batches.ranks).tolist()
    if failed:
        raise failure or ErrorOnAnotherRank("another rank has stopped")
    total = dict(zip(names, values, strict=True))
    pairs = total[PAIRS]
    return pretraining_pass.objective.metrics(total) | {
        "alignment_chance": max(total["misaligned"], pairs - total["misaligned"]) / max(pairs, 1),
        "word_chance": total["frequent"] / max(total[WORDS], 1),
        "pairs": int(pairs),
    }


def _of_batch(pretraining_pass: PretrainingPass, batch: Batch, frequent: int, names: tuple[str, ...]) -> torch.Tensor:
    """The sums of these names over one batch, float64, on the CPU."""
    inputs, losses = pretraining_pass.losses(batch)
    chances = {"misaligned": batch.misaligned.sum(), "frequent": (inputs.token_labels == frequent).sum()}
    sums = losses.sums | losses.local_counts | chances
    return torch.stack([sums[name].double() for name in names]).cpu()  # one synchronisation per batch


def describe_validation(terms: tuple[LossTerm, ...], scores: dict) -> str:
    """Formats the result of `validate` for the console."""
    described = ", ".join(term.describe(scores) for term in terms)
    return f"{described}, loss {scores['loss']:.3f}, on {counted(scores['pairs'], 'pair')}"
