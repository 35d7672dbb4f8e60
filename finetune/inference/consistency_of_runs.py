"""Predictions of runs from which grounding consistency is computed."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.annotations.example import Example
from finetune.config import ConsistencyConfig, EvaluateConfig
from finetune.data.task_data import TaskData
from finetune.evaluation.grounding_consistency import ImageAgreement, shared_words
from finetune.evaluation.pos_tagger import Tagger
from finetune.evaluation.scores import score_task
from finetune.inference.model_loader import load
from finetune.inference.predictions import predict
from finetune.run_dirs.run_data_folder import check_exists
from finetune.tasks import find_task
from pretrain.engine.run_dir import CONFIG, read_config
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.common.files import split_paths

GROUNDING = ("refcoco", "refcoco+")


@dataclass
class JudgedTask:
    """Examples of a task with a run's predictions. values: float (examples,), the accuracy of each."""

    task: str
    examples: Sequence[Example]
    predictions: Sequence
    values: np.ndarray

    def by_image(self) -> dict[str, list[int]]:
        """Image -> numbers of its examples."""
        found: dict[str, list[int]] = {}
        for number, example in enumerate(self.examples):
            found.setdefault(example.images[0], []).append(number)
        return found


def grounding_runs(config: ConsistencyConfig) -> dict[str, str]:
    """Task of referring expressions -> the run that was trained on it."""
    runs: dict[str, str] = {}
    for path in split_paths(config.grounding or config.run):
        check_exists(path)
        file = Path(path) / CONFIG
        for task in read_config(path).get("tasks", []) if file.exists() else []:
            if task in GROUNDING:
                runs.setdefault(task, path)
    if not runs:
        name = f"--grounding {config.grounding}" if config.grounding else f"--run {config.run}"
        hint = "" if config.grounding else "; give such runs by --grounding"
        raise UserError(f"{name}: no run was trained on {' or '.join(GROUNDING)}{hint}")
    return {task: runs[task] for task in GROUNDING if task in runs}


def images_of_splits(config: ConsistencyConfig, name: str, splits: str) -> set[str]:
    """The images of some splits of a task."""
    task, found = find_task(name), set()
    for split in splits.split(","):
        task.check_split(split)
        found.update(*task.image_counts(task.folder(config.data), split))
    return found


def judge_images(config: ConsistencyConfig, path: str, name: str, splits: str, images: set[str]) -> JudgedTask:
    """A run's predictions for a task's examples on these images, with their accuracy."""
    task = find_task(name)

    def choose(data: TaskData) -> list[Example]:
        examples = [example for split in splits.split(",") for example in data.examples(split)]
        if any(example.target is None for example in examples):
            raise UserError(f"--questions {splits}: contains questions without public answers")
        chosen = [example for example in examples if example.images[0] in images]
        if not chosen:
            raise UserError("no image has both questions with public answers and referring expressions")
        return chosen

    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(EvaluateConfig) if hasattr(config, f.name)}
    task_pass, collator = load(EvaluateConfig(**shared | {"run": path, "task": name}), task, choose)
    predictions = predict(task_pass, collator, config.batch_size, config.workers, ALONE)
    return JudgedTask(name, collator.examples, predictions, score_task(task, collator.examples, predictions).values)


def agreements(questions: JudgedTask, expressions: Sequence[JudgedTask], tagger: Tagger) -> list[ImageAgreement]:
    """The agreement of every image with both questions and expressions; expressions of several tasks are pooled."""
    expressions_of, found = [(judged, judged.by_image()) for judged in expressions], []
    for image, numbers in questions.by_image().items():
        of_image = [(judged, n) for judged, by_image in expressions_of for n in by_image.get(image, ())]
        if of_image:
            shared = shared_words(
                [tagger(questions.examples[n].text) for n in numbers],
                [tagger(judged.examples[n].text) for judged, n in of_image],
            )
            values = np.array([judged.values[n] for judged, n in of_image])
            found.append(ImageAgreement(shared, questions.values[numbers], values))
    return found
