"""Scores of every caption with every image: what retrieval is evaluated on.

The text stream up to the first connection depends on the caption alone, and so does the image stream on the image:
each is worked out once, and only what follows is done for every pair. The scores are the same.
"""

import numpy as np
import torch
from torch import Tensor

from finetune.batch import TaskCollator
from finetune.work import TaskPass
from pretrain.plan import share
from shards.ranks import Ranks


def retrieval_scores(work: TaskPass, collator: TaskCollator, batch_size: int, ranks: Ranks, device) -> np.ndarray:
    """float64 (captions, images), images in order of coming; this rank's share of the images, zeros elsewhere."""
    examples = collator.examples
    images = list(dict.fromkeys(example.images[0] for example in examples))
    first_captions = {}
    for number, example in enumerate(examples):
        first_captions.setdefault(example.images[0], number)
    scores = np.zeros((len(examples), len(images)))
    texts, text_masks = _texts(work, collator, batch_size, device)
    for place in range(*share(len(images), ranks.count, ranks.rank)):
        image, image_mask = _image(work, collator, first_captions[images[place]], device)
        for begin in range(0, len(examples), batch_size):
            part = slice(begin, begin + batch_size)
            scores[part, place] = _pair(work, texts[part], text_masks[part], image, image_mask).double().cpu().numpy()
    return scores


def _texts(work: TaskPass, collator: TaskCollator, batch_size: int, device) -> tuple[Tensor, Tensor]:
    """The captions' states before the first connection, (captions, L, h), and their masks (captions, L)."""
    encoder, states, masks = work.model.encoder, [], []
    longest = max(map(len, collator.pieces.encode([e.text for e in collator.examples], collator.limits.words)))
    for begin in range(0, len(collator.examples), batch_size):
        numbers = np.arange(begin, min(begin + batch_size, len(collator.examples)))
        x = work.inputs(collator(0, numbers).to(device))
        short = longest - x.input_ids.shape[1]
        ids, mask = (torch.nn.functional.pad(value, (0, short)) for value in (x.input_ids, x.text_mask))
        if x.task_ids is not None:
            mask = torch.cat([mask[:, :1], mask], 1)
        with work.precision.autocast():
            states.append(encoder.begin_text(ids, mask, task_ids=x.task_ids))
        masks.append(mask)
    return torch.cat(states), torch.cat(masks)


def _image(work: TaskPass, collator: TaskCollator, number: int, device) -> tuple[Tensor, Tensor]:
    """One image's states before the first connection, (1, R, h), and its mask (1, R)."""
    x = work.inputs(collator(0, np.array([number])).to(device))
    with work.precision.autocast():
        return work.model.encoder.begin_image(x.features, x.locations, x.image_mask), x.image_mask


def _pair(work: TaskPass, text: Tensor, text_mask: Tensor, image: Tensor, image_mask: Tensor) -> Tensor:
    """(captions,): the scores of some captions with one image."""
    size, model = len(text), work.model
    with work.precision.autocast():
        encoded = model.encoder.join(text, text_mask, image.expand(size, -1, -1), image_mask.expand(size, -1))
        return model.scores(encoded, None, "retrieval")
