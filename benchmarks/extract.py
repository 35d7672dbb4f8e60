"""Post-processing of the region detector: 1,600 suppressions, one per class, compared with one for all classes.

    python benchmarks/extract.py [--proposals 1000] [--classes 1601] [--repeats 3]

The published way calls a compiled suppression once a class; one of this kind is compiled here. With --network true,
the whole detector of the published sizes on random weights: images a second. With --backbone WEIGHTS, the detector
backbone with these weights, on noise of --side x --side pixels, with the proposals of the detector pixels.
"""

import ctypes
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import print_table, time_in_turn
from shards.common.cli import command, flag
from shards.config import ExtractConfig
from shards.detection import handcrafted
from shards.detection.x152 import DetectorConfig, RegionDetector
from shards.detection.x152.box_operations import overlapping_pairs, suppress
from shards.detection.x152.detector import CLASS_OVERLAP
from shards.detection.x152.network import Network
from shards.detectors import make_detector


@dataclass
class Config:
    """Flags of this benchmark."""

    proposals: int = flag(1000, "boxes of an image", low=1)
    classes: int = flag(1601, "of the detector, with the background", low=2)
    repeats: int = flag(3, "timed calls of each", low=1)
    network: bool = flag(False, "time the whole network of the published sizes too")
    device: str = flag("cpu", "of the suppression and the network", choices=("cpu", "cuda"))
    batch: int = flag(1, "images at a time of the network", low=1)
    backbone: str | None = flag(None, "weights of the detector backbone, to time it too")
    side: int = flag(224, "pixels of the images of the detector backbone", low=32)


def proposals(count: int) -> Tensor:
    """Boxes with the statistics after suppression at 0.7 on each of five levels: around 60 objects, large and small."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(60, 2, generator=generator) * torch.tensor([1333.0, 800.0])
    sizes = torch.exp(torch.randn(60, 2, generator=generator) * 0.7 + 4.5)
    levels = []
    for _ in range(5):
        boxes = torch.empty(0, 4)
        while len(boxes) < -(-count // 5):
            chosen = torch.randint(60, (count,), generator=generator)
            centre = centres[chosen] + 0.25 * sizes[chosen] * torch.randn(count, 2, generator=generator)
            half = sizes[chosen] * torch.exp(0.3 * torch.randn(count, 2, generator=generator)) / 2
            boxes = torch.cat([boxes, torch.cat([centre - half, centre + half], 1).clamp(min=0)])
            boxes = boxes[suppress(boxes, torch.zeros(1, len(boxes)), 0.7)[0]]
        levels.append(boxes[: -(-count // 5)])
    return torch.cat(levels)[:count]


def one_by_one(boxes: Tensor, scores: Tensor, nms) -> Tensor:
    """The highest probability of each box over the classes in which it is kept, as in the published script."""
    best = torch.zeros(len(boxes), device=boxes.device)
    for of_class in scores:
        stays = nms(boxes, of_class, CLASS_OVERLAP)
        best[stays] = torch.where(of_class[stays] > best[stays], of_class[stays], best[stays])
    return best


def at_once(boxes: Tensor, scores: Tensor) -> Tensor:
    return scores.masked_fill(~suppress(boxes, scores, CLASS_OVERLAP), 0).max(0).values


COMPILED = """
#include <algorithm>
#include <numeric>
#include <vector>
// Suppression of one class as compiled detectors have it: sorted by score, each survivor strikes out the rest.
extern "C" int nms(const float* boxes, const float* scores, int n, float threshold, long* stays) {
  std::vector<int> order(n); std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  std::vector<char> struck(n, 0); std::vector<float> area(n);
  for (int i = 0; i < n; ++i)
    area[i] = (boxes[4*i+2] - boxes[4*i] + 1) * (boxes[4*i+3] - boxes[4*i+1] + 1);
  int count = 0;
  for (int a = 0; a < n; ++a) {
    int i = order[a];
    if (struck[i]) continue;
    stays[count++] = i;
    for (int b = a + 1; b < n; ++b) {
      int j = order[b];
      if (struck[j]) continue;
      float w = std::min(boxes[4*i+2], boxes[4*j+2]) - std::max(boxes[4*i], boxes[4*j]) + 1;
      float h = std::min(boxes[4*i+3], boxes[4*j+3]) - std::max(boxes[4*i+1], boxes[4*j+1]) + 1;
      if (w <= 0 || h <= 0) continue;
      float shared = w * h;
      if (shared / (area[i] + area[j] - shared) > threshold) struck[j] = 1;
    }
  }
  return count;
}
"""


def compiled_nms(folder: str):
    """The suppression of one class in C++, as in the published detector."""
    source, library = Path(folder) / "nms.cpp", Path(folder) / "nms.so"
    source.write_text(COMPILED)
    subprocess.run(["c++", "-O3", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).nms

    def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
        boxes, scores, stays = boxes.cpu(), scores.cpu(), torch.empty(len(boxes), dtype=torch.int64)
        pointers = (ctypes.c_void_p(x.data_ptr()) for x in (boxes, scores))
        count = function(*pointers, len(boxes), ctypes.c_float(threshold), ctypes.c_void_p(stays.data_ptr()))
        return stays[:count]

    return nms


def run(config: Config) -> None:
    boxes = proposals(config.proposals).to(config.device)
    logits = 3 * torch.randn(config.proposals, config.classes, generator=torch.Generator().manual_seed(1))
    scores = logits.softmax(1)[:, 1:].T.contiguous().to(config.device)
    name, pairs = f"{config.classes - 1} suppressions, compiled", len(overlapping_pairs(boxes, CLASS_OVERLAP)[0])
    print(f"{config.proposals} boxes, {pairs} overlaps, {config.classes} classes, {config.device}")
    with tempfile.TemporaryDirectory() as folder:
        nms = compiled_nms(folder)
        assert torch.equal(one_by_one(boxes, scores, nms), at_once(boxes, scores))
        variants = {name: lambda: one_by_one(boxes, scores, nms), "all classes at once": lambda: at_once(boxes, scores)}
        print_table(time_in_turn(variants, config.repeats), name)
    if config.network:
        time_network(config)
    if config.backbone:
        time_backbone(config)


def time_backbone(config: Config) -> None:
    flags = ExtractConfig(images="", out="", detector="backbone", weights=config.backbone, device=config.device)
    detector = make_detector(flags)
    images = [
        np.random.default_rng(n).integers(0, 255, (config.side, config.side, 3), dtype=np.uint8)
        for n in range(config.batch)
    ]
    boxes = [handcrafted.detect(image)[0] for image in images]
    variants = {
        "proposals": lambda: [handcrafted.detect(image) for image in images],
        "given boxes": lambda: detector.describe_batch(images, boxes),
        "proposals and features": lambda: detector.detect_batch(images),
    }
    with torch.no_grad():
        seconds = time_in_turn(variants, config.repeats)
    print(f"backbone, {config.side} x {config.side}, batches of {config.batch}, {torch.get_num_threads()} threads")
    for name, each in seconds.items():
        print(f"{name}: {config.batch / each:.3g} images/s")


def time_network(config: Config) -> None:
    sizes = DetectorConfig()
    torch.manual_seed(0)
    network = Network(sizes).eval().requires_grad_(False)
    detector = RegionDetector(network, sizes, config.device)
    images = [np.random.default_rng(n).integers(0, 255, (800, 1333, 3), dtype=np.uint8) for n in range(config.batch)]
    seconds = time_in_turn({"detect": lambda: detector.detect_batch(images)}, config.repeats)["detect"]
    print(f"the whole detector, 800 x 1333, batches of {config.batch}: {config.batch / seconds:.3g} images/s")


if __name__ == "__main__":
    command(Config, run, "benchmarks/extract.py", __doc__.splitlines()[0], sys.argv[1:])
