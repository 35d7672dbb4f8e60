"""Recall of annotated boxes by the built-in detector, on the miniature world and on photographs.

    python benchmarks/proposals.py [--photos DIR] [--split dev] [--count 300]

An annotated box is recalled if a region overlaps it by an IoU of 0.5. The baselines are a uniform grid of as many boxes
of several sizes, and as many random boxes. DIR holds photographs of Flickr8k, flickr8k-SPLIT.tar, and the
Flickr30k Entities of them, entities-SPLIT.tar.gz, with boxes in Annotations/KEY.xml.
"""

import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np

from shards.common.box_iou import iou
from shards.common.cli import command, flag
from shards.common.errors import UserError
from shards.detection import handcrafted
from shards.images.image_files import decode_image, find_parts, read_records
from shards.world.pools import COUNTS
from shards.world.scenes import bounding_box, draw_scene, make_scene

RECALLED = 0.5  # IoU
REGIONS = (36, 100)
GRID = (1, 2, 3, 4, 6, 8, 12)  # squares in a row


@dataclass
class Config:
    """Flags of this benchmark."""

    photos: str | None = flag(
        None, "folder of the photographs and their Flickr30k Entities", unset="only the miniature world"
    )
    split: str = flag("dev", "split of the photographs, the part of the file names after the hyphen")
    count: int = flag(300, "number of images of the miniature world, and of photographs, spread over the split", low=1)


@dataclass
class Annotated:
    """An image, uint8 (H, W, 3); distinct boxes (n, 4), relative to its size; and their kinds, '' if not annotated."""

    image: np.ndarray
    boxes: np.ndarray
    kinds: list[str]


def world_images(count: int) -> list[Annotated]:
    """Scenes like those of the tasks of the miniature world."""
    images = []
    for number in range(count):
        rng = np.random.default_rng([0, number])
        things = make_scene(rng, COUNTS)
        image = np.asarray(draw_scene(things, rng))
        boxes = np.array([bounding_box(thing) for thing in things])
        images.append(Annotated(image, boxes / _size(image), [thing.kind for thing in things]))
    return images


def read_photographs(folder: Path, split: str, count: int) -> list[Annotated]:
    """Photographs with their Entities; those without a box are skipped."""
    boxes = read_entities(folder / f"entities-{split}.tar.gz")
    (part,) = find_parts(str(folder / f"flickr8k-{split}.tar"), 1)
    records = [record for record in read_records(part) if len(boxes.get(record.id, ()))]
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).astype(int)
    return [
        Annotated(decode_image(records[n].data), boxes[records[n].id], [""] * len(boxes[records[n].id])) for n in chosen
    ]


def read_entities(path: Path) -> dict[str, np.ndarray]:
    """Distinct boxes (n, 4) of Flickr30k Entities, relative to the image size, by image key."""
    boxes = {}
    try:
        with tarfile.open(path) as tar:
            for entry in tar:
                if entry.isfile() and entry.name.endswith(".xml"):
                    root = ElementTree.fromstring(tar.extractfile(entry).read())
                    boxes[Path(entry.name).stem] = _boxes_of(root)
    except (OSError, tarfile.TarError, ElementTree.ParseError) as error:
        raise UserError(f"{path}: should be a .tar.gz of Flickr30k Entities ({error})") from None
    return boxes


def _boxes_of(root: ElementTree.Element) -> np.ndarray:
    """Boxes in an XML file; entities without a box (scene, nobndbox) have no bndbox."""
    width, height = (float(root.findtext(f"size/{side}")) for side in ("width", "height"))
    corners = ("xmin", "ymin", "xmax", "ymax")
    distinct = {tuple(float(box.findtext(name)) for name in corners) for box in root.iterfind("object/bndbox")}
    return np.array(sorted(distinct)).reshape(-1, 4) / [width, height, width, height]


def _size(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.array([width, height, width, height])


def grid_boxes(image: np.ndarray, limit: int) -> np.ndarray:
    """The whole image, its quarters, its ninths, and so on; of the finest level, as many as fit, evenly spread."""
    levels, room = [], limit
    for row in GRID:
        x, y = np.meshgrid(np.arange(row), np.arange(row))
        boxes = np.stack([x, y, x + 1, y + 1], -1).reshape(-1, 4) / row
        levels.append(boxes[np.linspace(0, len(boxes) - 1, min(room, len(boxes))).astype(int)])
        room -= len(levels[-1])
    return np.concatenate(levels) * _size(image)


def random_boxes(image: np.ndarray, limit: int) -> np.ndarray:
    corners = np.random.default_rng(limit).random((limit, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1)], 1) * _size(image)


def best_overlaps(images: list[Annotated], propose: Callable[[np.ndarray, int], np.ndarray], limit: int) -> np.ndarray:
    """The largest IoU of each annotated box with `limit` proposed boxes, over all images."""
    return np.concatenate(
        [iou(one.boxes, propose(one.image, limit) / _size(one.image)).max(1, initial=0) for one in images]
    )


def detected(image: np.ndarray, limit: int) -> np.ndarray:
    return handcrafted.detect(image, limit)[0]


BASELINE = "grid"
PROPOSALS = {BASELINE: grid_boxes, "random": random_boxes, "detector": detected}


def compare(name: str, images: list[Annotated]) -> None:
    total = sum(len(one.boxes) for one in images)
    print(f"{name}: {len(images)} images, {total} boxes")
    print(f"{'':<12} {'regions':>7} {'recall':>8} {'of grid':>8} {'mean best IoU':>14}")
    kinds = np.array([kind for one in images for kind in one.kinds])
    for limit in REGIONS:
        recalls = {}
        for proposed, propose in PROPOSALS.items():
            overlaps = best_overlaps(images, propose, limit)
            recalls[proposed] = (overlaps >= RECALLED).mean()
            ratio = recalls[proposed] / recalls[BASELINE]
            line = f"{limit:>7} {recalls[proposed]:>8.1%} {ratio:>7.2f}x {overlaps.mean():>14.3f}"
            print(f"{proposed:<12} {line}", flush=True)
        if kinds[0]:
            parts = (f"{kind} {(overlaps[kinds == kind] >= RECALLED).mean():.1%}" for kind in sorted(set(kinds)))
            print(f"{'':<12} {', '.join(parts)}")


def time_detector(images: list[Annotated]) -> None:
    seconds = {"detection": 0.0, "description": 0.0}
    for one in images[:100]:
        began = time.perf_counter()
        boxes = detected(one.image, REGIONS[0])
        found = time.perf_counter()
        handcrafted.crop_features(one.image, boxes)
        seconds["detection"] += found - began
        seconds["description"] += time.perf_counter() - found
    count = min(len(images), 100)
    parts = ", ".join(f"{name} {1000 * value / count:.1f} ms" for name, value in seconds.items())
    print(f"{parts}: {count / sum(seconds.values()):.0f} images/s with {REGIONS[0]} regions\n")


def run(config: Config) -> None:
    sets = {"world": world_images(config.count)}
    if config.photos:
        sets[f"photographs, {config.split}"] = read_photographs(Path(config.photos), config.split, config.count)
    for name, images in sets.items():
        compare(name, images)
        time_detector(images)


if __name__ == "__main__":
    command(Config, run, "benchmarks/proposals.py", __doc__.splitlines()[0], sys.argv[1:])
