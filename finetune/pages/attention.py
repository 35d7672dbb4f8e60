"""The page of a model's attention between a text and images (figures 10 to 13 of the paper)."""

import base64
from collections.abc import Sequence

import numpy as np

from finetune.choices import Prediction
from finetune.explain import Explanation
from finetune.pages.bertviz_views import head_views, libraries
from finetune.pages.page import data_block, fill, picture, render_page

STEPS = 65535  # into which a weight between 0 and 1 is divided on the page


def attention_page(
    title: str,
    text: str,
    images: Sequence[tuple[str, np.ndarray]],
    explanations: Sequence[Explanation],
    prediction: Prediction | None,
    size: tuple[float, float],
    expressions: np.ndarray | None = None,
    lines: bool = True,
) -> str:
    """The page as text.

    images: name and pixels (H, W, 3) of each, in the order of the explanations; size: of the first image, in the
    pixels of the prediction's boxes; expressions: (images, 4), the box of the text as a referring expression in each
    image, as shares of its sides, or None; lines: bertviz's views too, else squares alone, which take a quarter of the
    room.
    """
    parts = [_described(*pair) for pair in zip(images, explanations, strict=True)]
    for number, part in enumerate(parts):
        part["expression"] = None if expressions is None else expressions[number].astype(float).round(5).tolist()
    data = {"images": parts, "prediction": _chosen(prediction, size)}
    templates = [
        f'<template data-image="{number}" data-view="{view}">{html}</template>'
        for number, explanation in enumerate(explanations if lines else ())
        for view, html in head_views(explanation).items()
    ]
    body = fill("attention.html", TITLE=title, TEXT=text)
    return render_page(
        title,
        body + (libraries() if lines else "") + data_block("data", data) + "".join(templates),
        styles=["attention.css"],
        scripts=["elements.js", "attention.js"],
    )


def _described(image: tuple[str, np.ndarray], explanation: Explanation) -> dict:
    name, pixels = image
    return {
        "name": name,
        "picture": picture(pixels),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "words": explanation.words,
        "special": explanation.special,
        "rows": explanation.rows,
        "boxes": explanation.boxes.astype(float).round(5).tolist(),
        "maps": {view: _packed(weights) for view, weights in explanation.maps.items()},
    }


def _packed(weights: np.ndarray) -> dict:
    """Weights as whole numbers of two bytes, little end first."""
    numbers = np.rint(weights * STEPS).astype("<u2")
    return {"shape": weights.shape, "weights": base64.b64encode(numbers.tobytes()).decode()}


def _chosen(prediction: Prediction | None, size: tuple[float, float]) -> list[dict]:
    """What the model says, with boxes as shares of the first image's sides."""
    if prediction is None:
        return []
    width, height = size
    places = [[x1 / width, y1 / height, x2 / width, y2 / height] for x1, y1, x2, y2 in prediction.boxes]
    return [
        {"choice": choice, "confidence": share, "box": places[number] if places else None}
        for number, (choice, share) in enumerate(zip(prediction.choices, prediction.confidence, strict=True))
    ]
