"""python -m finetune.examples --run RUN --task T: a page of correct and wrong predictions (figures 8 and 9)."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from finetune.config import EvaluateConfig, WeightsFlags, check_answer_files
from finetune.data.task_batches import in_order
from finetune.data.task_collate import TaskCollator, image_size
from finetune.inference.attention_maps import explain
from finetune.inference.decoding import Prediction, prediction, ranked
from finetune.inference.expression_grounding import expression_boxes
from finetune.inference.model_loader import open_run
from finetune.inference.predictions import predict
from finetune.objective.task_pass import TaskPass
from finetune.pages.attention_page import attention_page
from finetune.pages.example_page import Card, write_examples
from finetune.run_dirs.init_weights import Start, read_tasks
from finetune.run_dirs.run_data_folder import choose_data, warn_of_other_data
from finetune.task_types.base import Example, Task
from finetune.tasks import choose_tasks
from shards.common.cli import command, flag
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.folder_lock import locked_folder
from shards.images.source_image import image_of

RIGHT = 0.5  # a prediction with a higher score counts as correct
TOP = 5  # predictions per example on the page


@dataclass(kw_only=True)
class ExamplesConfig(WeightsFlags):
    """Flags of finetune.examples."""

    task: str | None = flag(None, "comma-separated tasks or groups", unset="all tasks of the run")
    split: str | None = flag(None, "split to predict", unset="each task's validation split")
    examples: int = flag(1000, "number of examples that are predicted, the first of the split", low=1)
    count: int = flag(20, "number of wrong predictions per task, the most confident ones, and of correct ones", low=1)
    attention: bool = flag(True, "write a page of attention maps for every example, in a folder next to the page")
    out: str = flag("examples.html", "output file for the page", written=True)
    batch_size: int = flag(64, "examples per batch", low=1)


@dataclass(frozen=True)
class Scored:
    """An example with its prediction and score. number: of the example in its split; value: score between 0 and 1."""

    number: int
    example: Example
    prediction: Prediction
    value: float


def judge(work: TaskPass, collator: TaskCollator, batch_size: int) -> list[Scored]:
    """Predicts and scores all examples of a collator."""
    task, examples = work.task, collator.examples
    if task.head == "retrieval":
        device = work.precision.device
        scores = predict(work, collator, batch_size, 0, ALONE, device)
        images = list(dict.fromkeys(example.images[0] for example in examples))
        predictions = [ranked(task, images, torch.from_numpy(row).softmax(0), TOP) for row in scores]
        official = scores
    else:
        found = _predictions(work, collator, batch_size)
        predictions = list(tqdm(found, task.title, len(examples), unit=" examples", mininterval=0.5))
        official = [_official(task, one) for one in predictions]
    values = next(iter(task.scores(examples, official).values()))
    return [Scored(*of) for of in zip(range(len(examples)), examples, predictions, values.tolist(), strict=True)]


@torch.no_grad()
def _predictions(work: TaskPass, collator: TaskCollator, batch_size: int) -> Iterator[Prediction]:
    limit = collator.limits.regions
    with in_order(collator, batch_size, 0, ALONE) as batches:
        for part, batch in batches:
            scores = work.scores(batch.to(work.precision.device)).cpu()
            for row, example in zip(scores, collator.examples[part], strict=True):
                sample = collator.regions[example.images[0]]
                regions, size = sample.boxes[:limit], image_size(example, sample)
                yield prediction(work.task, row, TOP, collator.vocabulary, regions, size, example.candidates)


def _official(task: Task, found: Prediction):
    """The most likely prediction in the form of `Task.scores`."""
    if task.head == "regions":
        return found.boxes[0]
    return found.choices[0] if hasattr(task, "vocabulary") else found.numbers[0]


def choose(scored: Sequence[Scored], count: int) -> list[Scored]:
    """The `count` most confident wrong predictions, then `count` correct ones spread over all confidences; both in
    descending order of confidence."""
    by_confidence = sorted(scored, key=lambda one: (-one.prediction.confidence[0], one.number))
    wrong = [one for one in by_confidence if one.value <= RIGHT]
    right = [one for one in by_confidence if one.value > RIGHT]
    spread = np.linspace(0, len(right) - 1, min(count, len(right))).round().astype(int).tolist()
    return wrong[:count] + [right[place] for place in spread]


def kind_of(task: Task, example: Example) -> str:
    """The official type of an example; if there is none, the first word of a question."""
    first = example.text.split()[0].lower() if example.text.rstrip().endswith("?") else ""
    return task.kind(example) or first


def expected_of(task: Task, example: Example) -> tuple[str, tuple | None]:
    """The ground truth: (text, box in pixels of the annotations or None)."""
    if task.head == "regions":
        return "", tuple(example.target)
    if task.head == "candidates":
        return f"candidate {example.target}", example.candidates[example.target]
    if task.head == "retrieval":
        return example.images[0], None
    if hasattr(task, "vocabulary"):
        best = sorted(example.target.items(), key=lambda pair: -pair[1])
        return ", ".join(answer for answer, _ in best[:3]), None
    return task.labels[example.target], None


def run(config: ExamplesConfig) -> None:
    warn_of_other_data(config.run, config.data)
    config = replace(config, data=choose_data(config.run, config.data))
    out = Path(config.out)
    folder = f"{out.stem}-attention"
    lock = locked_folder(out.parent / folder, "finetune.examples") if config.attention else contextlib.nullcontext()
    with lock:
        _run(config, out, folder)


def _run(config: ExamplesConfig, out: Path, folder: str) -> None:
    """Writes the page, and the pages of attention maps to `folder`, a name relative to the page."""
    tasks = choose_tasks(config.task, "--task") if config.task else read_tasks(config.run)
    check_answer_files(config, tasks)
    cards, summary = [], []
    for task in tasks:
        start, work, collator = _load(config, task)
        scored = judge(work, collator, config.batch_size)
        right = sum(one.value > RIGHT for one in scored)
        summary.append(f"{task.title}: {right} of {len(scored)} correct")
        print(summary[-1], flush=True)
        for one in choose(scored, config.count):
            page = f"{folder}/{task.name}-{one.number}.html" if config.attention else None
            cards.append(_card(task, collator, one, page))
            if page:
                with whole_file(out.parent / page, "w", encoding="utf-8") as file:
                    file.write(_attention(config, start, work, collator, one))
    cards.sort(key=lambda card: (card.right, -card.prediction.confidence[0]))
    write_examples(out, f"Correct and wrong predictions of {config.run}", "; ".join(summary), cards)
    print(f"page: {out}" + (f", with attention maps in {folder}" if config.attention else ""))


def _load(config: ExamplesConfig, task: Task) -> tuple[Start, TaskPass, TaskCollator]:
    split = config.split or task.splits[1]
    settings = EvaluateConfig(split=split, **config.of_weights)
    start, work, collator = open_run(settings, task)
    collator = replace(collator, examples=collator.examples[: config.examples])
    if task.head != "retrieval" and any(example.target is None for example in collator.examples):
        raise UserError(f"--split {split}: {task.name} has no public answers in this split; choose another one")
    work.model.eval()
    return start, work, collator


def _card(task: Task, collator: TaskCollator, one: Scored, page: str | None) -> Card:
    example, regions = one.example, collator.regions
    shown = one.prediction.choices[:3] if task.head == "retrieval" else list(example.images)
    width, height = image_size(example, regions[example.images[0]])
    side = np.array([width, height] * 2)
    words, box = expected_of(task, example)
    return Card(
        task=task.title,
        kind=kind_of(task, example),
        right=one.value > RIGHT,
        value=one.value,
        text=example.text,
        prediction=one.prediction,
        expected=words,
        chosen_box=tuple(np.array(one.prediction.boxes[0]) / side) if one.prediction.boxes else None,
        expected_box=tuple(np.array(box) / side) if box is not None else None,
        images=[image_of(regions[image], regions.dataset.folder)[0] for image in shown],
        names=shown,
        regions=regions[shown[0]].boxes[: collator.limits.regions],
        attention=page,
    )


def _attention(config: ExamplesConfig, start: Start, work: TaskPass, collator: TaskCollator, one: Scored) -> str:
    """The page of an example's attention maps."""
    batch = collator(0, np.array([one.number])).to(work.precision.device)
    regions = collator.regions
    images = [
        (image, np.asarray(image_of(regions[image], regions.dataset.folder)[0].convert("RGB")))
        for image in one.example.images
    ]
    ranking = work.task.head == "retrieval"  # its prediction is about other images than the explained one
    title = f"{work.task.title}, {config.run}"
    explained = explain(work, batch, collator.tokenizer)
    size = image_size(one.example, regions[one.example.images[0]])
    boxes = expression_boxes(start, work, collator, [one.example])
    shown = None if ranking else one.prediction
    return attention_page(title, one.example.text, images, explained, shown, size, boxes, lines=False)


if __name__ == "__main__":
    command(
        ExamplesConfig,
        run,
        "finetune.examples",
        "A page of correct and wrong predictions, the most confident mistakes first.",
    )
