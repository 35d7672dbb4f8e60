"""Retrieval evaluation: scores of every caption with every image.

Up to the first co-attention layer, the text stream depends on the caption only and the image stream on the image only.
These layers are computed once per caption and per image, and only the rest for every pair. The scores are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.annotations.example import Example
from finetune.data.task_collate import TaskCollator
from finetune.inference.kept_scores import KeptScores
from finetune.objective.task_pass import TaskPass
from pretrain.data.batch_schedule import part_range
from pretrain.models.packing import SequenceLayout, lay_out
from pretrain.models.vilbert import StreamStates
from shards.common.dist_info import Ranks

Progress = Callable[[int, int], None]  # called with (done, total)


def silent(done: int, total: int) -> None:
    """Reports no progress."""


@dataclass(frozen=True)
class Rows:
    """Hidden states of some captions or images before the first co-attention layer.

    Attributes:
        states: packed or padded, as in the layout.
        count: number of valid positions; known without waiting for the device.
    """

    states: Tensor
    layout: SequenceLayout
    count: int

    @classmethod
    def of(cls, states: Tensor, layout: SequenceLayout) -> "Rows":
        return cls(states, layout, int(layout.mask.sum()))

    def repeated(self, times: int, each: bool) -> tuple[Tensor, SequenceLayout]:
        """Every sequence `times` times, in succession (each) or one round of all after the other."""
        if times == 1:
            return self.states, self.layout
        mask, states = self.layout.mask, self.layout.pad(self.states)
        if each:
            mask, states = mask.repeat_interleave(times, 0), states.repeat_interleave(times, 0)
        else:
            mask, states = mask.repeat(times, 1), states.repeat(times, 1, 1)
        layout = lay_out(mask, self.count * times)
        return layout.pack(states), layout


def retrieval_scores(
    task_pass: TaskPass,
    collator: TaskCollator,
    batch_size: int,
    ranks: Ranks,
    progress: Progress = silent,
    kept: KeptScores | None = None,
) -> np.ndarray:
    """The scores of all captions with this rank's share of the images.

    A pass of the model has up to batch_size pairs: a batch of captions with one image or, if there are fewer captions,
    with several. The passes are the same for any number of ranks, and so are the scores.

    Args: see predictions.predict. progress is called after each pass with the number of pairs.

    Returns:
        float64 (captions, images), images in order of first appearance; zeros for the images of other ranks.
    """
    captions, count = np.array(first_captions(collator.examples)), len(collator.examples)
    scores = np.zeros((count, len(captions)))
    blocks = list(batches(len(captions), max(1, batch_size // count)))
    if kept:
        kept.fill(scores, blocks)
    waiting = sorted(set(range(len(blocks))) - set(kept.done if kept else ()))
    mine = waiting[slice(*part_range(len(waiting), ranks.count, ranks.rank))]
    texts = [Rows.of(*text_states(task_pass, collator, part)) for part in batches(count, batch_size) if mine]
    done, total = 0, count * sum(len(blocks[number]) for number in mine)
    for number in mine:
        block, found = blocks[number], []
        images = Rows.of(*_image_states(task_pass, collator, captions[block]))
        for text in texts:
            found.append(_pairs(task_pass, text, images))
            done += found[-1].numel()
            progress(done, total)
        scores[:, block] = torch.cat(found).double().cpu().numpy()
        if kept:
            kept.add(number, scores[:, block])
    if kept:
        kept.close()
    return scores


def first_captions(examples: Sequence[Example]) -> list[int]:
    """The number of the first caption of each image, images in order of first appearance."""
    numbers: dict[str, int] = {}
    for number, example in enumerate(examples):
        numbers.setdefault(example.images[0], number)
    return list(numbers.values())


def batches(count: int, size: int) -> Iterator[np.ndarray]:
    """The numbers 0 to count - 1, in order, at most `size` at a time."""
    return (np.arange(begin, min(begin + size, count)) for begin in range(0, count, size))


def text_states(task_pass: TaskPass, collator: TaskCollator, captions: np.ndarray) -> tuple[Tensor, SequenceLayout]:
    """Hidden states of some captions before the first co-attention layer, with their layout."""
    inputs = task_pass.inputs(collator(0, captions).to(task_pass.device))
    with task_pass.precision.autocast():
        return task_pass.model.encode_text_alone(inputs)


def _image_states(task_pass: TaskPass, collator: TaskCollator, captions: np.ndarray) -> tuple[Tensor, SequenceLayout]:
    """Hidden states of the images of some captions before the first co-attention layer, with their layout."""
    inputs = task_pass.inputs(collator(0, captions).to(task_pass.device))
    with task_pass.precision.autocast():
        return task_pass.model.encode_image_alone(inputs)


def _pairs(task_pass: TaskPass, texts: Rows, images: Rows) -> Tensor:
    """(captions, images): the scores of all pairs of some captions and images."""
    counts = len(texts.layout.mask), len(images.layout.mask)
    states = StreamStates(*texts.repeated(counts[1], each=False), *images.repeated(counts[0], each=True), None)
    with task_pass.precision.autocast():
        encoded = task_pass.model.encoder.finish(states)
        return task_pass.model.logits(encoded, None, task_pass.task.head).view(counts[::-1]).T
