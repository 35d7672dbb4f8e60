"""Precision and recall of near-duplicate detection, on altered copies of images.

    python benchmarks/looks.py --images data/world/images/coco [--count 300]

Each image is resized, recompressed, cropped by up to 5% of each side and converted to grey; every original is compared
with every copy. The baseline is the perceptual hash alone; the finer comparison should keep its recall and increase the
precision.
"""

import io
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
from PIL import Image

from finetune.decontamination.hash_search import ExactSearch
from finetune.decontamination.perceptual_hash import DIFFERENT, difference, image_hashes
from shards.common.cli import REQUIRED, command, flag
from shards.images.image_files import BadImage, decode_image, find_parts, read_records

KINDS = ("resized", "recompressed", "cropped", "grey")


@dataclass
class Config:
    """Flags of this benchmark."""

    images: str = flag(REQUIRED, "folder of images, or tars in the layout of img2dataset")
    count: int = flag(300, "number of images, spread over all", low=2)
    seed: int = flag(0, "random seed of the alterations")


def some_images(config: Config) -> list[Image.Image]:
    """Decoded images, without exact duplicates."""
    records = {record.data: record for part in find_parts(config.images, 1000) for record in read_records(part)}
    chosen = list(records)[:: max(1, len(records) // config.count)][: config.count]
    images = []
    for data in chosen:
        try:
            images.append(Image.fromarray(decode_image(data)))
        except BadImage as error:
            print(f"skipped: {error}")
    return images


def altered(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    if kind == "resized":
        factor = rng.uniform(0.4, 1.6)
        return image.resize((max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.LANCZOS)
    if kind == "recompressed":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(20, 60)))
        return Image.open(file)
    if kind == "cropped":
        left, top, right, bottom = rng.uniform(0, 0.05, 4)
        return image.crop((left * width, top * height, (1 - right) * width, (1 - bottom) * height))
    return image.convert("L")


def run(config: Config) -> None:
    images, rng = some_images(config), np.random.default_rng(config.seed)
    grey = [image.convert("L") for image in images]
    hashes = np.stack([image_hashes(image) for image in grey])
    twins = {frozenset(pair) for pair in ExactSearch(hashes).pairs(hashes).tolist() if pair[0] != pair[1]}
    twins = {pair for pair in twins if difference(*(grey[n] for n in pair)) < DIFFERENT / 5}
    print(f"{len(images)} images; {len(twins)} pairs of them are copies already, which count neither way")
    print(f"{'':<14} {'hash alone':>24}   {'and the finer comparison':>26}")
    print(f"{'':<14} {'recall':>10} {'precision':>13}   {'recall':>10} {'precision':>15}")
    for kind in KINDS:
        copies = [altered(image, kind, rng).convert("L") for image in images]
        near = ExactSearch(np.stack([image_hashes(copy) for copy in copies])).pairs(hashes).tolist()
        near = [(a, b) for a, b in near if frozenset((a, b)) not in twins]
        same = [(a, b) for a, b in near if difference(grey[a], copies[b]) <= DIFFERENT]
        row = []
        for found in (near, same):
            right = sum(a == b for a, b in found)
            row += [right / len(images), right / max(len(found), 1)]
        print(f"{kind:<14} {row[0]:>10.1%} {row[1]:>13.1%}   {row[2]:>10.1%} {row[3]:>15.1%}", flush=True)


if __name__ == "__main__":
    command(Config, run, "benchmarks/looks.py", __doc__.splitlines()[0], sys.argv[1:])
