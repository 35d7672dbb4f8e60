"""What the detectors with weights share."""

import os

import numpy as np
import pytest
import torch

from shards.common.errors import UserError
from shards.config import ExtractConfig
from shards.detection.batched import BatchedDetector, NetworkRegions, read_class_names

IMAGE, BOXES = np.zeros((4, 8, 3), np.uint8), np.float32([[1, 2, 3, 4]])


class Whole(BatchedDetector):
    """The whole image as a region; its feature is the length of the diagonal."""

    name, num_classes = "whole", 0

    def detect_batch(self, images):
        return self.describe_batch(images, [np.float32([[0, 0, *image.shape[1::-1]]]) for image in images])

    def describe_batch(self, images, boxes):
        given = [torch.from_numpy(of_image) for of_image in boxes]
        return [NetworkRegions(of, (of[:, 2:] - of[:, :2]).norm(dim=1, keepdim=True), None) for of in given]


class Former(BatchedDetector):
    """The same with the method names of version 0.1, of a detector of another package."""

    name, num_classes = "former", 0
    regions, of_boxes = Whole.detect_batch, Whole.describe_batch


class FormerWithFeatures(Whole):
    """A detector that is derived from another one, and overrides one method under its former name."""

    def of_boxes(self, images, boxes):
        return [NetworkRegions(one.boxes, 2 * one.features, None) for one in super().describe_batch(images, boxes)]


@pytest.mark.parametrize(("kind", "factor"), [(Whole, 1), (Former, 1), (FormerWithFeatures, 2)])
def test_methods_and_their_former_names(kind, factor):
    detector = kind(ExtractConfig(images="", out="", device="cpu"))
    (found,), (given,) = detector.detect([IMAGE]), detector.describe([IMAGE], [BOXES])
    assert found.boxes.tolist() == [[0, 0, 8, 4]] and found.features == pytest.approx(factor * 80**0.5)
    assert given.boxes.tolist() == BOXES.tolist() and given.features == pytest.approx(factor * 8**0.5)
    assert found.class_ids is None


def test_a_detector_without_its_methods_cannot_be_made():
    class Empty(BatchedDetector):
        name, num_classes = "empty", 0

    with pytest.raises(TypeError, match="detect_batch"):
        Empty(ExtractConfig(images="", out="", device="cpu"))


def test_names_with_and_without_the_background(tmp_path):
    (tmp_path / "names").write_text("cat\n\n dog \n")
    assert read_class_names(str(tmp_path / "names"), 3) == ["background", "cat", "dog"]
    assert read_class_names(str(tmp_path / "names"), 2) == ["cat", "dog"]
    with pytest.raises(UserError, match="has 2 names, but the detector has 5 classes"):
        read_class_names(str(tmp_path / "names"), 5)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"--class_names .*pipe: is a named pipe; give a file"):
        read_class_names(str(tmp_path / "pipe"), 3)
