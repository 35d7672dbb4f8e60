"""The batches of training examples on which tasks are compared: a function of the seed alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune.config import InterferenceConfig
from finetune.data.hard_negatives import Options
from finetune.data.task_collate import TaskCollator
from finetune.gradients.interference_measurement import FixedBatches
from finetune.inference.model_loader import ModelLoader
from finetune.task_types.base import Task
from shards.common import counter_rng
from shards.common.random_purposes import EpochPurpose


def open_fixed_batches(config: InterferenceConfig, tasks: Sequence[Task]) -> list[FixedBatches]:
    """Loads the model of a run once and collates --batches batches of every task's training split.

    Retrieval has its negatives of the first epoch, as in training.
    """
    loader, opened = ModelLoader(config), []
    for task in tasks:
        _, work, collator = loader.open(task, task.splits[0])
        if task.head.ranks_images:
            options = Options(collator.examples, collator.regions, config.seed, Path(config.data))
            collator = replace(collator, options=options)
        opened.append(FixedBatches(work, _batches(collator, config)))
    return opened


def _batches(collator: TaskCollator, config: InterferenceConfig) -> list:
    """The first examples in the order of the seed; of a task with too few of them, some are in several batches."""
    order = counter_rng.permutation(counter_rng.key(config.seed, 0, EpochPurpose.EXAMPLE_ORDER), len(collator.examples))
    size = min(config.batch_size, len(order))
    return [collator(0, numbers) for numbers in np.resize(order, (config.batches, size))]
