"""Precision and recall of near-duplicate detection, on altered copies of images.

    python benchmarks/looks.py --images data/world/images/coco [--count 300]

Each image is altered in several ways, and every original is compared with every copy. The baselines are the perceptual
hash alone, whose recall the finer comparison should keep while it increases the precision, and, if the package
imagehash is installed, its pHash and dHash within the same number of bits.
"""

import io
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from finetune.decontamination.hash_search import NEAR, ExactSearch
from finetune.decontamination.perceptual_hash import DIFFERENT, difference, image_hashes
from shards.common.cli import REQUIRED, command, flag
from shards.images.image_files import BadImage, decode_image, find_parts, read_records

KINDS = ("resized", "recompressed", "cropped", "grey")  # what the search is made for: sides are cropped by up to 5%
BEYOND = ("cropped 10%", "mirrored", "text", "border", "rotated 3°", "colours")


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
    """A copy of an RGB image, altered in one of the ways of KINDS and BEYOND."""
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
    if kind == "cropped 10%":
        return image.crop((0.1 * width, 0.1 * height, 0.9 * width, 0.9 * height))
    if kind == "mirrored":
        return ImageOps.mirror(image)
    if kind == "text":
        copy = image.copy()
        ImageDraw.Draw(copy).text((0.1 * width, 0.8 * height), "a caption", "white", font_size=max(8, height // 10))
        return copy
    if kind == "border":
        return ImageOps.expand(image, round(0.05 * min(image.size)), "black")
    if kind == "rotated 3°":
        return image.rotate(3, Image.Resampling.BICUBIC)
    if kind == "colours":
        scales = rng.uniform(0.7, 1.3, 3)
        return Image.fromarray(np.clip(np.asarray(image, np.float32) * scales, 0, 255).astype(np.uint8))
    return image.convert("L")


def other_hashes() -> dict:
    """The hash functions of imagehash, by name; empty if it is not installed."""
    try:
        import imagehash
    except ImportError:
        print("imagehash is not installed (pip install ImageHash): its hashes are not compared")
        return {}
    return {"imagehash pHash": imagehash.phash, "imagehash dHash": imagehash.dhash}


def bits_of(function, images: list[Image.Image]) -> np.ndarray:
    """uint64 (images,): the hashes of imagehash."""
    packed = [np.packbits(function(image).hash.ravel()) for image in images]
    return np.array([int.from_bytes(one.tobytes(), "big") for one in packed], np.uint64)


def scores(found: list[tuple[int, int]], count: int) -> tuple[float, float]:
    """(recall, precision) of pairs of an original and a copy."""
    right = sum(a == b for a, b in found)
    return right / count, right / max(len(found), 1)


def run(config: Config) -> None:
    images, rng = some_images(config), np.random.default_rng(config.seed)
    grey = [image.convert("L") for image in images]
    hashes = np.stack([image_hashes(image) for image in grey])
    twins = {frozenset(pair) for pair in ExactSearch(hashes).pairs(hashes).tolist() if pair[0] != pair[1]}
    twins = {pair for pair in twins if difference(*(grey[n] for n in pair)) < DIFFERENT / 5}
    print(f"{len(images)} images; {len(twins)} pairs of them are copies already, which count neither way")
    others = other_hashes()
    methods = ("hash alone", "and comparison", *others)
    print(f"{'recall, precision':<18}" + "".join(f"{name:>18}" for name in methods))
    known = {name: bits_of(function, images) for name, function in others.items()}
    for kind in (*KINDS, *BEYOND):
        made = [altered(image, kind, rng).convert("RGB") for image in images]
        copies = [copy.convert("L") for copy in made]
        near = ExactSearch(np.stack([image_hashes(copy) for copy in copies])).pairs(hashes).tolist()
        near = [(a, b) for a, b in near if frozenset((a, b)) not in twins]
        same = [(a, b) for a, b in near if difference(grey[a], copies[b]) <= DIFFERENT]
        row = [near, same]
        for name, function in others.items():
            close = np.bitwise_count(known[name][:, None] ^ bits_of(function, made)[None]) <= NEAR
            row.append([(a, b) for a, b in np.argwhere(close).tolist() if frozenset((a, b)) not in twins])
        cells = (scores(found, len(images)) for found in row)
        print(f"{kind:<18}" + "".join(f"{recall:>10.1%}{precision:>8.1%}" for recall, precision in cells), flush=True)


if __name__ == "__main__":
    command(Config, run, "benchmarks/looks.py", __doc__.splitlines()[0], sys.argv[1:])
