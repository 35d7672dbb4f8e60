"""The page of correct and wrong predictions (paper, figures 8 and 9)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.inference.decoding import Prediction
from finetune.pages.html_page import data_block, fill, picture, write_page
from finetune.task_types.base import Box

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


def write_examples(path: Path, title: str, summary: str, cards: Sequence[Card]) -> None:
    """Writes the page with the cards in the given order; each picture is included once."""
    pictures: dict[str, str] = {}
    for card in cards:
        for name, image in zip(card.names, card.images, strict=True):
            if name not in pictures:
                pictures[name] = picture(image, LONG_SIDE)
    data = {"pictures": pictures, "cards": [_described(card) for card in cards]}
    body = fill("examples.html", TITLE=title, SUMMARY=summary)
    write_page(
        path, title, body + data_block("data", data), styles=["examples.css"], scripts=["elements.js", "examples.js"]
    )


def _described(card: Card) -> dict:
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
