"""Base class of neural detectors, which process batches on a device and keep the most probable classes."""

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.common.device import choose_device
from shards.common.dist_info import launched
from shards.common.errors import UserError
from shards.common.files import read_json, write_json
from shards.common.untrusted_input import refuse_special_file
from shards.detection.base import DetectedRegions, Detector
from shards.storage.class_distribution import kept_classes, likeliest

FILE = "detector.json"
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMER_NAMES = {"regions": "detect_batch", "of_boxes": "describe_batch"}  # methods of detectors of other packages


@dataclass
class NetworkRegions:
    """Output of a network for one image.

    Attributes:
        boxes: (n, 4), in pixels.
        features: (n, D).
        distribution: (n, classes); None for a network without classes.
    """

    boxes: torch.Tensor
    features: torch.Tensor
    distribution: torch.Tensor | None


class BatchedDetector(Detector):
    """A detector that is a neural network.

    kept: number of classes stored per region, such that they have 99% of the probability mass on average; None before
    `fit` or `load`, 0 for a network without classes.
    """

    learned = (FILE,)
    per_image = False
    sample = 16

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        for former, name in FORMER_NAMES.items():
            if name not in own and callable(own.get(former)):
                setattr(cls, name, own[former])

    def __init__(self, config):
        self.config, self.kept = config, None
        self.device = choose_device(config.device, launched())
        self.autocast = PRECISIONS[config.precision]
        if self.autocast is torch.float16 and self.device.type == "cpu":
            raise UserError("--precision fp16: needs a GPU; use bf16 or float32 on a CPU")
        if config.visual_words_file:
            given = f"--visual_words_file {config.visual_words_file}"
            raise UserError(f"{given}: only for --detector pixels; remove one of them")

    def fit(self, images, folder: Path) -> None:
        if not self.num_classes:
            write_json(folder / FILE, {"kept": 0})
            return
        sample = list(itertools.islice(images, self.sample))
        if not sample:
            raise UserError(f"{self.config.images}: none of {self.sample} sampled images can be decoded")
        size = self.config.batch_size
        batches = (sample[begin : begin + size] for begin in range(0, len(sample), size))
        rows = np.concatenate([one.distribution.float().cpu().numpy() for batch in batches for one in self._run(batch)])
        write_json(folder / FILE, {"kept": kept_classes(rows)})

    def load(self, folder: Path) -> bool:
        if (folder / FILE).exists():
            self.kept = read_json(folder / FILE)["kept"]
        return self.kept is not None

    def detect(self, images: list[np.ndarray]) -> list[DetectedRegions]:
        return [self._found(one) for one in self._run(images)]

    def describe(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[DetectedRegions]:
        return [self._found(one) for one in self._run(images, boxes)]

    @torch.no_grad()
    def _run(self, images: list[np.ndarray], boxes: list[np.ndarray] | None = None) -> list[NetworkRegions]:
        try:
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                return self.detect_batch(images) if boxes is None else self.describe_batch(images, boxes)
        except torch.OutOfMemoryError:
            raise UserError(
                f"--batch_size {self.config.batch_size}: CUDA out of memory; use a smaller one (finished shards are "
                "kept)"
            ) from None

    def _found(self, one: NetworkRegions) -> DetectedRegions:
        boxes, features = (x.float().cpu().numpy() for x in (one.boxes, one.features))
        if one.distribution is None:
            return DetectedRegions(boxes, features, None, None)
        return DetectedRegions(boxes, features, *likeliest(one.distribution.float().cpu().numpy(), self.kept))

    @abstractmethod
    def detect_batch(self, images: list[np.ndarray]) -> list[NetworkRegions]:
        """Detects regions in images, uint8 RGB (H, W, 3): at most config.max_regions per image, in order of scores."""

    @abstractmethod
    def describe_batch(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[NetworkRegions]:
        """Computes the same output for given boxes, (n, 4) in pixels."""


def read_class_names(path: str | None, classes: int) -> list[str] | None:
    """Reads class names from a file with one name per line; the first class, the background, may be omitted."""
    if path is None:
        return None
    refuse_special_file(path, "--class_names ")
    try:
        names = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names {path}: cannot be read ({error})") from None
    names = [name.strip() for name in names if name.strip()]
    if len(names) not in (classes, classes - 1):
        raise UserError(f"--class_names {path}: has {len(names)} names, but the detector has {classes} classes")
    return ["background", *names][-classes:]
