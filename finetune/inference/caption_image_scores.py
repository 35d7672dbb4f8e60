"""Retrieval evaluation: scores of every caption with every image.

Up to the first co-attention layer, the text stream depends on the caption only and the image stream on the image only.
These layers are computed once per caption and per image, and only the rest for every pair. The scores are the same.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

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
    examples = collator.examples
    images = list(dict.fromkeys(example.images[0] for example in examples))
    first_captions = {}
    for number, example in enumerate(examples):
        first_captions.setdefault(example.images[0], number)
    scores = np.zeros((len(examples), len(images)))
    texts = _texts(work, collator, batch_size, device)
    first, last = share(len(images), ranks.count, ranks.rank)
    for place in range(first, last):
        image = _image(work, collator, first_captions[images[place]], device)
        found = [_pairs(work, text, image).double().cpu().numpy() for text in texts]
        scores[:, place] = np.concatenate(found)
        progress(place + 1 - first, last - first)
    return scores


def _texts(work: TaskPass, collator: TaskCollator, batch_size: int, device) -> list[tuple[Tensor, Layout]]:
    """Hidden states of the captions before the first co-attention layer, in batches, with their layouts."""
    texts = []
    for begin in range(0, len(collator.examples), batch_size):
        x = work.inputs(collator(0, np.arange(begin, min(begin + batch_size, len(collator.examples)))).to(device))
        with work.precision.autocast():
            texts.append(
                work.model.encoder.encode_text_alone(x.input_ids, x.text_mask, x.text_count, task_ids=x.task_ids)
            )
    return texts


def _image(work: TaskPass, collator: TaskCollator, number: int, device) -> tuple[Tensor, Layout]:
    """Hidden states (1, R, h) of an image before the first co-attention layer, with their layout (no padding)."""
    x = work.inputs(collator(0, np.array([number])).to(device))
    with work.precision.autocast():
        return work.model.encoder.encode_image_alone(x.features, x.locations, x.image_mask)


def _pairs(work: TaskPass, text: tuple[Tensor, Layout], image: tuple[Tensor, Layout]) -> Tensor:
    """(captions,): the scores of a batch of captions with one image."""
    size, model = len(text[1].mask), work.model
    states, images = image[0].expand(size, -1, -1), Layout(image[1].mask.expand(size, -1))
    with work.precision.autocast():
        encoded = model.encoder.finish(StreamStates(*text, states, images, None))
        return model.scores(encoded, None, "retrieval")
