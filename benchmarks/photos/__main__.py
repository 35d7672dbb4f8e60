"""python -m benchmarks.photos PHOTOS: the method on photographs with human annotations, from their tars to a table.

    python -m benchmarks.photos PHOTOS --weights FILE --bert DIR [--out runs/photos] [--seed 0] [--rows main|all|NAMES]

PHOTOS contains Flickr8k, Flickr30k Entities, e-SNLI-VE and DAQUAR (docs/photos.md). Every stage keeps finished parts
and resumes interrupted ones; the table shows means over all seeds in --out.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.photos import measure, table
from benchmarks.photos.data import Folder, make_data
from benchmarks.photos.linear_baseline import linear_retrieval, pooled_features
from benchmarks.photos.recipe import DEFAULT_RECIPE, Recipe, read_recipe
from benchmarks.photos.runs import ABLATIONS, MAIN_ROWS, RETRIEVAL, ROWS, TASKS, Plan, Scored, check_made_with
from benchmarks.photos.scoring import SPLIT, Scores, blind_retrieval, load_scores, score_run, scores_file
from benchmarks.training_runs import complete
from finetune.data.task_data import open_data
from finetune.reporting.training_commands import Processes
from finetune.tasks import find_task
from shards.common.cli import REQUIRED, build, command, flag
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.config import ExtractConfig
from shards.creation.extraction import extract
from shards.storage.index import saved_index
from shards.storage.skip_log import is_done

STAGES = ("data", "extract", "measure", "pretrain", "finetune", "score", "table")
IMAGES = ("flickr", "daquar")


@dataclass
class PhotosConfig:
    """Flags of benchmarks.photos."""

    photos: str = flag(REQUIRED, "folder of the photographs' tars and annotations", first=True)
    weights: str = flag(REQUIRED, "weights of the vision backbone, see shards.extract --detector backbone")
    bert: str = flag(REQUIRED, "Hugging Face BERT for the tokenizer and the text stream")
    out: str = flag("runs/photos", "output folder for data, runs and scores", written=True)
    seed: int = flag(0, "random seed of all runs; call again for further seeds")
    stages: str = flag("all", f"comma-separated stages: {', '.join(STAGES)}")
    rows: str = flag("main", f"main, all, or comma-separated names of rows: {', '.join(ROWS)}")
    folds: int = flag(1, "number of folds of e-SNLI-VE with a separate multi-task run", low=1, high=5)
    recipe: str = flag(DEFAULT_RECIPE, "JSON file with the flags of the commands and the model configuration")
    jobs: int = flag(1, "number of concurrent training runs", low=1)
    sample: int | None = flag(None, "number of photographs per part, for testing the script", unset="all", low=1)
    seconds: float = flag(60.0, "seconds to measure each rate", above=0)


def run(config: PhotosConfig) -> None:
    stages = _chosen(config.stages, STAGES, "--stages", {"all": STAGES})
    rows = _chosen(config.rows, ROWS, "--rows", {"all": ROWS, "main": MAIN_ROWS})
    recipe, folder = read_recipe(config.recipe, TASKS), Folder(Path(config.out))
    plan = Plan(recipe, folder, config.bert, config.seed, config.folds)
    counts = make_data(Path(config.photos), folder, config.sample)
    if "extract" in stages:
        extract_regions(recipe, folder, config.weights)
    if "measure" in stages:
        threads = int(Processes(config.jobs, ALONE).environment["OMP_NUM_THREADS"])
        print(measure.describe(plan, counts, measure.measured(plan, config.seconds, threads)), flush=True)
    if "pretrain" in stages:
        train(plan.pretrainings(rows), config.jobs)
    if "finetune" in stages:
        for calls in plan.finetunings(rows):
            train(calls, config.jobs)
    if "score" in stages:
        linear_scores(folder)
        for row in rows:
            for scored in plan.scored(row):
                score(scored, plan, row)
    if "table" in stages:
        rates = measure.kept_rates(plan)
        text = (f"{measure.describe(plan, counts, rates)}\n\n" if rates else "") + make_table(plan)
        with whole_file(folder.root / "table.txt", "w", encoding="utf-8") as file:
            file.write(text + "\n")
        print(text)


def _chosen(text: str, known: tuple[str, ...], name: str, groups: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The values selected by a flag, in the order of all values."""
    asked = {one for part in text.split(",") for one in groups.get(part, (part,))}
    for one in asked:
        if one not in known:
            raise UserError(f"{name} {one}: should be of {', '.join([*groups, *known])}")
    return tuple(one for one in known if one in asked)


def extract_regions(recipe: Recipe, folder: Folder, weights: str) -> None:
    """Extracts region shards of all photographs, and prints the images per second."""
    for name in IMAGES:
        out = folder.regions / name
        flags = {"images": str(folder.photographs(name)), "out": str(out), "detector": "backbone", "weights": weights}
        if name == "flickr":
            flags["captions"] = str(folder.captions)
        before = sum(len(saved_index(path)) for path in out.glob("*.tar") if is_done(path))
        finished, began = (out / "dataset.json").exists(), time.perf_counter()
        dataset = extract(build(ExtractConfig, flags | recipe.extract))
        if not finished:
            print(f"{out}: {(len(dataset) - before) / (time.perf_counter() - began):.1f} images/s", flush=True)


def train(calls: list, jobs: int) -> None:
    for call in calls:
        check_made_with(call)
    complete(calls, jobs)


def score(scored: Scored, plan: Plan, row: str) -> Scores:
    """Computes the scores of a row; retrieval of ablations uses one caption per image.

    Raises:
        UserError: the run is not finished.
    """
    if not scored.call.finished:
        stage = "pretrain" if scored.call.module == "pretrain.run" else "finetune"
        raise UserError(f"{scored.call.out}: is not finished; run the stage {stage} before score")
    data = plan.folder.fold(scored.fold)
    return score_run(scored.call.out, scored.task, data, row in ABLATIONS, plan.recipe.score)


def linear_scores(folder: Folder) -> Scores:
    """The scores of the linear baseline of retrieval; those of an earlier call are reused."""
    path = folder.root / "linear.npz"
    if not path.exists():
        task = find_task(RETRIEVAL)
        data = open_data(task, str(folder.fold(0)), "stop", clean="true")
        train, val, dev = (list(data.examples(split)) for split in (*task.splits[:2], SPLIT))
        pooled = pooled_features(data.regions, (example.images[0] for example in (*train, *val, *dev)))
        predictions = linear_retrieval(pooled, train, val, dev)
        metrics = {name: of for name, of in task.scores(dev, predictions).items() if len(of) == len(dev)}
        images = np.array([example.images[0] for example in dev])
        blind, chance = blind_retrieval(task, dev, predictions), 1 / len(set(images.tolist()))
        Scores(metrics, blind, images, chance, {}).save(path)
    return load_scores(path)


def make_table(plan: Plan) -> str:
    """The table of all evaluated seeds and rows."""
    root, by_seed = plan.folder.root, []
    for path in sorted(root.glob("seed*")):
        of_seed = Plan(plan.recipe, plan.folder, plan.bert, int(path.name.removeprefix("seed")), plan.folds)
        rows = {}
        for row in ROWS:
            files = {
                (scored.task, scored.fold): scores_file(scored.call.out, scored.task, row in ABLATIONS)
                for scored in of_seed.scored(row)
            }
            if all(file.exists() for file in files.values()):
                rows[row] = {key: load_scores(file) for key, file in files.items()}
        by_seed.append(rows)
    results, seeds = table.complete_rows(by_seed)
    if not results:
        raise UserError(f"{root}: no scores found; run the stage score")
    linear = root / "linear.npz"
    return table.render(results, seeds, load_scores(linear) if linear.exists() else None)


if __name__ == "__main__":
    command(PhotosConfig, run, "benchmarks.photos", "The method on photographs with human language.")
