"""Whether each task uses the image: its score after its default run, compared with chance and with a blind evaluation.

    python benchmarks/tasks.py [--init RUN] [--tasks refcoco,vqa] [--out runs/tasks]

Every task is fine-tuned on the miniature world (existing runs are kept) and evaluated on its validation split twice:
normally, and with the regions of another image in place of every image. `sees` is the difference of the two with its
95% bootstrap interval over images; it is above 0 if the task uses its images.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np

from finetune import st
from finetune.annotations.boxes import IOU_CORRECT, iou_with_box
from finetune.config import EvaluateConfig
from finetune.data.regions import Regions
from finetune.data.task_collate import TaskCollator
from finetune.evaluation.bootstrap import bootstrap_interval, clusters_of
from finetune.evaluation.scores import score_task
from finetune.inference.model_loader import load
from finetune.inference.predictions import predict
from finetune.objective.task_pass import TaskPass
from finetune.tasks import choose_tasks
from pretrain.engine.checkpoint import best_checkpoint
from shards.common.cli import command, flag
from shards.common.dist_info import ALONE
from shards.storage.sample import Sample
from shards.world import DEFAULT_WORLD, complete_world


@dataclass
class Config:
    """Flags of this benchmark."""

    tasks: str = flag("all", "comma-separated names or groups of tasks")
    data: str = flag(DEFAULT_WORLD, "folder of the miniature world; the default one is created if missing")
    init: str = flag("runs/pretrain", "run with initial weights, or scratch")
    out: str = flag("runs/tasks", "folder for the runs")
    epochs: int | None = flag(None, "epochs of each task", unset="the default of finetune.st", low=1)


class ExchangedRegions:
    """Regions of another image in place of every image. Given boxes keep their positions and ids, but not features."""

    def __init__(self, regions: Regions, keep_boxes: bool):
        self.regions, self.keep_boxes = regions, keep_boxes
        names = sorted(regions.numbers)
        self.other = dict(zip(names, np.roll(names, len(names) // 2).tolist(), strict=True))

    def __getitem__(self, image: str) -> Sample:
        other = self.regions[self.other[image]]
        if not self.keep_boxes:
            return replace(other, info=self.regions[image].info)
        sample = self.regions[image]
        rows = np.arange(len(sample.features)) % len(other.features)
        return replace(sample, features=other.features[rows])


def chance(collator: TaskCollator) -> float:
    """The expected score of the best guess without inputs: the most frequent answer, or a random candidate."""
    task, examples = collator.task, collator.examples
    if task.head.ranks_images:
        return 1 / len({example.images[0] for example in examples})
    if task.head.has_candidates:
        return float(np.mean([1 / len(example.candidates) for example in examples]))
    if task.head.finds_regions:
        shares = []
        for example in examples:
            sample = collator.regions[example.images[0]]
            size = np.array([sample.info["width"], sample.info["height"]] * 2)
            shares.append((iou_with_box(sample.boxes * size, example.target) > IOU_CORRECT).mean())
        return float(np.mean(shares))
    choices = collator.vocabulary.answers if collator.vocabulary else range(len(task.labels))
    return max(main_values(task, examples, [choice] * len(examples)).mean() for choice in choices)


def main_values(task, examples, predictions) -> np.ndarray:
    return score_task(task, examples, predictions).values


def values_of(task_pass: TaskPass, collator: TaskCollator) -> np.ndarray:
    """The main metric of a run for each evaluated example."""
    return main_values(task_pass.task, collator.examples, predict(task_pass, collator, 256, 0, ALONE))


def trained(out: str, **flags) -> str:
    """A finished run of finetune.st with these flags; an existing one is kept."""
    if best_checkpoint(out) is None or not (Path(out) / "result.json").exists():
        st.run(st.StConfig(out=out, resume=True, **flags))
    return out


def run(config: Config) -> None:
    tasks = choose_tasks(config.tasks)
    complete_world(config.data)
    began, rows = time.perf_counter(), []
    for task in tasks:
        flags = {"task": task.name, "data": config.data, "init": config.init, "epochs": config.epochs}
        out = trained(f"{config.out}/{task.name}", **flags)
        task_pass, collator = load(EvaluateConfig(run=out, data=config.data), task, task.splits[1])
        blind = dataclasses.replace(
            collator,
            regions=ExchangedRegions(collator.regions, False),
            boxes=ExchangedRegions(collator.boxes, True) if collator.boxes else None,
        )
        values, without = (values_of(task_pass, one) for one in (collator, blind))
        clusters = clusters_of(example.images for example in collator.examples)
        low, high = bootstrap_interval(values - without, clusters)
        rows.append((task.name, chance(collator), without.mean(), values.mean(), low, high))
    print(f"\n{'task':<17} {'chance':>7} {'blind':>7} {'score':>7}  sees, with its 95% interval")
    for name, guess, without, score, low, high in rows:
        seen = f"{score - without:+7.1%}  ({low:+.1%} to {high:+.1%})"
        print(f"{name:<17} {guess:>7.1%} {without:>7.1%} {score:>7.1%}  {seen}{'' if low > 0 else '  NOT CLEAR'}")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    command(Config, run, "benchmarks/tasks.py", __doc__.splitlines()[0], sys.argv[1:])
