"""The region detector of the paper: a Faster R-CNN on ResNeXt-152 with a feature pyramid, in plain torch; the same on
a ResNet or ResNeXt of other sizes."""

from shards.x152.detector import Detections, RegionDetector
from shards.x152.network import DetectorConfig

__all__ = ["Detections", "DetectorConfig", "RegionDetector"]
