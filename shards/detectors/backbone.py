"""A vision backbone as detector: proposals of the detector pixels or a grid, RoIAlign on the last feature map.

--detector backbone --weights: a vision model of transformers, or a state dict of torchvision or timm
(shards.detection.backbone).
"""

import dataclasses
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from shards.common.errors import UserError
from shards.detection import handcrafted
from shards.detection.backbone import grid_boxes, load_backbone, roi_align
from shards.detection.backbone.loading import EXPECTED
from shards.detection.base import refuse_flags
from shards.detection.batched import BatchedDetector, Described, read_class_names
from shards.detectors.pixels import REGIONS

GRID = 6  # default number of rows and columns


class BackboneDetector(BatchedDetector):
    name = "backbone"

    def __init__(self, config):
        super().__init__(config)
        refuse_flags(config, self.name, "detector_config")
        if not config.weights:
            raise UserError(f"--weights is missing: {EXPECTED}")
        self.on_grid = config.proposals == "grid"
        if self.on_grid and config.regions:
            raise UserError(f"--regions {config.regions}: not supported by --proposals grid; use --grid")
        if config.grid and not self.on_grid:
            raise UserError(f"--grid {config.grid}: only for --proposals grid; remove it or set --proposals grid")
        backbone = load_backbone(config.weights)
        if config.short_side:
            preprocessing = dataclasses.replace(backbone.preprocessing, short_side=config.short_side)
            backbone = dataclasses.replace(backbone, preprocessing=preprocessing)
        self.fingerprint = backbone.fingerprint()
        self.backbone = backbone.to(self.device)
        self.num_classes, self.class_names = backbone.classes, backbone.class_names
        if config.class_names:
            if not self.num_classes:
                raise UserError(f"--class_names {config.class_names}: this backbone has no classes; remove the flag")
            self.class_names = read_class_names(config.class_names, self.num_classes)

    def regions(self, images: list[np.ndarray]) -> list[Described]:
        with ThreadPoolExecutor(max(1, self.config.processes)) as pool:  # concurrently with the network
            return self._pooled(images, pool.map(self._proposals, images))

    def _proposals(self, image: np.ndarray) -> np.ndarray:
        if self.on_grid:
            return grid_boxes(*image.shape[:2], self.config.grid or GRID)
        return handcrafted.detect(image, self.config.regions or REGIONS)[0]

    def of_boxes(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[Described]:
        return self._pooled(images, boxes)

    def _pooled(self, images: list[np.ndarray], boxes: Iterable[np.ndarray]) -> list[Described]:
        """The output for images and their boxes.

        Images of equal size form a batch of the network, without padding, so that features do not depend on the other
        images.

        Args:
            boxes: iterated after the feature maps have been computed.
        """
        backbone, maps = self.backbone, {}
        resized = [backbone.preprocessing.resized(image) for image in images]
        inputs = [backbone.preprocessing.normalised(image, backbone.stride, self.device) for image in resized]
        for size in dict.fromkeys(x.shape for x in inputs):
            numbers = [n for n, x in enumerate(inputs) if x.shape == size]
            batch = torch.stack([inputs[n] for n in numbers])
            found = backbone.network(batch.contiguous(memory_format=torch.channels_last))  # faster, mainly on a CPU
            maps |= dict(zip(numbers, found, strict=True))
        described = []
        for n, of_image in enumerate(boxes):
            given = torch.from_numpy(of_image).to(self.device)
            scale = [new / old for new, old in zip(resized[n].shape[:2], images[n].shape[:2], strict=True)]
            features = roi_align(maps[n], given * given.new_tensor(scale[::-1] * 2) / backbone.stride)
            described.append(Described(given, features, self._distribution(features)))
        return described

    def _distribution(self, features: Tensor) -> Tensor | None:
        if self.backbone.classify is None:
            return None
        return self.backbone.classify(features).float().softmax(-1)


DETECTOR = BackboneDetector
