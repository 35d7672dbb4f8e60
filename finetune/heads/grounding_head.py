"""The head of tasks that find the region of an image which a text describes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.boxes import grounding_target, image_size
from finetune.annotations.example import Box, Example
from finetune.heads.base import ImageSamples, Scene
from finetune.heads.pointing_head import PointingHead, PointingLayer
from shards.storage.sample import Sample

RARE_ODDS = 1 / 36  # initial odds of a region in small models; most detectors find 36 regions or more
WHOLE_IMAGE = np.array([[0.0, 0.0, 1.0, 1.0]])  # box of the image token (row 0): the whole image


@dataclass(frozen=True)
class GroundingHead(PointingHead):
    """One of the regions of the image, or the whole image (RefCOCO, RefCOCO+, RefCOCOg).

    Predictions are boxes in pixels, float (n, 4).

    ranked: predictions are all boxes of an image, best first, padded with boxes of zeros, float (n, rows, 4), for
    metrics such as R@k.
    """

    name: str = "regions"
    ranked: bool = False

    finds_regions = True
    input_label, input_example = "Expression", "the red star on the left"

    def make_choices_rare(self, layer: nn.Module) -> None:
        assert isinstance(layer, PointingLayer)
        nn.init.constant_(layer.bias, math.log(RARE_ODDS))

    def targets(
        self, examples: Sequence[Example], samples: Sequence[Sample], rows: int, vocabulary: AnswerVocabulary | None
    ) -> Tensor:
        """float32 (B, rows), see PointingHead."""
        targets = [region_target(e, s, rows) for e, s in zip(examples, samples, strict=True)]
        return torch.from_numpy(np.array(targets, np.float32).reshape(-1, rows))

    def prediction_shape(self, regions: int) -> tuple[int, ...]:
        return (regions + 1, 4) if self.ranked else (4,)

    def decode(
        self, logits: Tensor, boxes: np.ndarray, examples: Sequence[Example], regions: ImageSamples
    ) -> np.ndarray:
        """float64 (n, 4), or (n, rows, 4) if ranked: boxes in pixels of the annotations."""
        rows = logits.argsort(dim=1, descending=True, stable=True) if self.ranked else logits.argmax(1)
        sizes = np.array([image_size(example, regions[example.images[0]]) * 2 for example in examples])
        pixels: np.ndarray = boxes_of_rows(boxes, rows) * (sizes[:, None] if self.ranked else sizes)
        return pixels

    def to_predictions(self, numbers: np.ndarray, vocabulary: AnswerVocabulary | None) -> np.ndarray:
        return numbers

    def choices(self, scene: Scene, vocabulary: AnswerVocabulary | None) -> tuple[list[str], Sequence[Box]]:
        places = (np.concatenate([WHOLE_IMAGE, scene.regions]) * np.array(scene.size * 2)).tolist()
        return ["the whole image", *(f"region {number}" for number in range(len(scene.regions)))], places

    def expected(self, example: Example) -> tuple[str, Box]:
        return "", tuple(example.target)


def boxes_of_rows(boxes: np.ndarray, rows: Tensor) -> np.ndarray:
    """(n, 4) or (n, k, 4): the boxes of rows (n,) or (n, k) of the image stream, as fractions of the image's sides.

    Row 0, the image token, has the box of the whole image. boxes: (n, R, 4), of the regions.
    """
    of_rows = np.concatenate([np.broadcast_to(WHOLE_IMAGE, (len(boxes), 1, 4)), boxes], 1)
    images = np.arange(len(boxes))
    chosen: np.ndarray = of_rows[images if rows.ndim == 1 else images[:, None], rows.numpy()]
    return chosen


def region_target(example: Example, sample: Sample, width: int) -> np.ndarray:
    """float32 (width,): the target of the image token (row 0) and of each region, padded with zeros."""
    scale = np.array(image_size(example, sample) * 2)
    boxes = np.concatenate([WHOLE_IMAGE, sample.boxes[: width - 1]]) * scale
    target = np.zeros(width, np.float32)
    target[: len(boxes)] = grounding_target(boxes, example.target)
    return target
