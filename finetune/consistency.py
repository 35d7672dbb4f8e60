"""python -m finetune.consistency --run RUN: multi-task visual grounding consistency (MT-VGC)."""

import dataclasses
from pathlib import Path

from finetune.config import ConsistencyConfig
from finetune.data.regions import Regions, region_folder
from finetune.evaluation.grounding_consistency import both_forms
from finetune.evaluation.pos_tagger import make_tagger
from finetune.inference.consistency_of_runs import agreements, grounding_runs, images_of_splits, judge_images
from finetune.pages.consistency_page import SHOWN, shared_pairs, write_pairs
from finetune.reporting.consistency_table import forms_of, render, stored_row, titles, warn_if_not_cleaned
from finetune.run_dirs.run_data_folder import choose_data, place_of, results_folder, warn_of_other_data
from finetune.tasks import find_task
from pretrain.engine.distributed import exiting
from shards.common.cli import command
from shards.common.files import write_json
from shards.common.folder_lock import locked_folder

NUMBERS = "consistency.json"


def run(config: ConsistencyConfig) -> None:
    warn_of_other_data(config.run, config.data)
    config = dataclasses.replace(config, data=choose_data(config.run, config.data))
    out = config.out or place_of(results_folder(config.run) / "consistency", NUMBERS, config.run, config.data).parent
    with locked_folder(out, "finetune.consistency"):
        _run(config, Path(out))


def _run(config: ConsistencyConfig, out: Path) -> None:
    tagger = make_tagger(config.tagger)
    runs = grounding_runs(config)
    with_questions = images_of_splits(config, "vqa", config.questions)
    with_expressions = set().union(*(images_of_splits(config, task, config.expressions) for task in runs))
    questions = judge_images(config, config.run, "vqa", config.questions, with_expressions)
    expressions = {
        task: judge_images(config, path, task, config.expressions, with_questions) for task, path in runs.items()
    }
    images = {find_task(task).title: agreements(questions, [judged], tagger) for task, judged in expressions.items()}
    if len(expressions) > 1:
        images["both"] = agreements(questions, list(expressions.values()), tagger)
    rows = {name: both_forms(of_row, config.threshold) for name, of_row in images.items()}
    write_json(out / NUMBERS, {name: stored_row(forms, config) for name, forms in rows.items()})
    regions = Regions(region_folder(config.data, find_task("vqa").images))
    pairs = [pair for judged in expressions.values() for pair in shared_pairs(questions, judged, tagger)]
    write_pairs(out / "pairs.html", pairs, regions, SHOWN)
    for form in forms_of(config):
        print(titles(config)[form])
        print(render({name: forms[form] for name, forms in rows.items()}))
    warn_if_not_cleaned(config)
    print(f"consistent and inconsistent pairs: {out / 'pairs.html'}")


EXAMPLES = ("python -m finetune.consistency --run runs/mt",)


if __name__ == "__main__":
    with exiting():
        command(
            ConsistencyConfig,
            run,
            "finetune.consistency",
            "Multi-task visual grounding consistency (MT-VGC).",
            examples=EXAMPLES,
        )
