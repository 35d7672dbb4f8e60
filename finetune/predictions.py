"""Predictions of a model on a task's examples, in the form that the task's scores and submissions take."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from finetune.batch import WHOLE, TaskBatch, TaskCollator, image_size
from finetune.rank_pairs import Progress, retrieval_scores, silent
from finetune.sources import in_order
from finetune.work import TaskPass
from pretrain.distributed import add_up, on_every_rank
from pretrain.plan import share
from shards.ranks import Ranks


def predict(
    work: TaskPass,
    collator: TaskCollator,
    batch_size: int,
    workers: int,
    ranks: Ranks,
    device,
    progress: Progress = silent,
):
    """Predictions for all examples of the collator, divided over the ranks and the same on every one.

    Answers as texts, boxes (n, 4) in pixels (of ranked tasks (n, rows, 4), best first), numbers of candidates, labels,
    or retrieval's scores (captions, images): see the task's own `scores`. progress: is called after each of this rank's
    batches, or images to be ranked.
    """
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
    """The sum over the ranks of what each predicts for its share of the examples, with the model in evaluation mode."""
    training = work.model.training
    work.model.eval()
    try:
        raw = on_every_rank(ranks, on_this_rank)
    finally:
        work.model.train(training)
    return add_up(torch.from_numpy(raw), ranks).numpy()


def _choices(
    work: TaskPass, collator: TaskCollator, batch_size: int, workers: int, ranks: Ranks, device, progress: Progress
) -> np.ndarray:
    """float64 (examples, 1 or 4): what this rank chooses for its share, zeros elsewhere.

    Of ranked tasks (examples, rows, 4): all boxes of an image, best first, and boxes without an area behind them.
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
    """(n, 4) or (n, k, 4): the boxes of the chosen rows (n,) or (n, k) in the annotations' pixels."""
    examples = collator.examples[part]
    sizes = np.array([image_size(example, collator.regions[example.images[0]]) * 2 for example in examples])
    return boxes_of_rows(batch, chosen) * (sizes if chosen.ndim == 1 else sizes[:, None])


def boxes_of_rows(batch: TaskBatch, numbers: Tensor) -> np.ndarray:
    """(n, 4) or (n, k, 4): the boxes of rows (n,) or (n, k) of a batch's images, as shares of the image's sides; row
    0 is the whole image."""
    rows = np.concatenate([np.broadcast_to(WHOLE, (len(numbers), 1, 4)), batch.rows.boxes.numpy()], 1)
    images = np.arange(len(numbers))
    return rows[images if numbers.ndim == 1 else images[:, None], numbers.numpy()]
