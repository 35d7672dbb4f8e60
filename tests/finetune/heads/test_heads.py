"""Heads: decoding of logits, and heads of other packages that were written for an earlier version."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from finetune.annotations.example import Example
from finetune.heads.answer_head import AnswerHead
from finetune.heads.grounding_head import GroundingHead
from shards.storage.sample import Sample

BOXES = np.float32([[[0, 0, 0.5, 0.5], [0.5, 0, 1, 1]], [[0.25, 0.25, 0.5, 0.75], [0, 0, 0, 0]]])  # with padding
LOGITS = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, -10000.0]])


def two_images() -> tuple[list[Example], dict[str, Sample]]:
    """Two expressions about images of which only one has its size in the annotations, and their regions."""
    examples = [Example(1, "left", ("a",), facts={"width": 200, "height": 100}), Example(2, "right", ("b",))]
    sizes = {"a": (100, 50), "b": (40, 80)}
    infos = {image: {"width": width, "height": height} for image, (width, height) in sizes.items()}
    return examples, {image: Sample(image, np.empty((0, 1)), np.empty((0, 4)), info=infos[image]) for image in infos}


def test_boxes_are_decoded_to_pixels_of_the_annotations():
    found = GroundingHead().decode(LOGITS, BOXES, *two_images())
    assert found.dtype == np.float64 and found.tolist() == [[100, 0, 200, 100], [10, 20, 20, 60]]


def test_a_ranked_head_decodes_all_boxes_of_an_image():
    found = GroundingHead(ranked=True).decode(LOGITS, BOXES, *two_images())
    assert found[0].tolist() == [[100, 0, 200, 100], [0, 0, 100, 50], [0, 0, 200, 100]]
    assert found[1].tolist() == [[10, 20, 20, 60], [0, 0, 40, 80], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("former", "name"), [("best", "decode"), ("official", "to_predictions"), ("images", "images_per_example")]
)
def test_a_head_of_another_package_with_a_former_method_is_refused(former, name):
    """Nothing calls the method any more, and the default would silently give other predictions."""
    methods = {former: lambda self, *arguments: None}
    with pytest.raises(TypeError, match=rf"Own\.{former}: is now {name}"):
        dataclass(frozen=True)(type("Own", (AnswerHead,), methods))
