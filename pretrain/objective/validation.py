"""Validation scores of pretraining, each with its chance level."""

import numpy as np
import torch

from pretrain.data.batch import Batch
from pretrain.data.pair_batches import ValidationBatches
from pretrain.engine.distributed import all_reduce_sum
from pretrain.objective.pretraining_pass import Pass
from shards.common.errors import ErrorOnAnotherRank, UserError


def most_frequent_word(captions, numbers, tokenizer, limit: int, at_most: int = 100_000) -> int:
    """The id of the most frequent token in the training captions (in at most `at_most` of them, evenly spaced)."""
    numbers = numbers[:: max(1, len(numbers) // at_most)]
    counts = np.zeros(len(tokenizer), np.int64)
    for begin in range(0, len(numbers), 4096):
        for ids in tokenizer.encode([captions[number] for number in numbers[begin : begin + 4096].tolist()], limit):
            np.add.at(counts, ids[1:-1], 1)
    return int(counts.argmax())


LOSSES = (
    *("words", "regions", "alignment", "words_right", "regions_right", "alignment_right"),
    *("contrastive", "contrastive_right", "contrastive_count"),
)
SUMS = (*LOSSES, "word_count", "region_count", "pairs", "misaligned", "frequent")


@torch.no_grad()
def validate(work: Pass, batches: ValidationBatches, device, frequent: int) -> dict:
    """Losses and accuracies on the validation pairs of all ranks, in evaluation mode.

    `alignment_chance` is the share of the more frequent label; `word_chance` is the accuracy of predicting `frequent`,
    the most frequent training token, at all masked positions.
    """
    work.model.eval()
    sums = torch.zeros(len(SUMS) + 1, dtype=torch.float64)
    failure = None
    try:
        for batch in batches:
            sums[:-1] += _of_batch(work, batch.to(device), frequent)
    except UserError as error:  # raised below, when every rank knows
        failure, sums[-1] = error, 1
    work.model.train()
    values = all_reduce_sum(sums, batches.ranks).tolist()
    if values.pop():
        raise failure or ErrorOnAnotherRank("another rank has stopped")
    s = dict(zip(SUMS, values, strict=True))
    pairs, words, regions = (max(s[name], 1) for name in ("pairs", "word_count", "region_count"))
    scores = {
        "loss_words": s["words"] / words,
        "loss_regions": s["regions"] / regions,
        "loss_alignment": s["alignment"] / pairs,
        "alignment_accuracy": s["alignment_right"] / pairs,
        "alignment_chance": max(s["misaligned"], s["pairs"] - s["misaligned"]) / pairs,
        "word_accuracy": s["words_right"] / words,
        "word_chance": s["frequent"] / words,
        "region_accuracy": s["regions_right"] / regions,
        "pairs": int(s["pairs"]),
    }
    loss = scores["loss_words"] + scores["loss_regions"] + scores["loss_alignment"]
    if weight := work.objective.contrastive:
        scores["loss_contrastive"] = s["contrastive"] / pairs
        scores["contrastive_accuracy"] = s["contrastive_right"] / max(s["contrastive_count"], 1)
        loss += weight * scores["loss_contrastive"]
    return scores | {"loss": loss}


def _of_batch(work: Pass, batch: Batch, frequent: int) -> torch.Tensor:
    """SUMS over one batch, float64, on the CPU."""
    inputs, losses = work.losses(batch)
    counts = (losses.word_count, losses.region_count, losses.pair_count, batch.misaligned.sum())
    values = (*(getattr(losses, name) for name in LOSSES), *counts, (inputs.word_labels == frequent).sum())
    return torch.stack([value.double() for value in values]).cpu()  # one synchronisation per batch
