"""Scores of a run on a development part by example, with blind scores and chance level."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.photos.runs import RETRIEVAL
from benchmarks.tasks import ExchangedRegions, chance, main_values
from finetune.config import EvaluateConfig
from finetune.data.task_collate import TaskCollator
from finetune.heads.grounding_head import WHOLE_IMAGE
from finetune.evaluation.bootstrap import bootstrap_interval, clusters_of
from finetune.inference.model_loader import load
from finetune.inference.predictions import predict
from finetune.inference.progress import TimeLeft
from finetune.annotations.boxes import image_size
from finetune.annotations.example import Example
from finetune.task_types.base import Task
from finetune.tasks import find_task
from finetune.tasks.retrieval import own_images
from shards.common.dist_info import ALONE
from shards.common.files import whole_file

SPLIT = "test"  # name of the development parts in the data folders
BATCH = 256
_METRIC, _FURTHER = "metric/", "further/"


@dataclass(frozen=True)
class Scores:
    """Scores by example.

    Attributes:
        metrics: metrics of every example, the main one first.
        blind: main metric with another image in place of the image of every example.
        images: image id of each example.
        chance: main metric of the best constant prediction.
        further: metrics that are available only as means.
    """

    metrics: dict[str, np.ndarray]
    blind: np.ndarray
    images: np.ndarray
    chance: float
    further: dict[str, float]

    @property
    def main(self) -> np.ndarray:
        return next(iter(self.metrics.values()))

    @property
    def clusters(self) -> np.ndarray:
        return clusters_of((image,) for image in self.images.tolist())

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the main metric, over images."""
        return bootstrap_interval(self.main, self.clusters)

    def gain(self, base: np.ndarray) -> tuple[float, float, float]:
        """(mean, low, high) of the paired difference to other values of the main metric, over images."""
        return float((self.main - base).mean()), *bootstrap_interval(self.main - base, self.clusters)

    def chosen(self, rows: np.ndarray) -> "Scores":
        """The scores of some examples."""
        metrics = {name: values[rows] for name, values in self.metrics.items()}
        return replace(self, metrics=metrics, blind=self.blind[rows], images=self.images[rows])

    def save(self, path: Path) -> None:
        metrics = {_METRIC + name: values for name, values in self.metrics.items()}
        further = {_FURTHER + name: np.array(value) for name, value in self.further.items()}
        with whole_file(path) as file:
            np.savez(file, blind=self.blind, images=self.images, chance=self.chance, **metrics, **further)


def load_scores(path: Path) -> Scores:
    with np.load(path) as file:
        kept = dict(file)
    parts = [
        {name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)}
        for prefix in (_METRIC, _FURTHER)
    ]
    further = {name: float(value) for name, value in parts[1].items()}
    return Scores(parts[0], kept["blind"], kept["images"], float(kept["chance"]), further)


def pooled(folds: Sequence[Scores]) -> Scores:
    """Combines the scores of several folds; means are weighted by the number of examples."""
    sizes = [len(scores.main) for scores in folds]
    return Scores(
        metrics={name: np.concatenate([scores.metrics[name] for scores in folds]) for name in folds[0].metrics},
        blind=np.concatenate([scores.blind for scores in folds]),
        images=np.concatenate([scores.images for scores in folds]),
        chance=float(np.average([scores.chance for scores in folds], weights=sizes)),
        further={
            name: float(np.average([scores.further[name] for scores in folds], weights=sizes))
            for name in folds[0].further
        },
    )


def averaged(seeds: Sequence[Scores]) -> Scores:
    """The mean over seeds for each example."""
    first = seeds[0]
    return replace(
        first,
        metrics={name: np.mean([scores.metrics[name] for scores in seeds], 0) for name in first.metrics},
        blind=np.mean([scores.blind for scores in seeds], 0),
        further={name: float(np.mean([scores.further[name] for scores in seeds])) for name in first.further},
    )


def first_captions(images: Sequence[str]) -> np.ndarray:
    """int (images,): the number of the first caption of each image. images: of every caption."""
    return np.sort(np.unique(np.asarray(images), return_index=True)[1])


def scores_file(run: Path, name: str, one_caption: bool) -> Path:
    """The path of a run's scores on a task. one_caption: see score_run."""
    return run / "scores" / f"photos-{name}{'-one' if one_caption and name == RETRIEVAL else ''}.npz"


def score_run(run: Path, name: str, data: Path, one_caption: bool, flags: dict) -> Scores:
    """The scores of a run on the development part of a task; those of an earlier call are read from the run directory.

    Args:
        one_caption: for retrieval, use only the first caption of each image.
        flags: of finetune.evaluate (see Recipe.score).
    """
    path = scores_file(run, name, one_caption)
    if not path.exists():
        scores = _score(run, find_task(name), data, one_caption, flags)
        scores.save(path)
    return load_scores(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _score(run: Path, task: Task, data: Path, one_caption: bool, flags: dict) -> Scores:
    config = EvaluateConfig(run=str(run), task=task.name, data=str(data), **flags)
    task_pass, collator = load(config, task, SPLIT)
    examples = list(collator.examples)
    if task.head.ranks_images and one_caption:
        examples = [examples[n] for n in first_captions([example.images[0] for example in examples])]
    collator = replace(collator, examples=examples)
    rerank = config.rerank if task_pass.model.encoder.contrast else None
    progress = TimeLeft(f"{run}, {task.title}", _say)
    predictions = predict(task_pass, collator, BATCH, 0, ALONE, progress, rerank)
    metrics = {name: of for name, of in task.scores(examples, predictions).items() if len(of) == len(examples)}
    images = np.array([example.images[0] for example in examples])
    if task.head.ranks_images:
        metrics = {name: of for name, of in metrics.items() if not name.startswith("T")}
        return Scores(metrics, blind_retrieval(task, examples, predictions), images, chance(collator), {})
    other = replace(collator, regions=ExchangedRegions(collator.regions, False))
    blind = main_values(task, examples, predict(task_pass, other, BATCH, 0, ALONE))
    found = task.further_scores(task.folder(data), SPLIT, examples, predictions)
    if found and found.absent:
        print(found.absent)
    return Scores(metrics, blind, images, best_constant(collator), found.scores({}) if found else {})


def best_constant(collator: TaskCollator) -> float:
    """The main metric of the best constant prediction; for grounding, the box of the whole image."""
    if not collator.task.head.finds_regions:
        return chance(collator)
    sizes = [image_size(example, collator.regions[example.images[0]]) * 2 for example in collator.examples]
    boxes = WHOLE_IMAGE * np.array(sizes)
    return float(main_values(collator.task, collator.examples, boxes[:, None]).mean())


def blind_retrieval(task: Task, examples: Sequence[Example], scores: np.ndarray) -> np.ndarray:
    """The main metric of retrieval with another ranked image in place of every image: a permutation of the scores."""
    images = int(own_images(examples).max()) + 1
    exchanged = np.roll(np.arange(images), images // 2)
    return main_values(task, examples, scores[:, exchanged])
