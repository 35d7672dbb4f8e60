"""The detector of the paper's features: --detector x152 --weights detectron_model.pth."""

import dataclasses
from pathlib import Path

import numpy as np

from shards.common.errors import UserError
from shards.common.files import read_json
from shards.detection.base import refuse_flags
from shards.detection.batched import BatchedDetector, NetworkRegions, read_class_names
from shards.detection.x152 import DetectorConfig, RegionDetector
from shards.detection.x152.network import build
from shards.parsing.tensor_files import read_state_dict


class X152(BatchedDetector):
    name = "x152"

    def __init__(self, config):
        super().__init__(config)
        refuse_flags(config, self.name, "proposals", "grid", "short_side")
        if not config.weights:
            raise UserError("--weights is missing: the published weights of the detector, detectron_model.pth")
        sizes = DetectorConfig()
        if config.detector_config:
            sizes = DetectorConfig.of(read_json(config.detector_config), config.detector_config)
        sizes = dataclasses.replace(sizes, max_regions=config.max_regions or sizes.max_regions)
        network = build(read_state_dict(Path(config.weights)), sizes, config.weights)
        self.num_classes = sizes.classes
        self.class_names = read_class_names(config.class_names, sizes.classes)
        self.detector = RegionDetector(network, sizes, self.device)

    def detect_batch(self, images: list[np.ndarray]) -> list[NetworkRegions]:
        return self.detector.detect_batch(images)

    def describe_batch(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[NetworkRegions]:
        return self.detector.describe_batch(images, boxes)


DETECTOR = X152
