"""python -m finetune.consistency --run RUN: multi-task visual grounding consistency (MT-VGC)."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.config import EvaluateConfig
from finetune.data.regions import Regions, region_folder
from finetune.data.task_data import TaskData
from finetune.decontamination.manifest import is_cleaned
from finetune.evaluation.grounding_consistency import THRESHOLD, Consistency, ImageAgreement, both_forms, shared_words
from finetune.evaluation.pos_tagger import DEFAULT, Tagger, make_tagger
from finetune.evaluation.scores import score_task
from finetune.inference.model_loader import load
from finetune.inference.predictions import predict
from finetune.pages.consistency_page import SharedPair, write_pairs
from finetune.run_dirs.run_data_folder import check_exists, choose_data, place_of, warn_of_other_data
from finetune.task_types.base import Example
from finetune.tasks import find_task
from pretrain.config import PRECISIONS
from pretrain.engine.distributed import choose_device, exiting
from pretrain.engine.run_dir import CONFIG, read_config
from pretrain.engine.run_metadata import run_metadata
from shards.common.cli import REQUIRED, command, flag
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.common.files import write_json
from shards.common.folder_lock import locked_folder

GROUNDING = ("refcoco", "refcoco+")
NUMBERS = "consistency.json"
SHOWN = 24  # pairs of each kind on the page


@dataclass
class ConsistencyConfig:
    """Flags of finetune.consistency."""

    run: str = flag(REQUIRED, "run trained on VQA: of finetune.mt, or of finetune.st on vqa")
    grounding: str | None = flag(None, "comma-separated runs trained on referring expressions", unset="--run")
    data: str | None = flag(None, "data folder", unset="the run's")
    questions: str = flag("train,val", "comma-separated splits of VQA, which must have public answers")
    expressions: str = flag("testA,testB", "comma-separated splits of the referring expressions")
    threshold: float = flag(THRESHOLD, "minimum VQA accuracy of a question that counts as answered", above=0, high=1)
    fractional: bool = flag(False, "VQA accuracy instead of 1 or 0 as y(q) of the main score")
    tagger: str = flag(DEFAULT, "part-of-speech tagger: hanta, or an installed spaCy model")
    out: str | None = flag(None, "folder for the numbers and the page", unset="RUN/consistency", written=True)
    missing: str = flag("stop", "handling of examples whose image has no regions", choices=("stop", "skip"))
    batch_size: int = flag(256, "examples per batch", low=1)
    precision: str = flag("float32", "precision of matrix products; float64: of everything", choices=PRECISIONS)
    device: str = flag("auto", "device; auto: a GPU if available", choices=("auto", "cpu", "cuda"))
    workers: int = flag(min(4, max(1, (os.cpu_count() or 1) // 2)), "data worker processes, 0 for none", low=0)


@dataclass
class Judged:
    """Examples of a task with a run's predictions. values: float (examples,), the accuracy of each."""

    task: str
    examples: Sequence[Example]
    predictions: Sequence
    values: np.ndarray

    def by_image(self) -> dict[str, list[int]]:
        """Image -> numbers of its examples."""
        found: dict[str, list[int]] = {}
        for number, example in enumerate(self.examples):
            found.setdefault(example.images[0], []).append(number)
        return found


def run(config: ConsistencyConfig) -> None:
    warn_of_other_data(config.run, config.data)
    config = dataclasses.replace(config, data=choose_data(config.run, config.data))
    out = config.out or place_of(Path(config.run) / "consistency", NUMBERS, config.run, config.data).parent
    with locked_folder(out, "finetune.consistency"):
        _run(config, Path(out))


def _run(config: ConsistencyConfig, out: Path) -> None:
    tagger = make_tagger(config.tagger)
    runs = _grounding_runs(config)
    asked_of = _images(config, "vqa", config.questions)
    pointed_at = set().union(*(_images(config, task, config.expressions) for task in runs))
    asked = judge(config, config.run, "vqa", config.questions, pointed_at)
    found = {task: judge(config, path, task, config.expressions, asked_of) for task, path in runs.items()}
    images = {find_task(task).title: agreements(asked, [judged], tagger) for task, judged in found.items()}
    if len(found) > 1:
        images["both"] = agreements(asked, list(found.values()), tagger)
    rows = {name: both_forms(of_row, config.threshold) for name, of_row in images.items()}
    write_json(out / NUMBERS, {name: _stored(forms, config) for name, forms in rows.items()})
    regions = Regions(region_folder(config.data, find_task("vqa").images))
    pairs = [pair for judged in found.values() for pair in shared_pairs(asked, judged, tagger)]
    write_pairs(out / "pairs.html", pairs, regions, SHOWN)
    for form in _forms(config):
        print(_titles(config)[form])
        print(render({name: forms[form] for name, forms in rows.items()}))
    _warn(config)
    print(f"consistent and inconsistent pairs: {out / 'pairs.html'}")


def _forms(config: ConsistencyConfig) -> tuple[str, str]:
    """Both forms of y(q), the main one first."""
    return ("fractional", "threshold") if config.fractional else ("threshold", "fractional")


def _titles(config: ConsistencyConfig) -> dict[str, str]:
    return {
        "threshold": f"y(q) = 1 where VQA accuracy is at least {config.threshold:g}, else 0",
        "fractional": "y(q) = VQA accuracy (fractional)",
    }


def _stored(forms: dict[str, Consistency], config: ConsistencyConfig) -> dict:
    """A row of consistency.json: numbers and name of the main form, and both forms by name."""
    main = _forms(config)[0]
    both = {form: dataclasses.asdict(forms[form]) for form in forms}
    return both[main] | {"form": main, "threshold_accuracy": config.threshold} | both | _facts(config)


def _facts(config: ConsistencyConfig) -> dict:
    """Metadata of the numbers: data folder, splits, and software versions."""
    of = {"data": os.path.abspath(config.data), "questions": config.questions, "expressions": config.expressions}
    return of | {"made": run_metadata(choose_device(config.device, ALONE))}


def _grounding_runs(config: ConsistencyConfig) -> dict[str, str]:
    """Task of referring expressions -> the run that was trained on it."""
    runs: dict[str, str] = {}
    for path in (config.grounding or config.run).split(","):
        check_exists(path)
        facts = Path(path) / CONFIG
        for task in read_config(path).get("tasks", []) if facts.exists() else []:
            if task in GROUNDING:
                runs.setdefault(task, path)
    if not runs:
        name = f"--grounding {config.grounding}" if config.grounding else f"--run {config.run}"
        hint = "" if config.grounding else "; give such runs by --grounding"
        raise UserError(f"{name}: no run was trained on {' or '.join(GROUNDING)}{hint}")
    return {task: runs[task] for task in GROUNDING if task in runs}


def _images(config: ConsistencyConfig, name: str, splits: str) -> set[str]:
    """The images of some splits of a task."""
    task, found = find_task(name), set()
    for split in splits.split(","):
        task.check_split(split)
        found.update(*task.image_counts(task.folder(config.data), split))
    return found


def judge(config: ConsistencyConfig, path: str, name: str, splits: str, images: set[str]) -> Judged:
    """A run's predictions for a task's examples on these images, with their accuracy."""
    task = find_task(name)

    def choose(data: TaskData) -> list[Example]:
        examples = [example for split in splits.split(",") for example in data.examples(split)]
        if any(example.target is None for example in examples):
            raise UserError(f"--questions {splits}: contains questions without public answers")
        chosen = [example for example in examples if example.images[0] in images]
        if not chosen:
            raise UserError("no image has both questions with public answers and referring expressions")
        return chosen

    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(EvaluateConfig) if hasattr(config, f.name)}
    work, collator = load(EvaluateConfig(**shared | {"run": path, "task": name}), task, choose)
    predictions = predict(work, collator, config.batch_size, config.workers, ALONE, work.precision.device)
    return Judged(name, collator.examples, predictions, score_task(task, collator.examples, predictions).values)


def agreements(asked: Judged, pointed: Sequence[Judged], tagger: Tagger) -> list[ImageAgreement]:
    """The agreement of every image with both questions and expressions; expressions of several tasks are pooled."""
    questions, found = asked.by_image(), []
    expressions = [(judged, judged.by_image()) for judged in pointed]
    for image, numbers in questions.items():
        of_image = [(judged, n) for judged, by_image in expressions for n in by_image.get(image, ())]
        if of_image:
            shared = shared_words(
                [tagger(asked.examples[n].text) for n in numbers],
                [tagger(judged.examples[n].text) for judged, n in of_image],
            )
            values = np.array([judged.values[n] for judged, n in of_image])
            found.append(ImageAgreement(shared, asked.values[numbers], values))
    return found


def shared_pairs(asked: Judged, pointed: Judged, tagger: Tagger) -> list[SharedPair]:
    """All pairs of a question and an expression on the same image that share a noun or an adjective."""
    questions, expressions, found = asked.by_image(), pointed.by_image(), []
    for image in questions:
        for q in questions[image]:
            for r in expressions.get(image, ()):
                question, expression = asked.examples[q], pointed.examples[r]
                words = tagger(question.text) & tagger(expression.text)
                if words:
                    found.append(
                        SharedPair(
                            image=image,
                            words=tuple(sorted(words)),
                            question=question.text,
                            answer=str(asked.predictions[q]),
                            right_answer=max(question.target, key=question.target.get) if question.target else "",
                            answered=float(asked.values[q]),
                            expression=expression.text,
                            box=tuple(map(float, pointed.predictions[r])),
                            right_box=tuple(expression.target),
                            found=float(pointed.values[r]),
                        )
                    )
    return found


def render(rows: dict[str, Consistency]) -> str:
    """The scores of one form as a table; the column y(q) is its mean over all questions."""
    lines = [f"{'':<10} {'MT-VGC':>7} {'95% interval':>18} {'independent':>12} {'y(q)':>7} {'found':>7} {'images':>7}"]
    for name, row in rows.items():
        interval = f"{row.interval[0]:.1%} to {row.interval[1]:.1%}"
        lines.append(
            f"{name:<10} {row.score:>7.1%} {interval:>18} {row.independent:>12.1%} {row.answered:>7.1%} "
            f"{row.found:>7.1%} {row.images:>7}   {row.pairs} pairs share a word"
        )
    return "\n".join(lines)


def _warn(config: ConsistencyConfig) -> None:
    """Prints a warning for runs that may have been trained on the evaluated questions or expressions."""
    for path in dict.fromkeys([config.run, *(config.grounding or "").split(",")]):
        facts = Path(path) / CONFIG
        if path and facts.exists() and not is_cleaned(read_config(path)):
            print(f"warning: {path}: trained without --clean, possibly on these questions or expressions")


if __name__ == "__main__":
    with exiting():
        command(ConsistencyConfig, run, "finetune.consistency", "Multi-task visual grounding consistency (MT-VGC).")
