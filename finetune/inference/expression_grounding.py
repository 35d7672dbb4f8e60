"""The box predicted for a text as a referring expression, shown with attention maps (figures 12 and 13)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from finetune.annotations.example import Example
from finetune.data.task_collate import TaskCollator
from finetune.heads.grounding_head import boxes_of_rows
from finetune.objective.task_pass import TaskPass
from finetune.run_dirs.model_source import ModelSource


@torch.no_grad()
def expression_boxes(
    source: ModelSource, task_pass: TaskPass, collator: TaskCollator, examples: Sequence[Example]
) -> np.ndarray | None:
    """The box that the referring-expression head predicts for the text of each example in each of its images.

    The text is treated as an expression of the first referring-expression task of the weights: with its task token and
    its maximum length.

    Args:
        source: description of the weights.
        task_pass: model and task of the examples.
        collator: collator of the examples.
        examples: not empty.

    Returns:
        float (n, 4): a box for each image of each example, as fractions of the image's sides; None if the weights were
        not trained on a referring-expression task, and for such a task itself, whose prediction is this box.
    """
    task = next((task for task in source.tasks if task.head.finds_regions), None)
    if task is None or task_pass.task.head.finds_regions:
        return None
    expressions = [Example(0, example.text, (image,)) for example in examples for image in example.images]
    max_tokens = min(task.max_tokens, source.sizes.max_position_embeddings)
    grounding = TaskCollator(
        task=task,
        examples=expressions,
        regions=collator.regions,
        tokenizer=collator.tokenizer,
        limits=replace(collator.limits, max_tokens=max_tokens),
    )
    batch = grounding(0, np.arange(len(expressions)))
    grounding_pass = TaskPass(task_pass.model, task, task_pass.precision, source.task_token(task))
    logits = grounding_pass.logits(batch.to(task_pass.device))
    return boxes_of_rows(batch.pairs.boxes.numpy(), logits.argmax(1).cpu())
