"""The batches of training examples on which tasks are compared: a function of the seed alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune.config import InterferenceConfig
from finetune.data.hard_negatives import RetrievalNegatives
from finetune.data.task_collate import TaskCollator
from finetune.gradients.interference_measurement import FixedBatches
from finetune.inference.model_loader import ModelLoader
from finetune.task_types.base import Task
from shards.common import counter_rng
from shards.common.random_purposes import EpochPurpose

EPOCH = 0  # whose order and negatives the batches have


def open_fixed_batches(config: InterferenceConfig, tasks: Sequence[Task]) -> list[FixedBatches]:
    """Loads the model of a run once and collates --batches batches of every task's training split.

    Retrieval has its negatives of the first epoch, as in training.
    """
    loader, opened = ModelLoader(config), []
    for task in tasks:
        _, work, collator = loader.open(task, task.splits[0])
        if task.head.ranks_images:
            negatives = RetrievalNegatives(collator.examples, collator.regions, config.seed, Path(config.data))
            collator = replace(collator, negatives=negatives)
        opened.append(FixedBatches(work, _batches(collator, config)))
    return opened


def _batches(collator: TaskCollator, config: InterferenceConfig) -> list:
    """The first examples in the order of the seed; of a task with too few of them, some are in several batches."""
    random_key = counter_rng.key(config.seed, EPOCH, EpochPurpose.EXAMPLE_ORDER)
    order = counter_rng.permutation(random_key, len(collator.examples))
    size = min(config.batch_size, len(order))
    return [collator(EPOCH, numbers) for numbers in np.resize(order, (config.batches, size))]
