"""The batches of training examples on which tasks are compared: a function of the seed alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from finetune.config import InterferenceConfig
from finetune.data.task_collate import TaskBatch, TaskCollator
from finetune.gradients.interference_measurement import FixedBatches
from finetune.inference.model_loader import ModelLoader, TrainingInputs
from finetune.run_dirs.run_data_folder import training_flags
from finetune.task_types.base import Task
from pretrain.data.batch_schedule import part_range
from shards.common import counter_rng
from shards.common.dist_info import ALONE, Ranks
from shards.common.random_purposes import EpochPurpose

EPOCH = 0  # whose order and negatives the batches have


def as_trained(config: InterferenceConfig) -> InterferenceConfig:
    """The flags, with those of the run's training for the choice of examples and regions that are not given."""
    flags = {"missing": "stop"} | training_flags(config.run)
    names = ("clean", "missing", "max_regions")
    return replace(config, **{name: flags.get(name) for name in names if getattr(config, name) is None})


def open_fixed_batches(config: InterferenceConfig, tasks: Sequence[Task]) -> list[FixedBatches]:
    """Loads the model of a run once and collates --batches batches of every task's training split.

    They are as the run's own batches, with its decontamination, annotated boxes and loss; retrieval has its negatives
    of the first epoch. config: flags, see `as_trained`.
    """
    loader, of_tasks, flags = ModelLoader(config), [], training_flags(config.run)
    training = TrainingInputs(
        clean=config.clean,
        annotated_boxes=flags.get("annotated_boxes", False),
        seed=config.seed,
        contrastive=flags.get("contrastive", 0.0),
    )
    for task in tasks:
        opened = loader.open(task, task.splits[0], training=training)
        batches = fixed_batches(opened.collator, config.seed, config.batches, config.batch_size)
        of_tasks.append(FixedBatches(opened.task_pass, batches))
    return of_tasks


def fixed_batches(collator: TaskCollator, seed: int, count: int, size: int, ranks: Ranks = ALONE) -> list[TaskBatch]:
    """This rank's share of the first `count` batches of `fixed_size` examples in the order of the seed.

    Of a task with too few examples, some are in several batches.
    """
    random_key = counter_rng.key(seed, EPOCH, EpochPurpose.EXAMPLE_ORDER)
    order = counter_rng.permutation(random_key, len(collator.examples))
    size = fixed_size(collator, size)
    begin, end = part_range(size, ranks.count, ranks.rank)
    return [collator(EPOCH, numbers[begin:end]) for numbers in np.resize(order, (count, size))]


def fixed_size(collator: TaskCollator, size: int) -> int:
    """The number of examples of a batch over all ranks, of a task that may have fewer."""
    return min(size, len(collator.examples))
