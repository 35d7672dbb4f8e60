"""An example of a task, as readers of official files return it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Box = tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels of the image


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
        id: unique in its split.
        text: question, expression, caption or statement.
        images: ids in the task's region shards (NLVR2: left and right).
        target: ground truth, None if it is not public. It depends on the head: {answer: score} for answer heads; None
            for retrieval; the annotated box for regions; the number of the correct candidate for candidates; a label
            for classification.
        candidates, candidate_ids: given boxes to choose from, x1, y1, x2, y2 in pixels, and their ids.
        facts: values of the annotations besides the target: width and height of the image, which targets of regions
            need, and what scores and submissions need.
    """

    id: int | str
    text: str
    images: tuple[str, ...]
    target: Any = None
    candidates: tuple[Box, ...] = ()
    candidate_ids: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def as_box(numbers: Iterable[float]) -> Box:
    """Four numbers, such as a list from JSON or a row of an array, as a box."""
    x1, y1, x2, y2 = numbers
    return x1, y1, x2, y2
