"""Decoding of scores: the most likely answers, labels, regions or candidates, with their confidence."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from finetune.annotations.answers import AnswerVocabulary
from finetune.data.task_collate import WHOLE_IMAGE
from finetune.models.task_model import POINTING
from finetune.task_types.base import Box, Task


@dataclass
class Prediction:
    """The predictions for one example, the most likely first.

    task: name of the task; choices: answers, labels, names of images, or "region N" and "candidate N"; confidence: of
    each, between 0 and 1: a sigmoid per choice, as in training, or for images a softmax over the given ones; numbers:
    indices of the choices among all possible ones; boxes: of regions and candidates, in pixels.
    """

    task: str
    choices: list[str]
    confidence: list[float]
    numbers: list[int]
    boxes: list[Box] = field(default_factory=list)

    def __str__(self) -> str:
        places = [f"  at {', '.join(f'{value:.0f}' for value in box)}" for box in self.boxes]
        places = places or [""] * len(self.choices)
        rows = zip(self.choices, self.confidence, places, strict=True)
        return "\n".join(f"{share:6.1%}  {choice}{place}" for choice, share, place in rows)


def prediction(
    task: Task,
    scores: Tensor,
    top: int,
    answers: AnswerVocabulary | None = None,
    regions: np.ndarray | None = None,
    size: tuple[float, float] = (1.0, 1.0),
    candidates: Sequence[Box] = (),
) -> Prediction:
    """The predictions from an example's scores, for all heads except retrieval.

    Args:
        task: the task.
        scores: (n,), of its head; scores beyond the number of choices are padding.
        top: maximum number of choices that are returned.
        answers: vocabulary, for answer heads.
        regions: (n, 4), boxes as fractions of the image's sides, for the head `regions`.
        size: (width, height) of the image in pixels.
        candidates: boxes in pixels, for the head `candidates`.
    """
    if task.head == "regions":
        places = (np.concatenate([WHOLE_IMAGE, regions]) * np.array(size * 2)).tolist()
        names = ["the whole image", *(f"region {n}" for n in range(len(regions)))]
    elif task.head in POINTING:
        places, names = candidates, [f"candidate {n}" for n in range(len(candidates))]
    else:
        places, names = (), list(answers.answers if answers is not None else task.labels)
    return ranked(task, names, scores[: len(names)].sigmoid(), top, places)


def ranked(task: Task, names: Sequence[str], share: Tensor, top: int, places: Sequence[Box] = ()) -> Prediction:
    """The `top` choices with the highest confidence.

    Args:
        task: the task.
        names: of all choices.
        share: (n,), confidence of each.
        top: maximum number of choices that are returned.
        places: boxes of all choices in pixels, if they have some.
    """
    best = share.argsort(descending=True, stable=True)[:top].tolist()
    return Prediction(
        task.name,
        [names[n] for n in best],
        [float(share[n]) for n in best],
        best,
        [tuple(map(float, places[n])) for n in best] if len(places) else [],
    )
