"""Compares ST, AT and AT->ST: single-task models, one multi-task model, and single-task models initialised from it.

    python benchmarks/at_st.py [--seeds 3] [--tasks refcoco,vqa] [--jobs 2] [--out runs/at_st]

Every seed has its own pretraining, multi-task run and single-task runs. Finished runs are kept, and interrupted ones
resumed. All are evaluated on the same examples of the validation split; a score is the mean over seeds. `gain` is
AT->ST minus ST, with its paired 95% bootstrap interval over images.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np

from benchmarks.tasks import values_of
from benchmarks.training_runs import complete
from finetune.config import EvaluateConfig
from finetune.evaluation.bootstrap import bootstrap_interval, clusters_of
from finetune.inference.model_loader import load
from finetune.reporting.training_commands import TrainingCommand
from finetune.tasks import choose_tasks
from shards.common.cli import command, flag
from shards.world import DEFAULT_WORLD, complete_world

KINDS = ("ST", "AT", "AT->ST")


@dataclass
class Config:
    """Flags of this benchmark."""

    tasks: str = flag("all", "comma-separated names or groups of tasks")
    data: str = flag(DEFAULT_WORLD, "folder of the miniature world; the default one is created if missing")
    out: str = flag("runs/at_st", "folder for the runs", written=True)
    seeds: int = flag(1, "number of random seeds, from 0", low=1)
    examples: int = flag(500, "number of examples of each validation split to evaluate, the first ones", low=2)
    jobs: int = flag(1, "number of concurrent runs", low=1)


def runs_of(config: Config, seed: int) -> dict[str, list[TrainingCommand]]:
    """The runs of a seed: pretraining, AT, and for each task ST and AT->ST."""
    folder, shared = Path(config.out) / f"seed{seed}", {"data": config.data, "seed": seed}
    pretrained = TrainingCommand("pretrain.run", shared, folder / "pretrain")
    together = TrainingCommand("finetune.mt", shared | {"init": pretrained.out}, folder / "mt")
    runs = {"pretraining": [pretrained], "AT": [together]}
    for kind, start in (("ST", pretrained), ("AT->ST", together)):
        runs[kind] = [
            TrainingCommand("finetune.st", shared | {"task": task.name, "init": start.out}, folder / kind / task.name)
            for task in choose_tasks(config.tasks)
        ]
    return runs


def first_values(run: str, task, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(main metric, cluster) of the first examples of the task's validation split."""
    task_pass, collator = load(EvaluateConfig(run=run, task=task.name, data=config.data), task, task.splits[1])
    collator = replace(collator, examples=collator.examples[: config.examples])
    return values_of(task_pass, collator), clusters_of(example.images for example in collator.examples)


def run(config: Config) -> None:
    tasks = choose_tasks(config.tasks)
    complete_world(config.data)
    of_seeds = [runs_of(config, seed) for seed in range(config.seeds)]
    for kinds in (("pretraining",), ("AT",), ("ST", "AT->ST")):
        complete([run for runs in of_seeds for kind in kinds for run in runs[kind]], config.jobs)
    means = {kind: [] for kind in KINDS}
    print(f"\n{'task':<17}{''.join(f'{kind:>8}' for kind in KINDS)}  gain, with its 95% interval")
    for number, task in enumerate(tasks):
        values = {}
        for kind in KINDS:
            outs = [str(runs[kind][0 if kind == "AT" else number].out) for runs in of_seeds]
            of_kind, (clusters, *_) = zip(*(first_values(out, task, config) for out in outs), strict=True)
            values[kind] = np.mean(of_kind, 0)
            means[kind].append(values[kind].mean())
        gain = values["AT->ST"] - values["ST"]
        low, high = bootstrap_interval(gain, clusters)
        row = "".join(f"{values[kind].mean():>8.1%}" for kind in KINDS)
        print(f"{task.name:<17}{row}  {gain.mean():+6.1%}  ({low:+.1%} to {high:+.1%})")
    print(f"{'mean':<17}{''.join(f'{np.mean(means[kind]):>8.1%}' for kind in KINDS)}")


if __name__ == "__main__":
    command(Config, run, "benchmarks/at_st.py", __doc__.splitlines()[0], sys.argv[1:])
