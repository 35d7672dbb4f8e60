"""Scores on held-out pairs, each beside what it is to be compared with: chance."""

import numpy as np
import torch

from pretrain.heads import PretrainingModel
from pretrain.objective import Objective
from pretrain.sources import ValidationBatches


def most_frequent_word(captions, numbers, pieces, limit: int, at_most: int = 100_000) -> int:
    """The word piece that comes most often in the training captions (of at most so many, evenly spread)."""
    numbers = numbers[:: max(1, len(numbers) // at_most)]
    counts = np.zeros(len(pieces), np.int64)
    for begin in range(0, len(numbers), 4096):
        for ids in pieces.encode([captions[number] for number in numbers[begin : begin + 4096].tolist()], limit):
            np.add.at(counts, ids[1:-1], 1)
    return int(counts.argmax())


@torch.no_grad()
def validate(
    model: PretrainingModel, objective: Objective, batches: ValidationBatches, device, frequent: int, autocast
) -> dict:
    """Losses and accuracies on the held-out pairs, in evaluation mode.

    alignment_chance: the share of the more frequent of the two labels; word_chance: the accuracy of always
    saying `frequent`, the most frequent training word, at the very positions that are predicted.
    """
    training = model.training
    model.eval()
    sums = {name: 0.0 for name in ("words", "regions", "alignment", "words_right", "alignment_right")}
    word_count = region_count = misaligned = frequent_right = 0
    for batch in batches:
        batch = batch.to(device)
        inputs = objective.mask(batch)
        with autocast():
            losses = objective.losses(model, batch, inputs)
        for name in sums:
            sums[name] += getattr(losses, name).item()
        word_count += losses.word_count
        region_count += losses.region_count
        misaligned += int(batch.misaligned.sum())
        frequent_right += int((inputs.word_labels == frequent).sum())
    model.train(training)
    pairs = len(batches)
    words, regions = max(word_count, 1), max(region_count, 1)
    values = {
        "loss_words": sums["words"] / words,
        "loss_regions": sums["regions"] / regions,
        "loss_alignment": sums["alignment"] / pairs,
        "alignment_accuracy": sums["alignment_right"] / pairs,
        "alignment_chance": max(misaligned, pairs - misaligned) / pairs,
        "word_accuracy": sums["words_right"] / words,
        "word_chance": frequent_right / words,
        "pairs": pairs,
    }
    values["loss"] = values["loss_words"] + values["loss_regions"] + values["loss_alignment"]
    return values
