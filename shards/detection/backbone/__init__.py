"""Vision backbones as detectors: features are pooled from a network's last feature map by RoIAlign."""

from shards.detection.backbone.loading import load_backbones
from shards.detection.backbone.pooling import grid_boxes, roi_align
from shards.detection.backbone.preprocessing import Preprocessing

__all__ = ["Preprocessing", "grid_boxes", "load_backbones", "roi_align"]
