"""ST, AT and AT->ST: each task alone from pretraining, all in one model, and each alone from that model.

    python benchmarks/at_st.py [--tasks refcoco,vqa] [--pretrained runs/pretrain] [--mt runs/mt]

Runs that are there already are kept, those of benchmarks/tasks.py among them. All three are scored on the same examples
of the validation split. `gain` is AT->ST less ST, with its 95% bootstrap interval over images, paired.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np

from benchmarks.tasks import trained, values_of
from finetune import evaluate
from finetune.intervals import bootstrap_interval, clusters_of
from finetune.tasks import choose_tasks
from shards.flags import command, flag
from shards.world import DEFAULT_WORLD, complete_world


@dataclass
class Config:
    """Flags of this benchmark."""

    tasks: str = flag("all", "names or groups of tasks with commas between them")
    data: str = flag(DEFAULT_WORLD, "the world, which is made where it is not")
    pretrained: str = flag("runs/pretrain", "a pretraining run")
    mt: str = flag("runs/mt", "a multi-task run from it")
    alone: str = flag("runs/tasks", "a folder for the tasks' runs from pretraining")
    after: str = flag("runs/at_st", "a folder for the tasks' runs from the multi-task run")
    examples: int = flag(500, "of each validation split, the first", low=2)
    seed: int = flag(0, "of the single-task runs")


def first_values(run: str, task, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(the main metric of a run, the cluster) by example of the first of the task's validation split."""
    work, collator = evaluate.load(evaluate.EvaluateConfig(run=run, task=task.name, data=config.data), task)
    collator = replace(collator, examples=collator.examples[: config.examples])
    return values_of(work, collator), clusters_of(example.images for example in collator.examples)


def run(config: Config) -> None:
    tasks = choose_tasks(config.tasks)
    complete_world(config.data)
    rows, clusters = [], []
    for task in tasks:
        flags = {"task": task.name, "data": config.data, "seed": config.seed}
        runs = (
            trained(f"{config.alone}/{task.name}", init=config.pretrained, **flags),
            config.mt,
            trained(f"{config.after}/{task.name}", init=config.mt, **flags),
        )
        values, (of_task, *_) = zip(*(first_values(one, task, config) for one in runs), strict=True)
        rows.append(values)
        clusters.append(of_task)
    print(f"\n{'task':<17} {'ST':>7} {'AT':>7} {'AT->ST':>7}  gain, with its 95% interval")
    for task, of_task, (alone, together, after) in zip(tasks, clusters, rows, strict=True):
        low, high = bootstrap_interval(after - alone, of_task)
        means = " ".join(f"{values.mean():>7.1%}" for values in (alone, together, after))
        print(f"{task.name:<17} {means}  {(after - alone).mean():+6.1%}  ({low:+.1%} to {high:+.1%})")
    means = " ".join(f"{np.mean([row[n].mean() for row in rows]):>7.1%}" for n in range(3))
    print(f"{'mean':<17} {means}")


if __name__ == "__main__":
    command(Config, run, "benchmarks/at_st.py", __doc__.splitlines()[0], sys.argv[1:])
