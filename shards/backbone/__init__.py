"""Vision backbones as detectors: features are pooled from a network's last feature map by RoIAlign."""

from shards.backbone.loading import load_backbone
from shards.backbone.pooling import grid_boxes, roi_align
from shards.backbone.preprocessing import Preprocessing

__all__ = ["Preprocessing", "grid_boxes", "load_backbone", "roi_align"]
