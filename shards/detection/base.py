"""The interface of region detectors for shards.extract."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.common.errors import UserError


@dataclass
class DetectedRegions:
    """The regions of an image, in order of scores.

    Attributes:
        boxes: float32 (n, 4), x1 y1 x2 y2 in pixels.
        features: (n, D).
        class_ids, class_probs: (n, k), the k most probable classes per region; None for a detector without classes.
    """

    boxes: np.ndarray
    features: np.ndarray
    class_ids: np.ndarray | None
    class_probs: np.ndarray | None


class Detector(ABC):
    """A region detector.

    Attributes:
        name: name in dataset.json.
        learned: names of the files that `fit` writes.
        version: increased whenever the regions or features of an image change, so that versions are never mixed.
        per_image: whether images are processed singly on the CPU, in several processes; otherwise in batches, in one
            process, on the device.
        sample: number of images for `fit`.
        num_classes: 0 without a class distribution.
        class_names: names of the classes, if known.
        fingerprint: hash of the weights, to reject features of other weights with the same name; None for no check.
    """

    name: str
    learned: tuple[str, ...] = ()
    version: int = 1
    per_image: bool
    sample: int
    num_classes: int
    class_names: list[str] | None = None
    fingerprint: str | None = None

    @abstractmethod
    def fit(self, images: Iterable[np.ndarray], folder: Path) -> None:
        """Fits parameters shared by all shards and writes them to files.

        Args:
            images: some of the images, uint8 RGB (H, W, 3).
            folder: of the shards.
        """

    @abstractmethod
    def load(self, folder: Path) -> bool:
        """Loads the files that `fit` writes; returns False if they do not exist yet."""

    @abstractmethod
    def detect(self, images: list[np.ndarray]) -> list[DetectedRegions]:
        """Detects regions.

        Args:
            images: uint8 RGB (H, W, 3).

        Returns:
            The regions of each image.
        """

    @abstractmethod
    def describe(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[DetectedRegions]:
        """Computes features and classes of given boxes.

        Args:
            images: uint8 RGB (H, W, 3).
            boxes: of each image float32 (n, 4), x1 y1 x2 y2 in pixels.

        Returns:
            The regions of each image, in the order of its boxes.
        """


def refuse_flags(config: Any, detector: str, *names: str) -> None:
    """Raises UserError for flags that this detector does not have."""
    for name in names:
        if getattr(config, name) is not None:
            raise UserError(f"--{name} {getattr(config, name)}: not supported by --detector {detector}; remove it")
