"""Flickr30k Entities: phrase grounding, the localization of phrases of captions.

The rules are those of the authors' evaluation (github.com/BryanPlummer/pl-clc, flickrPhraseLocalizationEval.m): phrases
without a box are skipped, several boxes are replaced by their enclosing box, and a region is correct if its IoU with
that box is at least 0.5.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.annotations.boxes import IOU_CORRECT, iou_with_box
from finetune.annotations.example import Box, Example
from finetune.annotations.official_files import find_file, read_text, read_xml
from finetune.heads.grounding_head import GroundingHead
from finetune.task_types.base import AnnotatedImage, GivenBoxes, Task, scores_by
from shards.common.errors import UserError
from shards.common.files import is_stray
from shards.common.untrusted_input import LARGEST_SIDE, shown, whole_number

ANNOTATIONS, SENTENCES = "Annotations", "Sentences"
PLACES = (1, 5, 10)
CORNERS = ("xmin", "ymin", "xmax", "ymax")
_BEGIN = "[/EN#"
_PHRASE = re.compile(r"\[/EN#(\d+)/([a-z/]+) ([^\[\]]+)\]")  # an entity's id, the types of the phrase, its words


@dataclass(frozen=True)
class Phrase:
    """A phrase of a caption.

    sentence, number: number of the caption, and of the phrase in it; entity: id of the entity that it mentions, 0 for
    a phrase that is not visual; types: official types, such as people.
    """

    sentence: int
    number: int
    text: str
    entity: str
    types: tuple[str, ...]


@dataclass(frozen=True)
class Objects:
    """The annotations of an image: its size in pixels, and entity -> boxes, for entities with boxes."""

    width: int
    height: int
    boxes: dict[str, list[Box]]


@dataclass(frozen=True)
class Flickr30kEntities(GivenBoxes, Task):
    """The text is the phrase without its caption. Predictions: all boxes of an image in pixels, best first.

    The loss is a softmax cross entropy over the regions, as in published models of this data set. With the binary cross
    entropy of the paper's referring expressions, a small model of photographs learns far more slowly.
    """

    def given_boxes(self, folder: Path) -> dict[str, AnnotatedImage]:
        """Image -> the enclosing box of every entity, for every annotated image."""
        paths = sorted(path for path in find_file(folder, ANNOTATIONS).glob("*.xml") if not is_stray(path.name))
        found = {}
        for path in paths:
            objects = read_objects(path)
            boxes = {entity: around(of) for entity, of in objects.boxes.items()}
            found[path.stem] = AnnotatedImage(boxes, (objects.width, objects.height))
        return found

    def examples(self, folder: Path, split: str) -> list[Example]:
        annotations, sentences = find_file(folder, ANNOTATIONS), find_file(folder, SENTENCES)
        examples, seen = [], set()
        for where, image in read_text(find_file(folder, f"{split}.txt")):
            if image in seen:
                raise UserError(f"{where}: duplicate image {image}")
            seen.add(image)
            objects = read_objects(annotations / f"{image}.xml")
            for phrase in read_phrases(sentences / f"{image}.txt"):
                if boxes := objects.boxes.get(phrase.entity):
                    facts = {"width": objects.width, "height": objects.height}
                    facts |= {"types": phrase.types, "boxes": len(boxes)}
                    name = f"{image}#{phrase.sentence}/{phrase.number}"
                    examples.append(Example(name, phrase.text, (image,), around(boxes), facts=facts))
        return examples

    def kind(self, example: Example) -> str | None:
        return example.facts["types"][0]

    def scores(self, examples: Sequence[Example], predictions: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Accuracy of the best box (equal to R@1); R@k: whether one of the k best boxes is correct; upper bound:
        whether any box, including the whole image, is correct."""
        pairs = zip(examples, predictions, strict=True)
        right = [iou_with_box(boxes, example.target) >= IOU_CORRECT for example, boxes in pairs]
        recall = {f"R@{k}": np.array([float(found[:k].any()) for found in right]) for k in PLACES}
        upper_bound = np.array([float(found.any()) for found in right])
        return {"accuracy": recall["R@1"]} | recall | {"upper bound": upper_bound}

    def breakdown(self, examples: Sequence[Example], values: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """By the official types; a phrase of two types counts for both."""
        types = [example.facts["types"] for example in examples]
        rows = np.repeat(np.arange(len(types)), [len(of) for of in types])
        return {"phrase type": scores_by(values[rows], [name for of in types for name in of])}

    def submission(self, examples: Sequence[Example], predictions: Sequence[np.ndarray]) -> str:
        """A JSON list of the best boxes, x1 y1 x2 y2 in pixels; there is no official server."""
        best = [np.reshape(boxes, (-1, 4))[0].tolist() for boxes in predictions]
        return json.dumps([{"id": e.id, "box": box} for e, box in zip(examples, best, strict=True)])


def around(boxes: Sequence[Box]) -> Box:
    """The enclosing box of some boxes."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def read_objects(path: Path) -> Objects:
    """Reads the official annotations of an image.

    Their pixels are numbered from 1 and the last one belongs to the box. In continuous coordinates from 0 the first
    corner is one less; IoUs then equal those of the official evaluation, which adds 1 to each side.
    """
    root = read_xml(path)
    width, height = (_whole(root, f"size/{side}", str(path)) for side in ("width", "height"))
    boxes: dict[str, list[Box]] = {}
    for number, thing in enumerate(root.iter("object")):
        where = f"{path}, object {number}"
        for box in thing.iter("bndbox"):
            x1, y1, x2, y2 = (_whole(box, corner, where) for corner in CORNERS)
            if x2 < x1 or y2 < y1:
                raise UserError(f"{where}: box {x1} {y1} {x2} {y2} ends before it begins; should be {CORNERS}")
            for name in thing.iter("name"):
                boxes.setdefault(name.text, []).append((x1 - 1.0, y1 - 1.0, float(x2), float(y2)))
    return Objects(width, height, boxes)


def _whole(element: ET.Element, name: str, where: str) -> int:
    text = element.findtext(name)
    try:
        return whole_number(text, 0, LARGEST_SIDE)
    except ValueError:
        raise UserError(f"{where}: {name} is {shown(text)}; should be a number of pixels") from None


def read_phrases(path: Path) -> Iterator[Phrase]:
    """The phrases of an image's captions, marked in the file as [/EN#ENTITY/TYPE/TYPE... WORDS]."""
    for sentence, (where, line) in enumerate(read_text(path)):
        found = _PHRASE.findall(line)
        if len(found) != line.count(_BEGIN):
            raise UserError(f"{where}: a phrase is not of the form [/EN#ENTITY/TYPE WORDS]; download the file again")
        for number, (entity, types, text) in enumerate(found):
            yield Phrase(sentence, number, text, entity, tuple(types.split("/")))


TASKS = (
    Flickr30kEntities(
        name="flickr30k_entities",
        title="Flickr30k Entities",
        group="extra",
        token=14,
        head=GroundingHead(ranked=True, softmax=True),
        max_tokens=20,
        batch_size=256,
        lr=2e-5,
        images="flickr",
        splits=("train", "val", "test"),
        tests=("test",),
        files=("train.txt", "val.txt", "test.txt", ANNOTATIONS, SENTENCES),
    ),
)
