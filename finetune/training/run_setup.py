"""What single-task and multi-task runs set up alike: the model, its answers, the engine, and the run directory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from finetune.config import FREE_FLAGS, TrainingConfig
from finetune.data.regions import other_detector_note
from finetune.data.task_data import CollatorSettings
from finetune.models.task_model import TaskModel
from finetune.run_dirs.answer_vocabularies import Vocabularies
from finetune.run_dirs.finetune_run_dir import begin_run, check_content
from finetune.run_dirs.model_source import ModelSource
from finetune.task_types.base import Task
from finetune.training.model_setup import make_model, make_task_engine, with_defaults
from finetune.training.training_data import TrainingData
from pretrain.engine.checkpoint import read_metadata
from pretrain.engine.distributed import on_first
from pretrain.engine.run_dir import check_flags
from pretrain.engine.step import Engine
from pretrain.models.model_config import ModelConfig
from pretrain.models.precision import Precision
from shards.common.dist_info import Ranks


@dataclass(frozen=True)
class RunSetup:
    """The model and the data of a new or resumed run.

    Attributes:
        stored_flags: the flags as config.json stores them, so that a resumed run of an earlier version keeps its
            defaults.
        flags: the flags with the defaults for the size of the model, see model_setup.with_defaults.
        opened: the data of each task.
        source: the initial weights, or those of the run to resume.
        sizes: model configuration.
        vocabularies: answer head -> its answers.
        model: the model, on its device; a resumed one gets its weights with the engine.
        precision: of the matrix products, and the device.
        ranks: the processes of the run.
        newest: the checkpoint to resume from; None for a new run.
        metadata: checkpoint.json of that checkpoint; empty for a new run.
        content: task -> fingerprints of its data.
    """

    stored_flags: TrainingConfig
    flags: TrainingConfig
    opened: Sequence[TrainingData]
    source: ModelSource
    sizes: ModelConfig
    vocabularies: Vocabularies
    model: TaskModel
    precision: Precision
    ranks: Ranks
    newest: Path | None
    metadata: dict
    content: dict[str, list[str]]

    def collator_settings(self, task: Task) -> CollatorSettings:
        """Tokenizer, vocabulary and limits of a task's batches."""
        return self.source.collator_settings(self.vocabularies.get(task.head.name), self.flags.max_regions)

    def engine(self, training_pass: nn.Module, lr: float, head_lr: float, update_unused: bool = False) -> Engine:
        """The optimizer and training step of a pass, restored if the run is; for the arguments see make_task_engine."""
        return make_task_engine(self.flags, self.ranks, training_pass, lr, head_lr, self.newest, update_unused)

    def begin_run(self, tokens: dict[str, int | None]) -> None:
        """Creates the run directory of a new run. tokens: task -> task token."""
        if self.newest:
            return
        begin = partial(
            begin_run,
            run=Path(self.stored_flags.out),
            config=self.stored_flags,
            source=self.source,
            sizes=self.sizes,
            tasks=[one.task for one in self.opened],
            tokens=tokens,
            vocabularies=self.vocabularies,
            device=self.precision.device,
            regions=self.opened[0].data.regions,
            content=self.content,
        )
        on_first(self.ranks, begin)


def set_up_run(
    config: TrainingConfig,
    opened: Sequence[TrainingData],
    source: ModelSource,
    sizes: ModelConfig,
    choose_vocabularies: Callable[[int | None], Vocabularies],
    ranks: Ranks,
    device: torch.device,
    newest: Path | None,
) -> RunSetup:
    """Makes the model of a run, after checking that a resumed one has the flags and the data that it began with.

    Args:
        config: flags, see RunSetup.stored_flags.
        opened, source, sizes, ranks, newest: see RunSetup.
        choose_vocabularies: function from --min_answer_count (None in a resumed run, whose answers are stored) to the
            vocabularies; called on the first rank.
        device: of the model.

    Raises:
        UserError: the flags or the data have changed, or the weights do not fit.
    """
    flags = with_defaults(config, sizes, newest)
    if newest:
        check_flags(config, Path(config.out), FREE_FLAGS)
    content = on_first(ranks, lambda: {one.task.name: one.content() for one in opened})
    if newest:
        check_content(Path(config.out), content)
    vocabularies = on_first(ranks, lambda: choose_vocabularies(None if newest else config.min_answer_count))
    precision, tasks = Precision(config.precision, device), [one.task for one in opened]
    regions = [regions for one in opened for regions in one.data.all_regions]
    if source.path and (note := other_detector_note(source.path, regions)):
        ranks.log(note)
    return RunSetup(
        stored_flags=config,
        flags=flags,
        opened=opened,
        source=source,
        sizes=sizes,
        vocabularies=vocabularies,
        model=make_model(flags, tasks, sizes, vocabularies, None if newest else source, precision, ranks),
        precision=precision,
        ranks=ranks,
        newest=newest,
        metadata=read_metadata(newest) if newest else {},
        content=content,
    )
