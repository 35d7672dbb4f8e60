"""python -m finetune.examples --run RUN --task T: a page of what a model gets right and wrong (figures 8 and 9)."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from finetune import evaluate
from finetune.batch import TaskCollator, image_size
from finetune.choices import Prediction, prediction, ranked
from finetune.explain import explain
from finetune.grounding import expression_boxes
from finetune.pages.attention import attention_page
from finetune.pages.examples import Card, write_examples
from finetune.predictions import predict
from finetune.run_data import choose_data, warn_of_other_data
from finetune.settings import WeightsFlags, check_answer_files
from finetune.sources import in_order
from finetune.start import Start, read_tasks
from finetune.task import Example, Task
from finetune.tasks import choose_tasks
from finetune.work import TaskPass
from shards.errors import UserError
from shards.files import whole_file
from shards.flags import command, flag
from shards.folder_lock import locked_folder
from shards.inspect import image_of
from shards.ranks import ALONE

RIGHT = 0.5  # an example of a higher score is called right
TOP = 5  # choices of an example on the page


@dataclass(kw_only=True)
class ExamplesConfig(WeightsFlags):
    """Flags of finetune.examples."""

    task: str | None = flag(None, "names or groups of tasks with commas between them", unset="all that the run trained")
    split: str | None = flag(None, "the split", unset="each task's validation split")
    examples: int = flag(1000, "of a split, the first so many are looked at", low=1)
    count: int = flag(20, "of the wrong ones, the surest, and as many right ones are shown of each task", low=1)
    attention: bool = flag(True, "a page of each example's attention too, in a folder beside the page")
    out: str = flag("examples.html", "where the page goes", written=True)
    batch_size: int = flag(64, "examples at a time", low=1)


@dataclass(frozen=True)
class Said:
    """An example, what the model says of it, and how right that is, between 0 and 1."""

    number: int
    example: Example
    prediction: Prediction
    value: float


def judge(work: TaskPass, collator: TaskCollator, batch_size: int) -> list[Said]:
    """What a model says of all examples of a collator."""
    task, examples = work.task, collator.examples
    if task.head == "retrieval":
        device = work.precision.device
        scores = predict(work, collator, batch_size, 0, ALONE, device)
        images = list(dict.fromkeys(example.images[0] for example in examples))
        said = [ranked(task, images, torch.from_numpy(row).softmax(0), TOP) for row in scores]
        official = scores
    else:
        said = list(
            tqdm(_said(work, collator, batch_size), task.title, len(examples), unit=" examples", mininterval=0.5)
        )
        official = [_official(task, one) for one in said]
    values = next(iter(task.scores(examples, official).values()))
    return [Said(*of) for of in zip(range(len(examples)), examples, said, values.tolist(), strict=True)]


@torch.no_grad()
def _said(work: TaskPass, collator: TaskCollator, batch_size: int) -> Iterator[Prediction]:
    limit = collator.limits.regions
    with in_order(collator, batch_size, 0, ALONE) as batches:
        for part, batch in batches:
            scores = work.scores(batch.to(work.precision.device)).cpu()
            for row, example in zip(scores, collator.examples[part], strict=True):
                sample = collator.regions[example.images[0]]
                regions, size = sample.boxes[:limit], image_size(example, sample)
                yield prediction(work.task, row, TOP, collator.vocabulary, regions, size, example.candidates)


def _official(task: Task, said: Prediction):
    """The likeliest in the form that the task's scores take."""
    if task.head == "regions":
        return said.boxes[0]
    return said.choices[0] if hasattr(task, "vocabulary") else said.numbers[0]


def choose(said: Sequence[Said], count: int) -> list[Said]:
    """The wrong ones of which the model is surest, surest first, and right ones from the surest to the least sure."""
    by_confidence = sorted(said, key=lambda one: (-one.prediction.confidence[0], one.number))
    wrong = [one for one in by_confidence if one.value <= RIGHT]
    right = [one for one in by_confidence if one.value > RIGHT]
    spread = np.linspace(0, len(right) - 1, min(count, len(right))).round().astype(int).tolist()
    return wrong[:count] + [right[place] for place in spread]


def kind_of(task: Task, example: Example) -> str:
    """The data set's own kind of an example; where it has none, of a question the word that it begins with."""
    first = example.text.split()[0].lower() if example.text.rstrip().endswith("?") else ""
    return task.kind(example) or first


def expected_of(task: Task, example: Example) -> tuple[str, tuple | None]:
    """What would be right: (words, a box in the annotations' pixels)."""
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
    beside = f"{out.stem}-attention"
    lock = locked_folder(out.parent / beside, "finetune.examples") if config.attention else contextlib.nullcontext()
    with lock:
        _run(config, out, beside)


def _run(config: ExamplesConfig, out: Path, beside: str) -> None:
    """Writes the page, and in the folder `beside` those of its examples' attention."""
    tasks = choose_tasks(config.task, "--task") if config.task else read_tasks(config.run)
    check_answer_files(config, tasks)
    cards, summary = [], []
    for task in tasks:
        start, work, collator = _load(config, task)
        said = judge(work, collator, config.batch_size)
        right = sum(one.value > RIGHT for one in said)
        summary.append(f"{task.title}: {right} of {len(said)} right")
        print(summary[-1], flush=True)
        for one in choose(said, config.count):
            page = f"{beside}/{task.name}-{one.number}.html" if config.attention else None
            cards.append(_card(task, collator, one, page))
            if page:
                with whole_file(out.parent / page, "w", encoding="utf-8") as file:
                    file.write(_attention(config, start, work, collator, one))
    cards.sort(key=lambda card: (card.right, -card.said.confidence[0]))
    write_examples(out, f"What {config.run} gets right and wrong", "; ".join(summary), cards)
    print(f"the page: {out}" + (f", with attention in {beside}" if config.attention else ""))


def _load(config: ExamplesConfig, task: Task) -> tuple[Start, TaskPass, TaskCollator]:
    split = config.split or task.splits[1]
    settings = evaluate.EvaluateConfig(split=split, **config.of_weights)
    start, work, collator = evaluate.open_run(settings, task)
    collator = replace(collator, examples=collator.examples[: config.examples])
    if task.head != "retrieval" and any(example.target is None for example in collator.examples):
        raise UserError(f"--split {split}: {task.name} has no public answers there to tell right from wrong")
    work.model.eval()
    return start, work, collator


def _card(task: Task, collator: TaskCollator, one: Said, page: str | None) -> Card:
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
        said=one.prediction,
        expected=words,
        chosen_box=tuple(np.array(one.prediction.boxes[0]) / side) if one.prediction.boxes else None,
        expected_box=tuple(np.array(box) / side) if box is not None else None,
        images=[image_of(regions[image], regions.dataset.folder)[0] for image in shown],
        names=shown,
        regions=regions[shown[0]].boxes[: collator.limits.regions],
        attention=page,
    )


def _attention(config: ExamplesConfig, start: Start, work: TaskPass, collator: TaskCollator, one: Said) -> str:
    batch = collator(0, np.array([one.number])).to(work.precision.device)
    regions = collator.regions
    images = [
        (image, np.asarray(image_of(regions[image], regions.dataset.folder)[0].convert("RGB")))
        for image in one.example.images
    ]
    ranking = work.task.head == "retrieval"  # of other images than the one that is explained
    title = f"{work.task.title}, {config.run}"
    explained = explain(work, batch, collator.pieces)
    size = image_size(one.example, regions[one.example.images[0]])
    boxes = expression_boxes(start, work, collator, [one.example])
    said = None if ranking else one.prediction
    return attention_page(title, one.example.text, images, explained, said, size, boxes, lines=False)


if __name__ == "__main__":
    command(
        ExamplesConfig,
        run,
        "finetune.examples",
        "A page of what a model gets right and wrong, the surest mistakes first.",
    )
