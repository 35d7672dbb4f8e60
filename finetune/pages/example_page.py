"""The page of correct and wrong predictions (paper, figures 8 and 9)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.annotations.boxes import image_size
from finetune.annotations.example import Box
from finetune.config import ExamplesConfig
from finetune.data.task_collate import TaskCollator
from finetune.inference.attention_maps import explain
from finetune.inference.decoding import Prediction
from finetune.inference.expression_grounding import expression_boxes
from finetune.inference.judged_examples import (
    RIGHT_ABOVE,
    JudgedExample,
    choose_examples,
    judge,
    kind_of,
    load_examples,
)
from finetune.inference.model_loader import ModelLoader, OpenedTask
from finetune.pages.attention_page import attention_page
from finetune.pages.html_page import data_block, fill_template, picture, write_page
from finetune.task_types.base import Task
from shards.common.files import whole_file
from shards.images.source_image import image_of

LONG_SIDE = 480  # pixels of a picture


@dataclass
class Card:
    """One example on the page.

    right: whether the prediction is correct; value: its score; expected: ground truth as text; chosen_box,
    expected_box, regions (n, 4): predicted and ground-truth box and all regions, as fractions of the first image's
    sides; images, names: images of the example, for retrieval the highest-ranked ones; attention: link to its attention
    page, or None.
    """

    task: str
    kind: str
    right: bool
    value: float
    text: str
    prediction: Prediction
    expected: str
    chosen_box: Box | None
    expected_box: Box | None
    images: Sequence[Image.Image]
    names: Sequence[str]
    regions: np.ndarray
    attention: str | None


@dataclass(frozen=True)
class JudgedCards:
    """The predictions of a run for a task. examples, correct: their number; cards: those that are shown."""

    task: Task
    examples: int
    correct: int
    cards: list[Card]

    def __str__(self) -> str:
        return f"{self.task.title}: {self.correct} of {self.examples} correct"


def judge_task(
    loader: ModelLoader, task: Task, split: str, config: ExamplesConfig, out: Path, folder: str | None
) -> JudgedCards:
    """Predicts the first examples of a split, and writes attention maps of those that are shown.

    config: flags; out: path of the page; folder: name of the folder next to it for the attention maps, None for none.
    """
    opened = load_examples(loader, task, split, config.examples)
    judged = judge(opened.task_pass, opened.collator, config.batch_size)
    cards = []
    for one in choose_examples(judged, config.count):
        page = folder and f"{folder}/{task.name}-{one.number}.html"
        cards.append(card_with_attention(loader.config.run, opened, one, out, page))
    return JudgedCards(task, len(judged), sum(one.value > RIGHT_ABOVE for one in judged), cards)


def write_examples(path: Path, title: str, judged: Sequence[JudgedCards]) -> None:
    """Writes the page: wrong predictions first, each kind in descending order of confidence."""
    cards = [card for of in judged for card in of.cards]
    cards.sort(key=lambda card: (card.right, -card.prediction.confidence[0]))
    data = {"pictures": pictures_of(cards), "cards": [described(card) for card in cards]}
    body = fill_template("examples.html", TITLE=title, SUMMARY="; ".join(map(str, judged)))
    scripts = ["elements.js", "cards.js", "examples.js"]
    write_page(path, title, body + data_block("data", data), styles=["examples.css"], scripts=scripts)


def pictures_of(cards: Sequence[Card]) -> dict[str, str]:
    """Name -> data URL of the images of all cards, each once."""
    pictures: dict[str, str] = {}
    for card in cards:
        for name, image in zip(card.names, card.images, strict=True):
            if name not in pictures:
                pictures[name] = picture(image, LONG_SIDE)
    return pictures


def described(card: Card) -> dict:
    """A card in the form of cards.js."""
    return {
        "task": card.task,
        "kind": card.kind,
        "right": card.right,
        "value": round(card.value, 3),
        "text": card.text,
        "choices": [
            (choice, round(share, 4))
            for choice, share in zip(card.prediction.choices, card.prediction.confidence, strict=True)
        ],
        "expected": card.expected,
        "chosenBox": _rounded(card.chosen_box),
        "expectedBox": _rounded(card.expected_box),
        "images": [
            {"name": name, "width": image.width, "height": image.height}
            for name, image in zip(card.names, card.images, strict=True)
        ],
        "regions": card.regions.astype(float).round(4).tolist(),
        "attention": card.attention,
    }


def _rounded(box: Box | None) -> list[float] | None:
    return None if box is None else [round(float(value), 4) for value in box]


def card_of(task: Task, collator: TaskCollator, one: JudgedExample, page: str | None) -> Card:
    """The card of an example. page: path of its page of attention maps, or None."""
    example, regions = one.example, collator.regions
    shown = one.prediction.choices[:3] if task.head.ranks_images else list(example.images)
    width, height = image_size(example, regions[example.images[0]])
    side = np.array([width, height] * 2)
    words, box = task.head.expected(example)
    return Card(
        task=task.title,
        kind=kind_of(task, example),
        right=one.value > RIGHT_ABOVE,
        value=one.value,
        text=example.text,
        prediction=one.prediction,
        expected=words,
        chosen_box=tuple(np.array(one.prediction.boxes[0]) / side) if one.prediction.boxes else None,
        expected_box=tuple(np.array(box) / side) if box is not None else None,
        images=[image_of(regions[image], regions.dataset.folder)[0] for image in shown],
        names=shown,
        regions=regions[shown[0]].boxes[: collator.limits.max_regions],
        attention=page,
    )


def card_with_attention(run: str, opened: OpenedTask, one: JudgedExample, out: Path, page: str | None) -> Card:
    """The card of an example, whose page of attention maps is written.

    Args:
        run: the run.
        opened: the task as it opened it.
        one: the example.
        out: path of the page with the cards.
        page: path of the page of attention maps relative to it; None for none.
    """
    if page:
        with whole_file(out.parent / page, "w", encoding="utf-8") as file:
            file.write(attention_of(run, opened, one))
    return card_of(opened.task_pass.task, opened.collator, one, page)


def attention_of(run: str, opened: OpenedTask, one: JudgedExample) -> str:
    """The page of an example's attention maps."""
    source, task_pass, collator = opened
    batch = collator(0, np.array([one.number])).to(task_pass.device)
    regions = collator.regions
    images = [
        (image, np.asarray(image_of(regions[image], regions.dataset.folder)[0].convert("RGB")))
        for image in one.example.images
    ]
    ranking = task_pass.task.head.ranks_images  # its prediction is about other images than the explained one
    title = f"{task_pass.task.title}, {run}"
    explained = explain(task_pass, batch, collator.tokenizer)
    size = image_size(one.example, regions[one.example.images[0]])
    boxes = expression_boxes(source, task_pass, collator, [one.example])
    shown = None if ranking else one.prediction
    return attention_page(title, one.example.text, images, explained, shown, size, boxes, lines=False)
