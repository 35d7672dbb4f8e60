"""The detector of the paper in plain torch: a Faster R-CNN with a ResNeXt-152 FPN backbone, or a ResNet or ResNeXt of
other sizes."""

from shards.detection.x152.detector import RegionDetector
from shards.detection.x152.network import DetectorConfig

__all__ = ["DetectorConfig", "RegionDetector"]
