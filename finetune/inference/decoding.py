"""Decoding of logits: the most likely answers, labels, regions or candidates, with their confidence."""

from dataclasses import dataclass, field

from torch import Tensor

from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.example import Box, as_box
from finetune.heads.base import Scene
from finetune.task_types.base import Task


@dataclass
class Prediction:
    """The predictions for one example, the most likely first.

    Attributes:
        task: name of the task.
        choices: answers, labels, names of images, or "region N" and "candidate N".
        confidence: of each choice, between 0 and 1, see Head.confidence.
        numbers: indices of the choices among all possible ones.
        boxes: x1, y1, x2, y2 in pixels, of regions and candidates; empty for other choices.
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


def prediction(task: Task, logits: Tensor, scene: Scene, vocabulary: AnswerVocabulary | None, top: int) -> Prediction:
    """The `top` most likely choices for an example.

    Args:
        task: the task.
        logits: (n,), of the task's head; those beyond the number of choices are padding.
        scene: the images of the example, with their regions and candidates.
        vocabulary: of a head with an answer vocabulary.
        top: maximum number of choices that are returned.
    """
    names, places = task.head.choices(scene, vocabulary)
    logits = logits[: len(names)]
    confidence = task.head.confidence(logits)
    best = logits.argsort(descending=True, stable=True)[:top].tolist()  # large logits all have a confidence of 1
    return Prediction(
        task.name,
        [names[n] for n in best],
        [float(confidence[n]) for n in best],
        best,
        [as_box(map(float, places[n])) for n in best] if len(places) else [],
    )
