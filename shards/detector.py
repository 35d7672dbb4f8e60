"""A region detector: what shards.extract needs of one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import UserError


@dataclass
class Found:
    """An image's regions, best first: boxes float32 (n, 4) in pixels, features (n, D), and of each region's classes the
    likeliest, class_ids and class_probs (n, k), both None of a detector without classes."""

    boxes: np.ndarray
    features: np.ndarray
    class_ids: np.ndarray | None
    class_probs: np.ndarray | None


class Detector(ABC):
    """name: as dataset.json has it; learned: the names of the files that `fit` writes; version: raised whenever the
    same image gets other regions or features, so that those of two versions are never mixed; num_classes: 0 where
    regions have no class distribution; class_names: of classes that have some; fingerprint: of the weights, where
    regions of other weights under the same name are refused.

    per_image: whether it works image by image on a processor, so that several processes with one each are fastest;
    else it takes batches, in one process, on its device. sample: how many images it wants to be fitted on.
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
        """Learns from some of the images what all shards are to have in common, and writes it into their folder."""

    @abstractmethod
    def load(self, folder: Path) -> bool:
        """Takes what `fit` wrote; false where it has not yet."""

    @abstractmethod
    def detect(self, images: list[np.ndarray]) -> list[Found]:
        """The regions of images, uint8 RGB (H, W, 3)."""

    @abstractmethod
    def describe(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[Found]:
        """The same of given boxes (n, 4) in pixels, in their order."""


def refuse_flags(config, detector: str, *names: str) -> None:
    """Refuses flags of other detectors that were given to this one."""
    for name in names:
        if getattr(config, name) is not None:
            raise UserError(f"--{name} {getattr(config, name)}: --detector {detector} has none")
