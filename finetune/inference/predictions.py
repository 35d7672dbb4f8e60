"""Predictions of a model on a task's examples, in the form of the task's `scores` and `submission`."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.data.task_batches import in_order
from finetune.data.task_collate import TaskBatch, TaskCollator
from finetune.inference.caption_image_scores import Progress, retrieval_scores, silent
from finetune.inference.kept_scores import KeptScores
from finetune.inference.rerank import reranked_scores
from finetune.objective.task_pass import TaskPass
from pretrain.data.batch_schedule import part_range
from pretrain.engine.distributed import all_reduce_sum, on_every_rank
from shards.common.dist_info import Ranks
from shards.common.errors import UserError


def predict(
    task_pass: TaskPass,
    collator: TaskCollator,
    batch_size: int,
    workers: int,
    ranks: Ranks,
    progress: Progress = silent,
    rerank: int | None = None,
    kept: KeptScores | None = None,
):
    """Predicts all examples of the collator; the work is divided over the ranks and the result is the same on all.

    Args:
        task_pass: model and task.
        collator: examples and regions.
        batch_size: examples per batch.
        workers: number of data workers.
        ranks: the processes.
        progress: called after each batch of this rank with (done, total), numbers of examples or of ranked pairs.
        rerank: retrieval only: number of candidates that the whole model scores (see rerank.py); None for all pairs.
        kept: scores of an interrupted ranking of all pairs, which are not computed again; new ones are added.

    Returns:
        What the head returns (Head.to_predictions), such as answers as strings, boxes in pixels, or numbers of
        candidates or labels; for a head that ranks images their scores, float64 (captions, images).
    """
    head = task_pass.task.head
    if head.ranks_images and rerank is not None:
        score_candidates = partial(reranked_scores, task_pass, collator, rerank, batch_size, ranks, progress)
        return predicted_on_all_ranks(task_pass, score_candidates, ranks)
    if head.ranks_images:
        rank_images = partial(retrieval_scores, task_pass, collator, batch_size, ranks, progress, kept)
        return predicted_on_all_ranks(task_pass, rank_images, ranks)
    decode = partial(_decoded, task_pass, collator, batch_size, workers, ranks, progress)
    return head.to_predictions(predicted_on_all_ranks(task_pass, decode, ranks), collator.vocabulary)


@torch.no_grad()
def predicted_on_all_ranks(task_pass: TaskPass, on_this_rank: Callable[[], np.ndarray], ranks: Ranks) -> np.ndarray:
    """The sum over all ranks of `on_this_rank`, called with the model in evaluation mode and without gradients."""
    training = task_pass.model.training
    task_pass.model.eval()

    def checked() -> np.ndarray:
        raw = on_this_rank()
        _refuse_nan(torch.from_numpy(raw), task_pass)
        return raw

    try:
        raw = on_every_rank(ranks, checked)
    finally:
        task_pass.model.train(training)
    return all_reduce_sum(torch.from_numpy(raw), ranks).numpy()


def _refuse_nan(scores: Tensor, task_pass: TaskPass) -> None:
    """Raises UserError if a score is NaN, because the most likely choice among such scores is arbitrary."""
    if scores.isnan().any():
        raise UserError(
            f"{task_pass.task.title}: the model's scores are NaN; its weights have diverged or its --precision is too "
            "narrow: train with a lower --lr or use another --precision"
        )


class DecodedBatch(NamedTuple):
    """The predictions for a batch.

    Attributes:
        part: numbers of its examples.
        logits: of the task's head, on the CPU.
        decoded: result of Head.decode.
    """

    part: slice
    logits: Tensor
    decoded: np.ndarray


@contextlib.contextmanager
def decoded_batches(
    task_pass: TaskPass, collator: TaskCollator, batch_size: int, workers: int, ranks: Ranks
) -> Iterator[Iterator[DecodedBatch]]:
    """A context manager that yields an iterator of the predictions for this rank's share of all examples, in order.

    Arguments as for `predict`; the model should be in evaluation mode.

    Raises:
        UserError: a logit is NaN, or a data worker died inside the block.
    """
    with in_order(collator, batch_size, workers, ranks, pin=task_pass.device.type == "cuda") as batches:
        yield (_decoded_batch(task_pass, collator, part, batch) for part, batch in batches)


@torch.no_grad()
def _decoded_batch(task_pass: TaskPass, collator: TaskCollator, part: slice, batch: TaskBatch) -> DecodedBatch:
    logits = task_pass.logits(batch.to(task_pass.device)).cpu()
    _refuse_nan(logits, task_pass)
    boxes, examples = batch.pairs.boxes.numpy(), collator.examples[part]
    return DecodedBatch(part, logits, task_pass.task.head.decode(logits, boxes, examples, collator.regions))


def _decoded(
    task_pass: TaskPass, collator: TaskCollator, batch_size: int, workers: int, ranks: Ranks, progress: Progress
) -> np.ndarray:
    """float64 (examples, ...): the predictions for this rank's share in numbers (see Head.decode), zeros elsewhere."""
    count = len(collator.examples)
    found = np.zeros((count, *task_pass.task.head.prediction_shape(collator.limits.max_regions)))
    first, last = part_range(count, ranks.count, ranks.rank)
    with decoded_batches(task_pass, collator, batch_size, workers, ranks) as batches:
        for part, _, decoded in batches:
            # A ranked head returns as many rows as the longest image of the batch has.
            found[(part, *(slice(length) for length in decoded.shape[1:]))] = decoded
            progress(part.stop - first, last - first)
    return found
