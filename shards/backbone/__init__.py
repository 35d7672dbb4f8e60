"""Vision backbones as region sources: a network's last feature map, pooled over boxes by RoIAlign."""

from shards.backbone.loading import load_backbone
from shards.backbone.pooling import grid_boxes, roi_align
from shards.backbone.preprocessing import Preprocessing

__all__ = ["Preprocessing", "grid_boxes", "load_backbone", "roi_align"]
