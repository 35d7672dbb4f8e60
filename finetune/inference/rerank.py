"""Retrieval in two stages: by the similarity of embeddings, then by the whole model among the most similar.

As in ALBEF (Li et al. 2021, section 4): the contrastive head compares every caption with every image at the cost of a
dot product; co-attention is computed only for the most similar images of each caption and captions of each image.
"""

import numpy as np
import torch
from torch import Tensor

from finetune.data.task_collate import TaskCollator
from finetune.inference.caption_image_scores import Progress, batches, first_captions, text_states
from finetune.objective.task_pass import TaskPass
from pretrain.data.batch_schedule import part_range
from pretrain.models.packing import SequenceLayout
from pretrain.models.vilbert import StreamStates
from shards.common.dist_info import Ranks
from shards.common.errors import UserError

NOT_SCORED = -1e6  # added to the similarity of the other pairs, which keep their order below all scored ones
AT_ONCE = 1024  # captions or images whose similarities are ordered at a time, so that 25,000 x 5,000 fit in memory


def reranked_scores(
    task_pass: TaskPass,
    collator: TaskCollator,
    rerank: int,
    batch_size: int,
    ranks: Ranks,
    progress: Progress,
) -> np.ndarray:
    """float64 (captions, images), images in order of appearance; this rank's share of the pairs, zeros elsewhere.

    Args:
        rerank: how many images of each caption, and captions of each image, the whole model scores.
        progress: called after each batch with the number of pairs done and their total.

    Raises:
        UserError: the model has no contrastive head.
    """
    encoder = task_pass.model.encoder
    if encoder.contrast is None:
        raise UserError(
            f"--rerank {rerank}: the model has no contrastive head (pretrain.run --contrastive); leave it out"
        )
    numbers = batches(len(collator.examples), batch_size)
    texts = torch.cat([_embedded_texts(task_pass, collator, part) for part in numbers])
    images, states, mask = _images(task_pass, collator, np.array(first_captions(collator.examples)), batch_size)
    similarities = (texts @ images.T).double().cpu().numpy()
    chosen = np.argwhere(most_similar(similarities, rerank))  # in the order of captions
    scores = np.zeros(similarities.shape)
    if ranks.first:
        scores = similarities + NOT_SCORED
        scores[tuple(chosen.T)] = 0
    parts = list(batches(len(chosen), batch_size))  # the same for any number of ranks
    mine = parts[slice(*part_range(len(parts), ranks.count, ranks.rank))]
    done, total = 0, sum(map(len, mine))
    for part in mine:
        pairs = chosen[part]
        scores[tuple(pairs.T)] = _score(task_pass, collator, pairs, states, mask).double().cpu().numpy()
        done += len(pairs)
        progress(done, total)
    return scores


def most_similar(similarities: np.ndarray, count: int) -> np.ndarray:
    """bool (captions, images): the `count` most similar images of each caption, and captions of each image."""
    chosen = np.zeros(similarities.shape, bool)
    for values, marks in ((similarities, chosen), (similarities.T, chosen.T)):
        most = min(count, values.shape[1])
        for rows in batches(len(values), AT_ONCE):
            marks[rows[:, None], np.argpartition(-values[rows], most - 1, 1)[:, :most]] = True
    return chosen


def _embedded_texts(task_pass: TaskPass, collator: TaskCollator, captions: np.ndarray) -> Tensor:
    states, layout = text_states(task_pass, collator, captions)
    with task_pass.precision.autocast():
        return task_pass.model.encoder.contrast.embed_text(layout.pad(states), layout.mask)


def _images(
    task_pass: TaskPass, collator: TaskCollator, captions: np.ndarray, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (n, size) of the images of some captions, states before co-attention (n, R, h_v), mask bool (n, R)."""
    embeddings, states, masks = [], [], []
    for part in batches(len(captions), batch_size):
        inputs = task_pass.inputs(collator(0, captions[part]).to(task_pass.device))
        with task_pass.precision.autocast():
            rows, layout = task_pass.model.encode_image_alone(inputs)
            padded = layout.pad(rows)
            embeddings.append(task_pass.model.encoder.contrast.embed_image(padded, layout.mask))
        states.append(padded)
        masks.append(layout.mask)
    most = max(mask.shape[1] for mask in masks)
    states = [torch.nn.functional.pad(one, (0, 0, 0, most - one.shape[1])) for one in states]
    masks = [torch.nn.functional.pad(one, (0, most - one.shape[1])) for one in masks]
    return torch.cat(embeddings), torch.cat(states), torch.cat(masks)


def _score(task_pass: TaskPass, collator: TaskCollator, pairs: np.ndarray, states: Tensor, mask: Tensor) -> Tensor:
    """(n,): the whole model's scores of pairs (n, 2), numbers of captions in ascending order and of images."""
    captions, rows = np.unique(pairs[:, 0], return_inverse=True)
    texts = text_states(task_pass, collator, captions)
    images = torch.from_numpy(pairs[:, 1]).to(task_pass.device)
    stream_states = StreamStates(*texts, states[images], SequenceLayout(mask[images]), None)
    own = torch.arange(len(pairs), device=task_pass.device)
    recombined = stream_states.recombined(torch.from_numpy(rows).to(task_pass.device), own, None)
    with task_pass.precision.autocast():
        encoded = task_pass.model.encoder.finish(recombined)
        return task_pass.model.logits(encoded, None, task_pass.task.head)
