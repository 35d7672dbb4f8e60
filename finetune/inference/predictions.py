"""Predictions of a model on a task's examples, in the form of the task's `scores` and `submission`."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from finetune.data.task_batches import in_order
from finetune.data.task_collate import WHOLE_IMAGE, TaskBatch, TaskCollator, image_size
from finetune.inference.caption_image_scores import Progress, retrieval_scores, silent
from finetune.inference.rerank import reranked_scores
from finetune.objective.task_pass import TaskPass
from pretrain.data.batch_schedule import share
from pretrain.engine.distributed import all_reduce_sum, on_every_rank
from shards.common.dist_info import Ranks


def predict(
    work: TaskPass,
    collator: TaskCollator,
    batch_size: int,
    workers: int,
    ranks: Ranks,
    device,
    progress: Progress = silent,
    rerank: int | None = None,
):
    """Predicts all examples of the collator; the work is divided over the ranks and the result is the same on all.

    Args:
        work: model and task.
        collator: examples and regions.
        batch_size: examples per batch.
        workers: number of data workers.
        ranks: the processes.
        device: device of the model.
        progress: called after each batch (or ranked image) of this rank with (done, total).
        rerank: retrieval only: number of candidates that the whole model scores (see rerank.py); None for all pairs.

    Returns:
        By head: answers as strings; boxes (n, 4) in pixels, for ranked tasks (n, rows, 4), best first; numbers of
        candidates or labels, int (n,); retrieval scores (captions, images).
    """
    if work.task.head == "retrieval" and rerank is not None:
        score_candidates = partial(reranked_scores, work, collator, rerank, batch_size, ranks, device, progress)
        return predicted_on_all_ranks(work, score_candidates, ranks)
    if work.task.head == "retrieval":
        rank_images = partial(retrieval_scores, work, collator, batch_size, ranks, device, progress)
        return predicted_on_all_ranks(work, rank_images, ranks)
    choose = partial(_choices, work, collator, batch_size, workers, ranks, device, progress)
    raw = predicted_on_all_ranks(work, choose, ranks)
    if work.task.head == "regions":
        return raw
    numbers = raw[:, 0].astype(np.int64)
    return [collator.vocabulary.answers[n] for n in numbers] if collator.vocabulary else numbers


@torch.no_grad()
def predicted_on_all_ranks(work: TaskPass, on_this_rank: Callable[[], np.ndarray], ranks: Ranks) -> np.ndarray:
    """The sum over all ranks of `on_this_rank`, called with the model in evaluation mode and without gradients."""
    training = work.model.training
    work.model.eval()
    try:
        raw = on_every_rank(ranks, on_this_rank)
    finally:
        work.model.train(training)
    return all_reduce_sum(torch.from_numpy(raw), ranks).numpy()


def _choices(
    work: TaskPass, collator: TaskCollator, batch_size: int, workers: int, ranks: Ranks, device, progress: Progress
) -> np.ndarray:
    """float64 (examples, 1 or 4): the predictions for this rank's share, zeros elsewhere.

    For ranked tasks (examples, rows, 4): all boxes of an image, best first, padded with boxes of zeros.
    """
    boxes, ranked, count = work.task.head == "regions", work.task.ranked, len(collator.examples)
    chosen = np.zeros((count, collator.limits.regions + 1, 4) if ranked else (count, 4 if boxes else 1))
    first, last = share(count, ranks.count, ranks.rank)
    with in_order(collator, batch_size, workers, ranks, pin=device.type == "cuda") as batches:
        for part, batch in batches:
            scores = work.scores(batch.to(device))
            progress(part.stop - first, last - first)
            if ranked:
                order = scores.argsort(dim=1, descending=True, stable=True).cpu()
                chosen[part, : order.shape[1]] = _boxes(collator, part, batch, order)
                continue
            best = scores.argmax(1).cpu()
            chosen[part] = _boxes(collator, part, batch, best) if boxes else best[:, None].numpy()
    return chosen


def _boxes(collator: TaskCollator, part: slice, batch: TaskBatch, chosen: Tensor) -> np.ndarray:
    """(n, 4) or (n, k, 4): the boxes of the chosen rows (n,) or (n, k), in pixels of the annotations."""
    examples = collator.examples[part]
    sizes = np.array([image_size(example, collator.regions[example.images[0]]) * 2 for example in examples])
    return boxes_of_rows(batch, chosen) * (sizes if chosen.ndim == 1 else sizes[:, None])


def boxes_of_rows(batch: TaskBatch, numbers: Tensor) -> np.ndarray:
    """(n, 4) or (n, k, 4): the boxes of rows (n,) or (n, k) of a batch's images, as fractions of the image's sides.

    Row 0, the image token, has the box of the whole image.
    """
    rows = np.concatenate([np.broadcast_to(WHOLE_IMAGE, (len(numbers), 1, 4)), batch.rows.boxes.numpy()], 1)
    images = np.arange(len(numbers))
    return rows[images if numbers.ndim == 1 else images[:, None], numbers.numpy()]
