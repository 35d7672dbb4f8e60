"""The detector without weights: proposals from edges and contrast, hand-crafted features
(shards.detection.handcrafted).

Its classes are visual words, fitted to the images or taken from an earlier extraction.
"""

import itertools
from pathlib import Path

import numpy as np

from shards.common.errors import UserError
from shards.detection import handcrafted
from shards.detection.base import DetectedRegions, Detector, refuse_flags
from shards.detection.visual_words import fit_words, load_words

FILE = "visual_words.npz"
REGIONS = 36  # default maximum number of regions per image


class PixelDetector(Detector):
    name = "pixels"
    learned = (FILE,)
    version = 2  # version 1 proposed boxes around connected areas and outlines
    per_image = True
    sample = 400

    def __init__(self, config):
        refuse_flags(config, self.name, "weights", "detector_config", "proposals", "grid", "short_side")
        self.config, self.words, self.max_regions = config, None, config.max_regions or REGIONS

    @property
    def num_classes(self) -> int:
        return len(self.words)

    def fit(self, images, folder: Path) -> None:
        config = self.config
        if config.visual_words_file:
            words = load_words(config.visual_words_file)
        else:
            print(f"fitting visual words on up to {self.sample} images")
            features = [
                handcrafted.crop_features(image, handcrafted.detect(image, self.max_regions)[0])
                for image in itertools.islice(images, self.sample)
            ]
            if not features:
                raise UserError(f"{config.images}: none of {self.sample} sampled images can be decoded")
            words = fit_words(np.concatenate(features), config.visual_words, config.seed)
        words.save(folder / FILE)

    def load(self, folder: Path) -> bool:
        if (folder / FILE).exists():
            self.words = load_words(folder / FILE)
        return self.words is not None

    def detect(self, images: list[np.ndarray]) -> list[DetectedRegions]:
        boxes = [handcrafted.detect(image, self.max_regions)[0] for image in images]
        return self.describe(images, boxes)

    def describe(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[DetectedRegions]:
        features = [handcrafted.crop_features(image, of_image) for image, of_image in zip(images, boxes, strict=True)]
        return [DetectedRegions(b, f, *self.words.classify(f)) for b, f in zip(boxes, features, strict=True)]


DETECTOR = PixelDetector
