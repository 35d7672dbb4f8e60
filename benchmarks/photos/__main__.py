"""python -m benchmarks.photos PHOTOS: the method on photographs with human language, from their tars to a table.

    python -m benchmarks.photos PHOTOS --weights FILE --bert DIR [--out runs/photos] [--seed 0] [--rows main|all|NAMES]

PHOTOS has Flickr8k, Flickr30k Entities, e-SNLI-VE and DAQUAR (docs/photos.md). Every stage keeps what it has finished
and resumes what was interrupted; the table has the means over all seeds that --out has.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.photos import measure, table
from benchmarks.photos.data import Folder, make_data
from benchmarks.photos.linear_baseline import linear_retrieval
from benchmarks.photos.recipe import DEFAULT_RECIPE, Recipe, read_recipe
from benchmarks.photos.runs import (
    ABLATIONS,
    MAIN_ROWS,
    RETRIEVAL,
    ROWS,
    TASKS,
    Plan,
    Scored,
    check_made_with,
)
from benchmarks.photos.scoring import SPLIT, Scores, blind_retrieval, load_scores, score_run, scores_file
from benchmarks.training_runs import complete
from finetune.ablate import Processes
from finetune.data import open_data
from finetune.tasks import find_task
from shards.errors import UserError
from shards.extract import ExtractConfig, extract
from shards.files import whole_file
from shards.flags import REQUIRED, build, command, flag
from shards.index import saved_index
from shards.ranks import ALONE
from shards.skips import is_done

STAGES = ("data", "extract", "measure", "pretrain", "finetune", "score", "table")
IMAGES = ("flickr", "daquar")


@dataclass
class PhotosConfig:
    """Flags of benchmarks.photos."""

    photos: str = flag(REQUIRED, "the folder of the photographs' tars and annotations", first=True)
    weights: str = flag(REQUIRED, "weights of the vision backbone, as shards.extract --detector backbone takes them")
    bert: str = flag(REQUIRED, "a Hugging Face BERT of the recipe's text stream: tokenizer and weights")
    out: str = flag("runs/photos", "the folder for data, runs and scores", written=True)
    seed: int = flag(0, "random seed of all runs; further seeds are further calls")
    stages: str = flag("all", f"stages with commas between them: {', '.join(STAGES)}")
    rows: str = flag("main", f"main, all, or names with commas between them: {', '.join(ROWS)}")
    folds: int = flag(1, "folds of e-SNLI-VE with a multi-task run of their own", low=1, high=5)
    recipe: str = flag(DEFAULT_RECIPE, "JSON file of the commands' flags and the model's sizes")
    jobs: int = flag(1, "training runs at a time", low=1)
    sample: int | None = flag(None, "so many photographs of each part, to try the script", low=1)
    seconds: float = flag(60.0, "seconds for which each rate is measured", above=0)


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
    """What a flag chooses, in the order of all that there is."""
    asked = {one for part in text.split(",") for one in groups.get(part, (part,))}
    for one in asked:
        if one not in known:
            raise UserError(f"{name} {one}: should be of {', '.join([*groups, *known])}")
    return tuple(one for one in known if one in asked)


def extract_regions(recipe: Recipe, folder: Folder, weights: str) -> None:
    """Region shards of all photographs; prints how many images a second it took."""
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
    """The scores of a run of a row; retrieval of ablations ranks one caption per image."""
    data = plan.folder.fold(scored.fold)
    return score_run(scored.call.out, scored.task, data, row in ABLATIONS)


def linear_scores(folder: Folder) -> Scores:
    """Those of the linear baseline of retrieval; of an earlier call, where there was one."""
    path = folder.root / "linear.npz"
    if not path.exists():
        task = find_task(RETRIEVAL)
        data = open_data(task, str(folder.fold(0)), "stop", clean="true")
        train, val, dev = (list(data.examples(split)) for split in (*task.splits[:2], SPLIT))
        predictions = linear_retrieval(data.regions, train, val, dev)
        metrics = {name: of for name, of in task.scores(dev, predictions).items() if len(of) == len(dev)}
        images = np.array([example.images[0] for example in dev])
        blind, chance = blind_retrieval(task, dev, predictions), 1 / len(set(images.tolist()))
        Scores(metrics, blind, images, chance, {}).save(path)
    return load_scores(path)


def make_table(plan: Plan) -> str:
    """The table of all seeds and rows that were scored."""
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
        raise UserError(f"{root}: has no scores of a row; run the stage score")
    linear = root / "linear.npz"
    return table.render(results, seeds, load_scores(linear) if linear.exists() else None)


if __name__ == "__main__":
    command(PhotosConfig, run, "benchmarks.photos", "The method on photographs with human language.")
