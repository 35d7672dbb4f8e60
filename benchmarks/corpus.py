"""Test images in training data: a real case, found by ids and by appearance, and the time of a large search.

    python benchmarks/corpus.py --train flickr8k-train.tar --others flickr8k-dev.tar --ids esnlive_dev.csv[,MORE]
        [--regions FOLDER --captions dataset_flickr8k.json]

The test set is the photos that the e-SNLI-VE files name, which are validation images of Flickr30k. First their ids are
searched for in the training images. Then ids are withheld: the training images are numbered, and the test images are
resized, recompressed, cropped or grey copies. The time of 12 million images and 200,000 test images is extrapolated
from the processor times of one image and of one comparison, measured here.

With --regions, the linear retrieval baseline of benchmarks/photos is trained on all training images, without the test
images among them, and without as many other images, and ranks these test images for their captions. Images are
represented by their mean features only, which takes a third of the time.
"""

import csv
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
from PIL import Image

from benchmarks.looks import KINDS, altered
from benchmarks.photos.linear_baseline import RIDGES, linear_retrieval
from finetune.annotations.example import Example
from finetune.data.regions import Regions
from finetune.decontamination.hash_search import SEARCHES
from finetune.decontamination.known_tests import image_fingerprint
from finetune.decontamination.perceptual_hash import DIFFERENT, difference, grey, image_hashes, thumbnail
from finetune.evaluation.bootstrap import bootstrap_interval, clusters_of
from finetune.tasks.retrieval import image_ranks, karpathy_images, own_images
from shards.common.cli import REQUIRED, command, flag
from shards.common.errors import UserError
from shards.common.image_id import image_id
from shards.images.image_files import ImageRecord, decode_image, find_parts, read_records

CORPUS, TESTS = 12_000_000, 200_000  # images of the extrapolation


@dataclass
class Config:
    """Flags of this benchmark."""

    train: str = flag(REQUIRED, "training images: a tar, or a folder, whose names are the ids")
    others: str = flag(REQUIRED, "images with the same ids that are not in --train")
    ids: str = flag(REQUIRED, "comma-separated CSV files with a column Flickr30kID")
    search: str = flag("exact", "search method", choices=tuple(SEARCHES))
    seed: int = flag(0, "random seed of the alterations")
    regions: str | None = flag(None, "region shards of the images, to measure the effect on retrieval", unset="none")
    captions: str | None = flag(None, "Karpathy file with the captions of the images, for --regions", unset="none")
    controls: int = flag(3, "number of random sets of other images that are removed, for --regions", low=1)
    ridge: float | None = flag(None, "ridge of the baseline", unset="selected on the validation images", above=0)


def ids_of(files: str) -> set[str]:
    found = set()
    for path in files.split(","):
        with open(path, encoding="utf-8", newline="") as file:
            found |= {image_id(row["Flickr30kID"]) for row in csv.DictReader(file)}
    return found


def records_of(images: str) -> list[ImageRecord]:
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


def effect_on_retrieval(config: Config, train: list[str], leaked: list[str], val: list[str]) -> None:
    """Prints image retrieval on the leaked images by the linear baseline, with and without them in its training.

    As a control, as many other training images are removed, chosen at random.

    Args:
        train, leaked: ids of the training images and of those that are test images.
        val: ids of the images on which the ridge is selected.
    """
    captions = {
        image: [Example(number, text, (image,)) for number, text in sentences]
        for _, image, sentences in karpathy_images(Path(config.captions))
    }

    def examples(images: Iterable[str]) -> list[Example]:
        return [example for image in images for example in captions[image]]

    regions, tested = Regions(config.regions), examples(leaked)
    pooled = {image: regions[image].features.mean(0, dtype=np.float64) for image in (*train, *val)}
    clusters, ridges = clusters_of(example.images for example in tested), (config.ridge,) if config.ridge else RIDGES

    def found_first(removed: set[str]) -> np.ndarray:
        """float (captions,): whether the caption's image is the first in rank."""
        kept = [image for image in train if image not in removed]
        scores = linear_retrieval(pooled, examples(kept), examples(val), tested, ridges)
        return (image_ranks(scores, own_images(tested)) == 0).astype(float)

    others = sorted(set(train) - set(leaked))
    chosen = [np.random.default_rng(seed).choice(others, len(leaked), replace=False) for seed in range(config.controls)]
    without = found_first(set(leaked))
    print(f"image retrieval on these {len(leaked)} images by their {len(tested)} captions, linear baseline:")
    print(f"{'trained on':<40} {'R@1':>6}   difference to the second row, 95% interval over images")
    for name, values in (
        (f"all {len(train)} images", found_first(set())),
        (f"without the {len(leaked)} test images", without),
        (f"without {len(leaked)} others ({config.controls} seeds)", np.mean([found_first({*of}) for of in chosen], 0)),
    ):
        low, high = bootstrap_interval(values - without, clusters)
        print(f"{name:<40} {values.mean():>6.1%}   {(values - without).mean():+.1%} ({low:+.1%} to {high:+.1%})")


def run(config: Config) -> None:
    if bool(config.regions) != bool(config.captions):
        raise UserError("--regions and --captions: set both, or neither")
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
    if config.regions:
        val = [record.id for record in others if record.id not in tests]
        effect_on_retrieval(config, [record.id for record in train], [record.id for record in leaked], val)


if __name__ == "__main__":
    command(Config, run, "benchmarks/corpus.py", __doc__.splitlines()[0], sys.argv[1:])
