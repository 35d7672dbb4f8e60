"""Which multiples of table 8's learning rates suit the small model: the sweep that its defaults come from.

    python benchmarks/learning_rates.py [--jobs 2] [--out runs/learning_rates]

Scores on the validation splits of the miniature world. All tasks together: the MT score after --iterations, with and
without updates of parameters that a step's task does not use. One task: its validation score. The seed is one that no
table of docs/results.md uses. Finished runs are kept, interrupted ones resumed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

from benchmarks.training_runs import complete
from finetune.ablate import Call
from finetune.scores import watched
from finetune.settings import SMALL_LR, SMALL_LR_TOGETHER
from finetune.tasks import choose_tasks
from shards.files import read_json
from shards.flags import command, flag
from shards.world import DEFAULT_WORLD, complete_world


@dataclass
class Config:
    """Flags of this benchmark."""

    data: str = flag(DEFAULT_WORLD, "the world, which is made where it is not")
    out: str = flag("runs/learning_rates", "a folder for the runs", written=True)
    seed: int = flag(100, "of all runs")
    iterations: int = flag(150, "of the runs on all tasks", low=1)
    together: str = flag("4,8,16", "multiples for all tasks together")
    alone: str = flag("2,4,8", "multiples for one task")
    tasks: str = flag("vqa,flickr_retrieval,refcoco,nlvr2", "tasks that are trained alone")
    jobs: int = flag(1, "runs at a time", low=1)


def run(config: Config) -> None:
    complete_world(config.data)
    out, shared = Path(config.out), {"data": config.data, "seed": config.seed}
    pretrained = Call("pretrain.run", shared, out / "pretrain")
    complete([pretrained], 1)
    shared["init"] = pretrained.out
    together, alone = (list(map(float, text.split(","))) for text in (config.together, config.alone))
    many = {
        (update, scale): Call(
            "finetune.mt",
            shared | {"iterations": config.iterations, "lr_scale": scale, "update_unused": update},
            out / f"mt-{scale:g}-{'updated' if update else 'skipped'}",
        )
        for scale in together
        for update in (False, True)
    }
    single = {
        (task.name, scale): Call(
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
