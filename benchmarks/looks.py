"""Precision and recall of near-duplicate detection, on altered copies of images.

    python benchmarks/looks.py --images data/world/images/coco [--count 300] [--mirrored true] [--weights FILE]

Each image is altered in several ways, and every original is compared with every copy. The baselines are the perceptual
hash alone, whose recall the finer comparison should keep while it increases the precision; if the package imagehash is
installed, its pHash and dHash within the same number of bits; and with --weights, the embeddings of a vision backbone.
"""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from finetune.decontamination.hash_search import NEAR, ExactSearch
from finetune.decontamination.perceptual_hash import DIFFERENT, compared_forms, difference, image_hashes
from shards.common.cli import REQUIRED, command, flag
from shards.config import ExtractConfig
from shards.detectors import make_detector
from shards.images.image_files import BadImage, decode_image, find_parts, read_records

KINDS = ("resized", "recompressed", "cropped", "grey")  # what the search is made for: sides are cropped by up to 5%
BEYOND = ("cropped 10%", "mirrored", "text", "border", "rotated 3°", "colours")
Method = Callable[[list[Image.Image]], np.ndarray]  # copies -> bool (originals, copies): which are the same photo


@dataclass
class Config:
    """Flags of this benchmark."""

    images: str = flag(REQUIRED, "folder of images, or tars in the layout of img2dataset")
    count: int = flag(300, "number of images, spread over all", low=2)
    seed: int = flag(0, "random seed of the alterations")
    mirrored: bool = flag(False, "mirror all copies, and search for mirrored ones as finetune.clean --mirrored does")
    weights: str | None = flag(
        None, "weights of a vision backbone whose embeddings are compared, see shards.extract", unset="none"
    )


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


def imagehash_methods(images: list[Image.Image]) -> dict[str, Method]:
    """The hash functions of imagehash, by name; empty if it is not installed."""
    try:
        import imagehash
    except ImportError:
        print("imagehash is not installed (pip install ImageHash): its hashes are not compared")
        return {}

    def near(function) -> Method:
        known = bits_of(function, images)
        return lambda copies: np.bitwise_count(known[:, None] ^ bits_of(function, copies)[None]) <= NEAR

    return {"imagehash pHash": near(imagehash.phash), "imagehash dHash": near(imagehash.dhash)}


def bits_of(function, images: list[Image.Image]) -> np.ndarray:
    """uint64 (images,): the hashes of imagehash."""
    packed = [np.packbits(function(image).hash.ravel()) for image in images]
    return np.array([int.from_bytes(one.tobytes(), "big") for one in packed], np.uint64)


def embedding_method(images: list[Image.Image], weights: str, twins: set[frozenset[int]]) -> Method:
    """Compares mean features of a vision backbone by their cosine.

    The threshold is the largest cosine of two different originals, so that no two of these are paired.

    Args:
        twins: pairs of originals that are copies.
    """
    flags = ExtractConfig(images="", out="", detector="backbone", weights=weights, device="cpu")
    detector = make_detector(flags)

    @torch.no_grad()
    def embeddings(images: list[Image.Image]) -> np.ndarray:
        """float32 (images, D), of length 1."""
        wholes = [np.float32([[0, 0, *image.size]]) for image in images]
        pairs = zip(images, wholes, strict=True)
        features = torch.cat([detector.describe_batch([np.asarray(image)], [box])[0].features for image, box in pairs])
        return torch.nn.functional.normalize(features.float()).numpy()

    known = embeddings(images)
    cosines = known @ known.T
    np.fill_diagonal(cosines, -1)
    for one, other in map(tuple, twins):
        cosines[one, other] = cosines[other, one] = -1
    threshold = cosines.max()
    print(f"embeddings: threshold of the cosine {threshold:.3f}")
    return lambda copies: known @ embeddings(copies).T > threshold


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
    others = imagehash_methods(images)
    if config.weights:
        others["embeddings"] = embedding_method(images, config.weights, twins)
    methods = ("hash alone", "and comparison", *others)
    print(f"{'recall, precision':<18}" + "".join(f"{name:>18}" for name in methods))
    for kind in (*KINDS, *BEYOND):
        made = [altered(image, kind, rng).convert("RGB") for image in images]
        made = [ImageOps.mirror(copy) for copy in made] if config.mirrored else made
        copies = [copy.convert("L") for copy in made]
        near, same = set(), set()
        for form in zip(*(compared_forms(copy, config.mirrored) for copy in copies), strict=True):
            pairs = ExactSearch(np.stack([image_hashes(copy) for copy in form])).pairs(hashes).tolist()
            pairs = [(a, b) for a, b in pairs if frozenset((a, b)) not in twins]
            near |= {*pairs}
            same |= {(a, b) for a, b in pairs if difference(grey[a], form[b]) <= DIFFERENT}
        row = [sorted(near), sorted(same)]
        for method in others.values():
            found = np.argwhere(method(made)).tolist()
            row.append([(a, b) for a, b in found if frozenset((a, b)) not in twins])
        cells = (scores(found, len(images)) for found in row)
        print(f"{kind:<18}" + "".join(f"{recall:>10.1%}{precision:>8.1%}" for recall, precision in cells), flush=True)


if __name__ == "__main__":
    command(Config, run, "benchmarks/looks.py", __doc__.splitlines()[0], sys.argv[1:])
