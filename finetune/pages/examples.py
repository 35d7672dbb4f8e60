"""The page of right and wrong predictions (figures 8 and 9 of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.choices import Prediction
from finetune.pages.page import data_block, fill, picture, write_page
from finetune.task import Box

LONG_SIDE = 480  # pixels of a picture


@dataclass
class Card:
    """One example. value: its score; chosen_box, expected_box, regions (n, 4): as shares of the first image's sides;
    images: those of the example, of retrieval the best ones that were found, with their names; attention: a page."""

    task: str
    kind: str
    right: bool
    value: float
    text: str
    said: Prediction
    expected: str
    chosen_box: Box | None
    expected_box: Box | None
    images: Sequence[Image.Image]
    names: Sequence[str]
    regions: np.ndarray
    attention: str | None


def write_examples(path: Path, title: str, summary: str, cards: Sequence[Card]) -> None:
    """The page of cards in the order in which they are given; each picture is in it once."""
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
        "choices": list(zip(card.said.choices, [round(share, 4) for share in card.said.confidence], strict=True)),
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
