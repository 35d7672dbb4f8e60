"""What a model chooses from its scores: the likeliest answers, labels, regions or candidates, with how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from finetune.answers import AnswerVocabulary
from finetune.batch import WHOLE
from finetune.heads import POINTING
from finetune.task import Box, Task


@dataclass
class Prediction:
    """What a model says, the likeliest first.

    choices: answers, labels, images by their names, or "region N" and "candidate N"; confidence: of each between 0 and
    1, by itself (a sigmoid, as it was trained), of images among those that were given (a softmax); numbers: which they
    are of all that there was to choose from; boxes: where the regions are, in pixels.
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
    """What an example's scores (n,) say, of any head but retrieval's.

    answers: of heads that choose from some; regions: boxes (n, 4) as shares of an image of this size in pixels;
    candidates: boxes in pixels. Scores behind these are padding.
    """
    if task.head == "regions":
        places = (np.concatenate([WHOLE, regions]) * np.array(size * 2)).tolist()
        names = ["the whole image", *(f"region {n}" for n in range(len(regions)))]
    elif task.head in POINTING:
        places, names = candidates, [f"candidate {n}" for n in range(len(candidates))]
    else:
        places, names = (), list(answers.answers if answers is not None else task.labels)
    return ranked(task, names, scores[: len(names)].sigmoid(), top, places)


def ranked(task: Task, names: Sequence[str], share: Tensor, top: int, places: Sequence[Box] = ()) -> Prediction:
    """The `top` likeliest of some choices, by the share (n,) of each."""
    best = share.argsort(descending=True, stable=True)[:top].tolist()
    return Prediction(
        task.name,
        [names[n] for n in best],
        [float(share[n]) for n in best],
        best,
        [tuple(map(float, places[n])) for n in best] if len(places) else [],
    )
