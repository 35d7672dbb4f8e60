"""Retrieval evaluation: scores of every caption with every image.

Up to the first co-attention layer, the text stream depends on the caption only and the image stream on the image only.
These layers are computed once per caption and per image, and only the rest for every pair. The scores are the same.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from finetune.annotations.example import Example
from finetune.data.task_collate import TaskCollator
from finetune.objective.task_pass import TaskPass
from pretrain.data.batch_schedule import share
from pretrain.models.packing import Layout
from pretrain.models.vilbert import StreamStates
from shards.common.dist_info import Ranks

Progress = Callable[[int, int], None]  # called with (done, total)


def silent(done: int, total: int) -> None:
    """Reports no progress."""


def retrieval_scores(
    work: TaskPass, collator: TaskCollator, batch_size: int, ranks: Ranks, device, progress: Progress = silent
) -> np.ndarray:
    """The scores of all captions with this rank's share of the images.

    Args: see predictions.predict. progress is called after each image.

    Returns:
        float64 (captions, images), images in order of first appearance; zeros for the images of other ranks.
    """
    captions = first_captions(collator.examples)
    scores = np.zeros((len(collator.examples), len(captions)))
    texts = [text_states(work, collator, part, device) for part in batches(len(collator.examples), batch_size)]
    first, last = share(len(captions), ranks.count, ranks.rank)
    for place in range(first, last):
        image = _image(work, collator, captions[place], device)
        found = [_pairs(work, text, image).double().cpu().numpy() for text in texts]
        scores[:, place] = np.concatenate(found)
        progress(place + 1 - first, last - first)
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


def text_states(work: TaskPass, collator: TaskCollator, captions: np.ndarray, device) -> tuple[Tensor, Layout]:
    """Hidden states of some captions before the first co-attention layer, with their layout."""
    inputs = work.inputs(collator(0, captions).to(device))
    with work.precision.autocast():
        return work.model.encode_text_alone(inputs)


def _image(work: TaskPass, collator: TaskCollator, number: int, device) -> tuple[Tensor, Layout]:
    """Hidden states (1, R, h) of an image before the first co-attention layer, with their layout (no padding)."""
    inputs = work.inputs(collator(0, np.array([number])).to(device))
    with work.precision.autocast():
        return work.model.encode_image_alone(inputs)


def _pairs(work: TaskPass, text: tuple[Tensor, Layout], image: tuple[Tensor, Layout]) -> Tensor:
    """(captions,): the scores of a batch of captions with one image."""
    size, model = len(text[1].mask), work.model
    states, images = image[0].expand(size, -1, -1), Layout(image[1].mask.expand(size, -1))
    with work.precision.autocast():
        encoded = model.encoder.finish(StreamStates(*text, states, images, None))
        return model.logits(encoded, None, work.task.head)
