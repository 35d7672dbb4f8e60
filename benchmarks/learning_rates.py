"""Learning-rate sweep for the small model, in multiples of the rates in table 8; its defaults are from this sweep.

    python benchmarks/learning_rates.py [--jobs 2] [--out runs/learning_rates]

Scores on the validation splits of the miniature world. For all tasks: the MT score after --iterations, with and without
updates of parameters that the task of a step does not use. For one task: its validation score. The seed is not used in
any table of docs/results.md. Finished runs are kept, interrupted ones are resumed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

from benchmarks.training_runs import complete
from finetune.config import SMALL_LR, SMALL_LR_TOGETHER
from finetune.evaluation.scores import watched
from finetune.reporting.training_commands import TrainingCommand
from finetune.tasks import choose_tasks
from shards.common.cli import command, flag
from shards.common.files import read_json
from shards.world import DEFAULT_WORLD, complete_world


@dataclass
class Config:
    """Flags of this benchmark."""

    data: str = flag(DEFAULT_WORLD, "folder of the miniature world, created if missing")
    out: str = flag("runs/learning_rates", "folder for the runs", written=True)
    seed: int = flag(100, "random seed of all runs")
    iterations: int = flag(150, "iterations of multi-task runs", low=1)
    together: str = flag("4,8,16", "comma-separated multiples for multi-task runs")
    alone: str = flag("2,4,8", "comma-separated multiples for single-task runs")
    tasks: str = flag("vqa,flickr_retrieval,refcoco,nlvr2", "comma-separated tasks of single-task runs")
    jobs: int = flag(1, "number of concurrent runs", low=1)


def run(config: Config) -> None:
    complete_world(config.data)
    out, shared = Path(config.out), {"data": config.data, "seed": config.seed}
    pretrained = TrainingCommand("pretrain.run", shared, out / "pretrain")
    complete([pretrained], 1)
    shared["init"] = pretrained.out
    together, alone = (list(map(float, text.split(","))) for text in (config.together, config.alone))
    many = {
        (update, scale): TrainingCommand(
            "finetune.mt",
            shared | {"iterations": config.iterations, "lr_scale": scale, "update_unused": update},
            out / f"mt-{scale:g}-{'updated' if update else 'skipped'}",
        )
        for scale in together
        for update in (False, True)
    }
    single = {
        (task.name, scale): TrainingCommand(
            "finetune.st", shared | {"task": task.name, "lr": task.lr * scale}, out / f"st-{task.name}-{scale:g}"
        )
        for task in choose_tasks(config.tasks)
        for scale in alone
    }
    complete([*many.values(), *single.values()], config.jobs)
    print(f"all tasks together, {config.iterations} iterations: MT score (default {SMALL_LR_TOGETHER})")
    print(f"{'times the rates of table 8':<30}" + "".join(f"{scale:>7g}" for scale in together))
    for update, name in ((False, "unused parameters skipped"), (True, "unused parameters updated")):
        scores = (read_json(many[update, scale].out / "result.json")["mt_score"] for scale in together)
        print(f"{name:<30}" + "".join(f"{score:>7.1%}" for score in scores))
    print(f"one task: validation score, of retrieval 4-way accuracy (default {SMALL_LR})")
    print(f"{'times the rates of table 8':<30}" + "".join(f"{scale:>7g}" for scale in alone))
    for task in choose_tasks(config.tasks):
        results = (read_json(single[task.name, scale].out / "result.json")["validation"] for scale in alone)
        print(f"{task.title:<30}" + "".join(f"{watched(result):>7.1%}" for result in results))


if __name__ == "__main__":
    command(Config, run, "benchmarks/learning_rates.py", __doc__.splitlines()[0], sys.argv[1:])
