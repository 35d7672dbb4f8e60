"""Images and features on disk, and code shared by all commands: flags, user errors, progress.

`__all__` is the public interface; its names are loaded on first use, because most commands need only some of them.
"""

from pathlib import Path
from runpy import run_path
from typing import TYPE_CHECKING

run_path(str(Path(__file__).parents[1] / "ops" / "own_packages.py"))["check_packages"]()

from shards.common.lazy_names import lazy_names

if TYPE_CHECKING:
    from shards.common.errors import UserError
    from shards.detection.base import DetectedRegions, Detector
    from shards.detectors import detector_of
    from shards.storage.dataset import Dataset, Shard, open_dataset, read_captions
    from shards.storage.reader import RegionReader
    from shards.storage.sample import Sample

__all__ = [
    "Dataset",
    "DetectedRegions",
    "Detector",
    "RegionReader",
    "Sample",
    "Shard",
    "UserError",
    "detector_of",
    "open_dataset",
    "read_captions",
]

_DEFINED_IN = {
    "UserError": "shards.common.errors",
    **dict.fromkeys(("DetectedRegions", "Detector"), "shards.detection.base"),
    "detector_of": "shards.detectors",
    **dict.fromkeys(("Dataset", "Shard", "open_dataset", "read_captions"), "shards.storage.dataset"),
    "RegionReader": "shards.storage.reader",
    "Sample": "shards.storage.sample",
}

__getattr__ = lazy_names("shards", _DEFINED_IN)
