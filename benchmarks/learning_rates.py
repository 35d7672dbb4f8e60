"""Learning-rate sweep for the small model, in multiples of the rates in table 8; its defaults are from this sweep.

    python benchmarks/learning_rates.py [--variants "the defaults"] [--jobs 2] [--out runs/learning_rates]

Scores on the validation splits of the miniature world: of all tasks together the MT score after --iterations, of one
task its validation score; with the defaults of the small model, and with each of those that differ from the reference
implementation set back (VARIANTS). The seed is not used in any table of docs/results.md. Finished runs are kept,
interrupted ones are resumed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

from benchmarks.training_runs import complete
from finetune.config import SMALL_LR
from finetune.evaluation.scores import selection_score
from finetune.reporting.training_commands import TrainingCommand
from finetune.tasks import choose_tasks
from shards.common.cli import command, flag
from shards.common.errors import UserError
from shards.common.files import read_json
from shards.world import DEFAULT_WORLD, complete_world


# Name -> flags, of single tasks and of all together. Only the latter have parameters that a step's task does not use.
ALONE = {
    "the defaults": {},
    "no bias correction": {"bias_correction": False},
    "choices begin at one half": {"rare_choices": False},
}
VARIANTS = ALONE | {"unused parameters updated": {"update_unused": True}}


@dataclass
class Config:
    """Flags of this benchmark."""

    data: str = flag(DEFAULT_WORLD, "folder of the miniature world; the default one is created if missing")
    out: str = flag("runs/learning_rates", "folder for the runs", written=True)
    seed: int = flag(100, "random seed of all runs")
    iterations: int = flag(150, "iterations of multi-task runs", low=1)
    together: str = flag("4,8,16,32", "comma-separated multiples for multi-task runs")
    alone: str = flag("2,4,8,16", "comma-separated multiples for single-task runs")
    tasks: str = flag("vqa,flickr_retrieval,refcoco,nlvr2", "comma-separated tasks of single-task runs")
    variants: str = flag(";".join(VARIANTS), "semicolon-separated rows of the tables")
    jobs: int = flag(1, "number of concurrent runs", low=1)


def run(config: Config) -> None:
    variants = config.variants.split(";")
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise UserError(f"--variants {unknown[0]}: should be of {'; '.join(VARIANTS)}")
    variants_alone = [name for name in variants if name in ALONE]
    complete_world(config.data)
    out, shared = Path(config.out), {"data": config.data, "seed": config.seed}
    pretrained = TrainingCommand("pretrain.run", shared, out / "pretrain")
    complete([pretrained], 1)
    shared["init"] = pretrained.out
    together, alone = (list(map(float, text.split(","))) for text in (config.together, config.alone))
    many = {
        (variant, scale): TrainingCommand(
            "finetune.mt",
            shared | {"iterations": config.iterations, "lr_scale": scale} | VARIANTS[variant],
            out / f"mt-{scale:g}-{variant.replace(' ', '-')}",
        )
        for variant in variants
        for scale in together
    }
    single = {
        (variant, task.name, scale): TrainingCommand(
            "finetune.st",
            shared | {"task": task.name, "lr": task.lr * scale} | VARIANTS[variant],
            out / f"st-{task.name}-{scale:g}-{variant.replace(' ', '-')}",
        )
        for task in choose_tasks(config.tasks)
        for variant in variants_alone
        for scale in alone
    }
    complete([*single.values(), *many.values()], config.jobs)
    print(f"all tasks together, {config.iterations} iterations: MT score (default {SMALL_LR})")
    print(f"{'times the rates of table 8':<50}" + "".join(f"{scale:>7g}" for scale in together))
    for variant in variants:
        scores = (read_json(many[variant, scale].out / "result.json")["mt_score"] for scale in together)
        print(f"{variant:<50}" + "".join(f"{score:>7.1%}" for score in scores))
    print(f"one task: validation score, of retrieval 4-way accuracy (default {SMALL_LR})")
    print(f"{'times the rates of table 8':<50}" + "".join(f"{scale:>7g}" for scale in alone))
    for task in choose_tasks(config.tasks):
        for variant in variants_alone:
            results = (read_json(single[variant, task.name, scale].out / "result.json") for scale in alone)
            scores = (selection_score(result["validation"]) for result in results)
            print(f"{f'{task.title}, {variant}':<50}" + "".join(f"{score:>7.1%}" for score in scores))


if __name__ == "__main__":
    command(Config, run, "benchmarks/learning_rates.py", __doc__.splitlines()[0], sys.argv[1:])
