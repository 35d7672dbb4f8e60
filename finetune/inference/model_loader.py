"""Loads a run or other weights for inference on a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from finetune.annotations.example import Example
from finetune.config import EvaluateConfig, answer_files
from finetune.data.regions import Regions, other_detector_note
from finetune.data.task_collate import TaskCollator
from finetune.data.task_data import TaskData, open_data, same_on_every_rank
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import TaskPass
from finetune.prepared.packed_examples import PackedExamples
from finetune.run_dirs.answer_vocabularies import Vocabularies
from finetune.run_dirs.model_source import ModelSource, choose_vocabulary, trained_source
from finetune.run_dirs.run_data_folder import choose_data
from finetune.task_types.base import Task
from pretrain.engine.distributed import choose_device, on_every_rank
from pretrain.models.precision import Precision
from pretrain.pretrained.find_weights import RUN
from shards.common.dist_info import ALONE, Ranks
from shards.common.errors import UserError

ChooseExamples = Callable[[TaskData], Sequence[Example]]  # examples of a task from its data


@dataclass(frozen=True)
class TrainingInputs:
    """What distinguishes the batches of training from those of inference.

    Attributes:
        clean: decontamination, see open_data.
        annotated_boxes: whether the annotated boxes are among the regions.
        seed: of retrieval's negatives.
        contrastive: weight of the contrastive term in the loss.
    """

    clean: str | None
    annotated_boxes: bool
    seed: int
    contrastive: float


class OpenedTask(NamedTuple):
    """A task that a model predicts.

    source: description of the weights; task_pass: the task's model, on its device; collator: of the examples.
    """

    source: ModelSource
    task_pass: TaskPass
    collator: TaskCollator


class ModelLoader:
    """Opens tasks of a run for inference. The model is loaded once for all of them, and so is each set of regions.

    Published weights do not contain their answers, which are known only when a task is opened; they are loaded again
    for a task with an answer head that the model does not have yet.

    config: flags, of which `split` is not used.
    """

    def __init__(self, config: EvaluateConfig, ranks: Ranks = ALONE):
        self.config, self.ranks = config, ranks
        self.device = choose_device(config.device, ranks)
        self.precision = Precision(config.precision, self.device)
        self._regions: dict[Path, Regions] = {}
        self._sources: dict[int, ModelSource] = {}  # by feature size
        self._model: TaskModel | None = None
        self._vocabularies: Vocabularies = {}

    def open(self, task: Task, examples: str | ChooseExamples, training: TrainingInputs | None = None) -> OpenedTask:
        """Opens a task.

        Args:
            task: the task.
            examples: the split whose examples are predicted, or a function that chooses them.
            training: for batches as in training; None for those of inference.
        """
        config, ranks = self.config, self.ranks
        annotated, clean = (training.annotated_boxes, training.clean) if training else (False, None)

        def opened() -> tuple[TaskData, PackedExamples]:
            folder = choose_data(config.run, config.data)
            data = open_data(task, folder, config.missing, annotated, self._regions, clean)
            if isinstance(examples, str):
                return data, data.examples(examples, ranks.log)
            return data, PackedExamples.of(examples(data))

        data, chosen = on_every_rank(ranks, opened)
        same_on_every_rank(data, (chosen,), ranks)
        source = self._source(data.feature_size)
        if note := other_detector_note(config.run, data.all_regions):
            ranks.log(note)
        check_trained(source, task)
        contrastive = training.contrastive if training else 0.0
        task_pass = TaskPass(self._model_for(source, data), task, self.precision, source.task_token(task), contrastive)
        settings = source.collator_settings(self._vocabularies.get(task.head.name), config.max_regions)
        return OpenedTask(source, task_pass, data.collator(chosen, settings, training.seed if training else None))

    def _source(self, feature_size: int) -> ModelSource:
        if feature_size not in self._sources:
            config = self.config
            self._sources[feature_size] = trained_source(config.run, config.config, config.tokenizer, feature_size)
        return self._sources[feature_size]

    def _model_for(self, source: ModelSource, data: TaskData) -> TaskModel:
        """The model, with the answers of the task of `data` if it has some."""
        head, known = data.task.head, source.vocabularies | self._vocabularies
        if head.has_vocabulary and head.name not in known:
            known[head.name] = choose_vocabulary(source, data, answer_files(self.config).get(head.name))
        if self._model is None or known.keys() != self._vocabularies.keys():
            self._model, sentence = source.trained_model(known, self.precision, [data.task])
            self._vocabularies = known
            if source.weights.kind != RUN:
                self.ranks.log(f"{self.config.run}: {sentence}")
        return self._model


def load(config: EvaluateConfig, task: Task, examples: str | ChooseExamples) -> tuple[TaskPass, TaskCollator]:
    """(model on its device, collator of the examples) of one task, see ModelLoader.open."""
    opened = ModelLoader(config).open(task, examples)
    return opened.task_pass, opened.collator


def check_trained(source: ModelSource, task: Task) -> None:
    """Raises UserError if the head of the task was not trained."""
    if source.has_head(task):
        return
    names = ", ".join(known.name for known in source.tasks)
    what = f"was trained on {names}" if names else "has no task heads"
    if source.zero_shot:
        what = f"contains pretraining weights, which only support {names} (zero-shot, by the alignment head)"
    raise UserError(f"--run {source.path or 'scratch'}: {what}; fine-tune it on {task.name} first")
