"""The page of a model's attention between a text and images (paper, figures 10 to 13)."""

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.inference.attention_maps import Explanation, explain
from finetune.inference.decoding import Prediction
from finetune.inference.expression_grounding import expression_boxes
from finetune.inference.predictor import LazyPredictor
from finetune.inference.request import Query
from finetune.pages.bertviz_views import head_views, libraries
from finetune.pages.html_page import data_block, fill_template, picture, render_page

STEPS = 65535  # integer that encodes an attention weight of 1 on the page


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
    """The HTML of the page.

    Args:
        title: title of the page.
        text: the text.
        images: (name, pixels (H, W, 3)) of each image, in the order of the explanations.
        explanations: attention maps per image.
        prediction: the model's prediction, or None.
        size: (width, height) of the first image, in the pixels of the prediction's boxes.
        expressions: (images, 4), box of the text as a referring expression in each image, as fractions of its sides, or
            None.
        lines: include bertviz's views; without them, heat maps only, the page has a quarter of the size.
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
    body = fill_template("attention.html", TITLE=title, TEXT=text)
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
    """Weights as 16-bit integers, little-endian, in base64."""
    numbers = np.rint(weights * STEPS).astype("<u2")
    return {"shape": weights.shape, "weights": base64.b64encode(numbers.tobytes()).decode()}


def _chosen(prediction: Prediction | None, size: tuple[float, float]) -> list[dict]:
    """The prediction, with boxes as fractions of the first image's sides."""
    if prediction is None:
        return []
    width, height = size
    places = [[x1 / width, y1 / height, x2 / width, y2 / height] for x1, y1, x2, y2 in prediction.boxes]
    return [
        {"choice": choice, "confidence": share, "box": places[number] if places else None}
        for number, (choice, share) in enumerate(zip(prediction.choices, prediction.confidence, strict=True))
    ]


def page_of(predictor: LazyPredictor, query: Query, lines: bool = True) -> str:
    """The page of a query, with the model's prediction if there is one.

    Pretraining weights predict for retrieval only, and retrieval needs at least two images. lines: see attention_page.
    """
    ranks_nothing = query.task.head.ranks_images and len(query.names) < 2
    answers = predictor.source.has_head(query.task) and not ranks_nothing
    return explained_page(predictor, query, predictor.answer(query) if answers else None, lines)


def explained_page(predictor: LazyPredictor, query: Query, prediction: Prediction | None, lines: bool) -> str:
    """The page of a query and its prediction."""
    task_pass, batch = predictor.batch(query)
    title = f"{query.task.title}, {predictor.run}"
    images = list(zip([Path(name).name for name in query.names], query.pixels, strict=True))
    explained = explain(task_pass, batch, predictor.source.tokenizer)
    collator = query.collator(predictor.source.tokenizer, predictor.source.sizes)
    expressions = expression_boxes(predictor.source, task_pass, collator, collator.examples)
    return attention_page(title, query.text, images, explained, prediction, query.size, expressions, lines)
