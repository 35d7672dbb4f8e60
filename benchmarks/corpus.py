"""Test images in training data: a real case, found by ids and by appearance, and the time of a large search.

    python benchmarks/corpus.py --train flickr8k-train.tar --others flickr8k-dev.tar --ids esnlive_dev.csv[,MORE]

The test set is the photos that the e-SNLI-VE files name, which are validation images of Flickr30k. First their ids are
searched for in the training images. Then ids are withheld: the training images are numbered, and the test images are
resized, recompressed, cropped or grey copies. The time of 12 million images and 200,000 test images is extrapolated
from the processor times of one image and of one comparison, measured here.
"""

import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
from PIL import Image

from benchmarks.looks import KINDS, altered
from finetune.decontamination.hash_search import SEARCHES
from finetune.decontamination.known_tests import image_fingerprint
from finetune.decontamination.perceptual_hash import DIFFERENT, difference, grey, image_hashes, thumbnail
from shards.common.cli import REQUIRED, command, flag
from shards.common.errors import UserError
from shards.common.image_id import image_id
from shards.images.image_files import Record, decode_image, find_parts, read_records

CORPUS, TESTS = 12_000_000, 200_000  # images of the extrapolation


@dataclass
class Config:
    """Flags of this benchmark."""

    train: str = flag(REQUIRED, "training images: a tar, or a folder, whose names are the ids")
    others: str = flag(REQUIRED, "images with the same ids that are not in --train")
    ids: str = flag(REQUIRED, "comma-separated CSV files with a column Flickr30kID")
    search: str = flag("exact", "search method", choices=tuple(SEARCHES))
    seed: int = flag(0, "random seed of the alterations")


def ids_of(files: str) -> set[str]:
    found = set()
    for path in files.split(","):
        with open(path, encoding="utf-8", newline="") as file:
            found |= {image_id(row["Flickr30kID"]) for row in csv.DictReader(file)}
    return found


def records_of(images: str) -> list[Record]:
    return [record for part in find_parts(images, 1000) for record in read_records(part)]


def per_item(seconds: float, count: int) -> float:
    return seconds / max(count, 1)


def comparisons_per_second(search: str, hashes: np.ndarray) -> float:
    """Pairs of images that a search compares in a second of processor time."""
    others = np.random.default_rng(0).integers(0, 1 << 63, (20_000, hashes.shape[1]), np.uint64)
    searching = SEARCHES[search](others)
    began = time.process_time()
    searching.pairs(hashes)
    return len(hashes) * len(others) / (time.process_time() - began)


def run(config: Config) -> None:
    rng, tests = np.random.default_rng(config.seed), ids_of(config.ids)
    train, others = records_of(config.train), records_of(config.others)
    leaked = [record for record in train if record.id in tests]
    absent = [record for record in others if record.id in tests]
    print(f"{len(tests)} photos of the test set; {len(leaked)} of them are training images, by id")
    if not leaked:
        raise UserError(f"--train {config.train}: contains none of the photos of --ids")

    began = time.process_time()
    described = [image_fingerprint(record) for record in train]
    seconds_hash = per_item(time.process_time() - began, len(train))
    readable = [n for n, one in enumerate(described) if one.hashes is not None]
    hashes = np.stack([described[n].hashes for n in readable])

    known, owners, kinds = [], [], []
    for number, record in enumerate([*leaked, *absent]):
        kinds.append(KINDS[number % len(KINDS)])
        copy = altered(Image.fromarray(decode_image(record.data)), kinds[-1], rng)
        known.append(copy.convert("L"))
        owners.append(record.id)
    began = time.process_time()
    pairs = SEARCHES[config.search](np.stack([image_hashes(image) for image in known])).pairs(hashes).tolist()
    corpus = {row: thumbnail(grey(train[readable[row]].data)) for row, _ in pairs}
    thumbnails = [thumbnail(image) for image in known]
    same = [(row, one) for row, one in pairs if difference(corpus[row], thumbnails[one]) <= DIFFERENT]
    right = [(row, one) for row, one in same if train[readable[row]].id == owners[one]]
    print(f"ids withheld: {len({one for _, one in right})} of {len(leaked)} found by appearance, ", end="")
    print(f"{len(same) - len(right)} of {len(same)} found pairs are other photos")
    for kind in KINDS:
        mine = [n for n in range(len(leaked)) if kinds[n] == kind]
        print(f"  {kind:<14} {len({one for _, one in right if one in mine})} of {len(mine)}")

    speeds = {name: comparisons_per_second(name, hashes[:256]) for name in ("exact", config.search)}
    seconds_comparison = 1 / speeds[config.search]
    began = time.process_time()
    for row, one in pairs[:200]:
        difference(corpus[row], thumbnails[one])
    seconds_difference = per_item(time.process_time() - began, min(200, len(pairs)))
    wrong = [pair for pair in pairs if train[readable[pair[0]]].id != owners[pair[1]]]
    rate = len(wrong) / (len(hashes) * len(known))
    terms = {
        "decoding and hashing": CORPUS * seconds_hash,
        "comparing hashes": CORPUS * TESTS * seconds_comparison,
        "comparing candidates": CORPUS * TESTS * rate * seconds_difference,
    }
    compared = ", ".join(f"{speed / 1e6:.0f} M pairs/s compared ({name})" for name, speed in speeds.items())
    print(f"one core: {1 / seconds_hash:.0f} images/s decoded and hashed, {compared},")
    print(f"  {1 / seconds_difference:.0f} candidates/s aligned; {rate:.1e} of the pairs are candidates")
    print(f"{CORPUS} images x {TESTS} test images on two cores, in hours:")
    for name, seconds in terms.items():
        print(f"  {name:<22} {seconds / 2 / 3600:.1f}")
    print(f"  {'together':<22} {sum(terms.values()) / 2 / 3600:.1f}")


if __name__ == "__main__":
    command(Config, run, "benchmarks/corpus.py", __doc__.splitlines()[0], sys.argv[1:])
