"""python -m finetune.evaluate --run RUN --task T --split S: the official score of a run, and a submission file."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.batch import TaskCollator
from finetune.course import describe_scores
from finetune.data import open_data
from finetune.heads import TaskModel
from finetune.predict import predict
from finetune.start import choose_start
from finetune.task import Task
from finetune.tasks import find_task
from finetune.work import TaskPass
from pretrain.distributed import choose_device, connected, leaving, on_first
from pretrain.settings import PRECISIONS
from pretrain.step import Precision
from shards.errors import UserError
from shards.files import read_json, whole_file, write_json
from shards.flags import REQUIRED, command, flag
from shards.ranks import ALONE, Ranks, launched
from shards.world import DEFAULT_WORLD, complete_world


@dataclass
class EvaluateConfig:
    """Flags of finetune.evaluate."""

    run: str = flag(REQUIRED, "the directory of a run of finetune.st or finetune.mt")
    task: str | None = flag(None, "the task, where the run has several")
    split: str | None = flag(None, "the split, else the task's validation split")
    data: str = flag(DEFAULT_WORLD, "a folder with the tasks' official files and the regions of their images")
    submission: str | None = flag(None, "where to write the predictions in the official form")
    scores: str | None = flag(None, "where to write the scores, as JSON")
    missing: str = flag("stop", "what to do about examples whose image has no regions", choices=("stop", "skip"))
    regions: int | None = flag(None, "regions of an image at the most, else the task's", low=1)
    batch_size: int = flag(256, "examples at a time", low=1)
    precision: str = flag("float32", "of matrix work; float64: of all", choices=PRECISIONS)
    device: str = flag("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))
    workers: int = flag(min(4, max(1, (os.cpu_count() or 1) // 2)), "processes that make batches, 0: none", low=0)


def load(config: EvaluateConfig, task: Task, ranks: Ranks = ALONE) -> tuple[TaskPass, TaskCollator]:
    """The run's model on its device, and the examples of the split with what they need."""
    device = choose_device(config.device, ranks)
    data = open_data(task, config.data, config.missing)
    examples = data.examples(config.split or task.splits[1], ranks.say)
    start = choose_start(config.run, "", (), data.feature_size)
    vocabulary = start.vocabularies.get(task.head)
    if hasattr(task, "vocabulary") and vocabulary is None:
        raise UserError(f"--run {config.run}: was not trained on {task.name}; it has no answers to choose from")
    model = TaskModel(start.sizes, {task.head: len(vocabulary)} if vocabulary else {})
    start.load(model)
    model.to(device, torch.float64 if config.precision == "float64" else torch.float32)
    positions = start.sizes.max_position_embeddings
    collator = data.collator(examples, start.pieces, vocabulary, positions, config.regions)
    return TaskPass(model, task, Precision(config.precision, device), start.token(task)), collator


def run(config: EvaluateConfig) -> None:
    """Predicts, scores where the answers are public, and writes what was asked for."""
    ranks = launched()
    task = find_task(config.task or _only_task(config.run))
    split = config.split or task.splits[1]
    with connected(ranks, choose_device(config.device, ranks)):
        on_first(ranks, lambda: complete_world(config.data))
        work, collator = load(config, task, ranks)
        predictions = predict(work, collator, config.batch_size, config.workers, ranks, work.precision.device)
    if not ranks.first:
        return
    examples = collator.examples
    if task.head != "retrieval" and any(example.target is None for example in examples):
        print(f"{task.title}, {split}: {len(examples)} examples, whose answers are not public")
        if config.submission is None:
            raise UserError(f"--split {split}: has no public answers to score; --submission FILE writes the file")
    else:
        values = task.scores(examples, predictions)
        scores = {name: float(value.mean()) for name, value in values.items() if len(value)}
        print(f"{task.title}, {split}: {describe_scores(scores | {'examples': len(examples)})}")
        if config.scores:
            write_json(config.scores, {"task": task.name, "split": split, "examples": len(examples)} | scores)
    if config.submission:
        with whole_file(config.submission, "w", encoding="utf-8") as file:
            file.write(task.submission(examples, predictions))
        print(f"predictions: {config.submission}")


def _only_task(run: str) -> str:
    path = Path(run) / "config.json"
    tasks = read_json(path).get("tasks", []) if path.exists() else []
    if len(tasks) != 1:
        raise UserError(f"--run {run}: --task should say which, of {', '.join(tasks) or 'none'}")
    return tasks[0]


if __name__ == "__main__":
    with leaving(launched()):
        command(EvaluateConfig, run, "finetune.evaluate", "The official score of a run on a task.")
