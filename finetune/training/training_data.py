"""The data of the tasks of a run, opened on every rank and compared between ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.data.regions import Regions, detector_note
from finetune.data.task_data import TaskData, check_same_width, content_of, open_data, same_on_every_rank
from finetune.prepared.packed_examples import PackedExamples
from finetune.task_types.base import Task
from pretrain.engine.distributed import on_every_rank
from shards.common.dist_info import Ranks


@dataclass(frozen=True)
class TrainingData:
    """A task's data, with the training and validation examples of a run."""

    data: TaskData
    training: PackedExamples
    validation: PackedExamples

    @property
    def task(self) -> Task:
        return self.data.task

    def content(self) -> list[str]:
        """Fingerprints of the regions and of the examples, see `content_of`."""
        return content_of(self.data, (self.training, self.validation))


def open_training_data(
    config: FinetuneConfig, tasks: Sequence[Task], splits: Sequence[Sequence[str]], ranks: Ranks
) -> list[TrainingData]:
    """Opens the data of the tasks, equal on all ranks. Tasks with the same images share their regions.

    Args:
        config: flags.
        tasks: the tasks.
        splits: of every task the training and the validation split, whose prepared data exist.
        ranks: the processes of the run.
    """
    shared: dict[Path, Regions] = {}

    def opened() -> list[TrainingData]:
        data = [open_data(t, config.data, config.missing, config.annotated_boxes, shared, config.clean) for t in tasks]
        check_same_width(*(of_task.regions for of_task in data))
        return [
            TrainingData(
                data=of_task,
                training=of_task.examples(training, ranks.log),
                validation=of_task.examples(validation, ranks.log)[: config.validate_on],
            )
            for of_task, (training, validation) in zip(data, splits, strict=True)
        ]

    found = on_every_rank(ranks, opened)
    if note := detector_note(regions for one in found for regions in one.data.all_regions):
        ranks.log(note)
    for one in found:
        same_on_every_rank(one.data, (one.training, one.validation), ranks)
    return found
