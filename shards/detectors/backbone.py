"""Vision backbones as detector: proposals of the detector pixels or a grid, RoIAlign on the last feature maps.

--detector backbone --weights: vision models of transformers, or state dicts of torchvision or timm
(shards.detection.backbone). The features of several backbones are concatenated.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from shards.common.errors import UserError
from shards.detection import handcrafted
from shards.detection.backbone import grid_boxes, load_backbones, roi_align
from shards.detection.backbone.loading import EXPECTED, Backbone
from shards.detection.base import refuse_flags
from shards.detection.batched import BatchedDetector, NetworkRegions, read_class_names
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
        if self.on_grid and config.max_regions:
            raise UserError(f"--max_regions {config.max_regions}: not supported by --proposals grid; use --grid")
        if config.grid and not self.on_grid:
            raise UserError(f"--grid {config.grid}: only for --proposals grid; remove it or set --proposals grid")
        backbones = load_backbones(config.weights)
        if config.short_side:
            backbones = [_with_short_side(backbone, config.short_side) for backbone in backbones]
        self.fingerprint = _fingerprint(backbones)
        self.backbones = [backbone.to(self.device) for backbone in backbones]
        # The class distribution is that of the first backbone with classes.
        self.classifying = next((number for number, one in enumerate(backbones) if one.classify is not None), None)
        first = backbones[self.classifying or 0]
        self.num_classes, self.class_names = first.classes, first.class_names
        if config.class_names:
            if not self.num_classes:
                raise UserError(f"--class_names {config.class_names}: this backbone has no classes; remove the flag")
            self.class_names = read_class_names(config.class_names, self.num_classes)

    def detect_batch(self, images: list[np.ndarray]) -> list[NetworkRegions]:
        with ThreadPoolExecutor(max(1, self.config.processes)) as pool:  # concurrently with the network
            return self._regions_of_boxes(images, pool.map(self._proposals, images))

    def _proposals(self, image: np.ndarray) -> np.ndarray:
        if self.on_grid:
            return grid_boxes(*image.shape[:2], self.config.grid or GRID)
        return handcrafted.detect(image, self.config.max_regions or REGIONS)[0]

    def describe_batch(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[NetworkRegions]:
        return self._regions_of_boxes(images, boxes)

    def _regions_of_boxes(self, images: list[np.ndarray], boxes: Iterable[np.ndarray]) -> list[NetworkRegions]:
        """The output for images and their boxes. boxes: iterated after the feature maps have been computed."""
        maps = [self._maps(backbone, images) for backbone in self.backbones]
        described = []
        for n, of_image in enumerate(boxes):
            given = torch.from_numpy(of_image).to(self.device)
            features = [self._pool(of_backbone[n].cells, given * of_backbone[n].scale) for of_backbone in maps]
            described.append(NetworkRegions(given, torch.cat(features, 1), self._distribution(features)))
        return described

    def _pool(self, cells: Tensor, boxes: Tensor) -> Tensor:
        """The features of boxes: a feature map (C, h, w), boxes (n, 4) in cells of the map -> (n, D).

        A classifier of the backbone is applied to them, so D = C for a backbone with classes. Changing it changes the
        features: increase the detector's `version`.
        """
        return roi_align(cells, boxes)

    def _maps(self, backbone: Backbone, images: list[np.ndarray]) -> list["_Map"]:
        """The feature maps of images.

        Images of equal size form a batch of the network, without padding, so that features do not depend on the other
        images.
        """
        resized = [backbone.preprocessing.resized(image) for image in images]
        inputs = [backbone.preprocessing.normalised(image, backbone.stride, self.device) for image in resized]
        maps: dict[int, Tensor] = {}
        for size in dict.fromkeys(x.shape for x in inputs):
            numbers = [n for n, x in enumerate(inputs) if x.shape == size]
            batch = torch.stack([inputs[n] for n in numbers])
            found = backbone.network(batch.contiguous(memory_format=torch.channels_last))  # faster, mainly on a CPU
            maps |= dict(zip(numbers, found, strict=True))
        of_images = []
        for number, (new, image) in enumerate(zip(resized, images, strict=True)):
            rows, columns = (of_new / of_image for of_new, of_image in zip(new.shape[:2], image.shape[:2], strict=True))
            scale = torch.tensor([columns, rows] * 2, device=self.device) / backbone.stride
            of_images.append(_Map(maps[number], scale))
        return of_images

    def _distribution(self, features: list[Tensor]) -> Tensor | None:
        """features: of each backbone, (n, D)."""
        if self.classifying is None:
            return None
        return self.backbones[self.classifying].classify(features[self.classifying]).float().softmax(-1)


@dataclasses.dataclass
class _Map:
    """A feature map of an image. cells: (C, h, w); scale: (4,), cells per pixel of the image, for x1 y1 x2 y2."""

    cells: Tensor
    scale: Tensor


def _with_short_side(backbone: Backbone, short_side: int) -> Backbone:
    preprocessing = dataclasses.replace(backbone.preprocessing, short_side=short_side)
    return dataclasses.replace(backbone, preprocessing=preprocessing)


def _fingerprint(backbones: list[Backbone]) -> str:
    """That of the backbone, or the SHA-256 of those of several."""
    each = [backbone.fingerprint() for backbone in backbones]
    return each[0] if len(each) == 1 else hashlib.sha256(" ".join(each).encode()).hexdigest()


DETECTOR = BackboneDetector
