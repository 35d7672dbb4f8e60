"""Inference of the detector: preprocessing, network, and selection of regions."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shards.detection.batched import NetworkRegions
from shards.detection.x152.box_operations import SIZES, STRIDES, anchors, inside, moved, roi_align_fpn, suppress
from shards.detection.x152.network import POOLED, DetectorConfig, Network

MEAN = (102.9801, 115.9465, 122.7717)  # blue, green, red
MULTIPLE = 32  # height and width of a batch are multiples of it
PROPOSAL_OVERLAP, CLASS_OVERLAP = 0.7, 0.5  # IoU thresholds of the suppression


class RegionDetector:
    """The detector on a device. images: uint8 RGB arrays (H, W, 3)."""

    def __init__(self, network: Network, config: DetectorConfig, device="cpu"):
        self.network, self.config, self.device = network.to(device), config, torch.device(device)

    def prepared(self, image: np.ndarray) -> tuple[Tensor, float]:
        """(input of the network, float32 (3, h, w); scale relative to the image)."""
        height, width = image.shape[:2]
        scale = self.config.min_size / min(height, width)
        if round(scale * max(height, width)) > self.config.max_size:
            scale = self.config.max_size / max(height, width)
        x = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).to(self.device).permute(2, 0, 1).float()
        return resized(x - x.new_tensor(MEAN)[:, None, None], scale), scale

    def batch(self, images: list[Tensor]) -> Tensor:
        """Stacks prepared images, zero-padded at the right and bottom."""
        sides = [max(image.shape[side] for image in images) for side in (1, 2)]
        height, width = (-(-side // MULTIPLE) * MULTIPLE for side in sides)
        return torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])

    def maps(self, images: list[np.ndarray]) -> tuple[list[Tensor], list[float], list[Tensor]]:
        """(prepared images, their scales, the five feature maps of the batch)."""
        prepared, scales = zip(*map(self.prepared, images), strict=True)
        return list(prepared), list(scales), self.network.backbone(self.batch(list(prepared)))

    @torch.no_grad()
    def detect_batch(self, images: list[np.ndarray]) -> list[NetworkRegions]:
        """Detects the regions of each image, in order of scores."""
        prepared, scales, maps = self.maps(images)
        proposals = self.proposals(maps, [x.shape[1:] for x in prepared])
        found = []
        for boxes, scale, features, probabilities in zip(
            proposals, scales, *self.run_box_head(maps, proposals), strict=True
        ):
            boxes = boxes / scale
            best, _ = self.selected(boxes, probabilities)
            found.append(NetworkRegions(boxes[best], features[best], probabilities[best]))
        return found

    @torch.no_grad()
    def describe_batch(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[NetworkRegions]:
        """Computes features and probabilities of given boxes (n, 4), in pixels of each image, in their order."""
        _, scales, maps = self.maps(images)
        given = [torch.as_tensor(b, dtype=torch.float32, device=self.device) for b in boxes]
        outputs = self.run_box_head(maps, [b * s for b, s in zip(given, scales, strict=True)])
        return [NetworkRegions(*of_image) for of_image in zip(given, *outputs, strict=True)]

    def proposals(self, maps: list[Tensor], sizes) -> list[Tensor]:
        """(n, 4) per image: proposals of all levels, in pixels of the prepared image, in order of scores."""
        levels = []
        for x, stride, size in zip(maps, STRIDES, SIZES, strict=True):
            objectness, deltas = self.network.proposals(x)
            levels.append((objectness.float(), deltas.float(), anchors(size, stride, *x.shape[-2:], device=x.device)))
        found = []
        for image, (height, width) in enumerate(sizes):
            boxes, scores = [], []
            for objectness, deltas, places in levels:
                best, order = objectness[image].topk(min(self.config.pre_nms_top_n, len(places)))
                on_level = inside(moved(places[order], deltas[image, order]), width, height)
                stays = suppress(on_level, best[None], PROPOSAL_OVERLAP)[0].nonzero()[: self.config.post_nms_top_n, 0]
                boxes.append(on_level[stays])
                scores.append(best[stays].sigmoid())
            scores = torch.cat(scores)
            order = scores.topk(min(self.config.post_nms_top_n, len(scores))).indices
            found.append(torch.cat(boxes)[order])
        return found

    def run_box_head(self, maps: list[Tensor], boxes: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(features, class probabilities) of boxes in pixels of the prepared images, per image."""
        counts = [len(b) for b in boxes]
        images = torch.repeat_interleave(
            torch.arange(len(boxes), device=self.device), torch.tensor(counts, device=self.device)
        )
        features, probabilities = self.network.box(roi_align_fpn(maps[:4], torch.cat(boxes), images, POOLED))
        return features.split(counts), probabilities.split(counts)

    def selected(self, boxes: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Selects the regions of an image with the highest scores, in their order.

        The score of a region is its highest probability over the classes, except the background, in which it is not
        suppressed; 0 if it is suppressed in all.

        Args:
            boxes: (n, 4), in pixels of the image.
            probabilities: (n, classes).

        Returns:
            Their indices, int64 (m,), and their scores (m,), where m is at most `max_regions`.
        """
        scores = probabilities[:, 1:].T
        best = scores.masked_fill(~suppress(boxes, scores, CLASS_OVERLAP), 0).max(0).values
        order = best.argsort(descending=True, stable=True)[: self.config.max_regions]
        return order, best[order]


def resized(image: Tensor, scale: float) -> Tensor:
    """(C, H, W) -> (C, round(H scale), round(W scale)), bilinear, as in OpenCV (half-pixel centres).

    OpenCV uses steps of 1 / scale, whereas torch's interpolation uses the ratio of the two sizes.
    """
    for side in (2, 1):
        length = image.shape[side]
        out = torch.arange(int(np.rint(length * scale)), dtype=torch.float64, device=image.device)
        at = (out + 0.5) / scale - 0.5
        before = at.floor()
        share = torch.where((before < 0) | (before >= length - 1), 0.0, at - before).float()
        before = before.clamp(0, length - 1).long()
        after = (before + 1).clamp(max=length - 1)
        share = share[:, None] if side == 1 else share
        image = image.index_select(side, before) * (1 - share) + image.index_select(side, after) * share
    return image
