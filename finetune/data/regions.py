"""Lookup of region features by image id, for a task's images and for the given boxes of its examples."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from finetune.annotations.example import Box
from finetune.prepared.packed_examples import PackedExamples
from pretrain.engine.run_dir import DETECTOR
from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.files import is_stray, read_json
from shards.storage.dataset import UNKNOWN, Dataset, PlanFields, detector_and_weights, open_dataset
from shards.storage.reader import RegionReader
from shards.storage.sample import Sample

AT_MOST = 2.0  # maximum distance, in pixels, between a box and the same box in published features (off by one pixel)


class Regions:
    """Region shards by image id. Every data worker maps the shards itself.

    folder: of one data set, or of subfolders with one data set each, such as separate train and test extractions.

    Attributes:
        parts: the data sets of the folder or its subfolders.
        dataset: all of them as one.
    """

    def __init__(self, folder):
        self.parts = _open(Path(folder))
        shards = [shard for part in self.parts for shard in part.shards]
        self.dataset = dataclasses.replace(self.parts[0], shards=shards)
        self.reader = RegionReader(self.dataset)
        self.numbers = self.reader.plain_numbers(unique=True)

    def __contains__(self, image: str) -> bool:
        return image in self.numbers

    def shard_of(self, image: str) -> int:
        """The number of the shard that contains an image."""
        return self.reader.shard_of(self.numbers[image])

    def __getitem__(self, image: str) -> Sample:
        return self.reader[self.numbers[image]]


SamplesById = Regions | dict[str, Sample]  # of a data set, or of the images of a query


def detector_note(opened: Iterable[Regions]) -> str | None:
    """A sentence on regions of different detectors that are used together; None if there are none.

    Equal feature sizes do not show it, and what a model learns of one detector's features means nothing for another's.
    """
    folders = _detectors(opened)
    if len(folders) < 2:
        return None
    named = ", ".join(f"{name} ({folder})" for (name, _), folder in folders.items())
    return f"note: the regions are of different detectors, or weights: {named}; extract all with the same detector"


def other_detector_note(run: str | Path, opened: Iterable[Regions]) -> str | None:
    """A sentence on regions of another detector than those that a run was trained on; None if there are none."""
    kept = Path(run) / DETECTOR
    if not (kept / "dataset.json").exists():  # runs of earlier versions
        return None
    described = read_json(kept / "dataset.json", PlanFields)
    own = detector_and_weights(described.get("detector", UNKNOWN), described.get("extra", {}))
    others = [(name, folder) for (name, weights), folder in _detectors(opened).items() if (name, weights) != own]
    if own[0] == UNKNOWN or not others:
        return None
    named = ", ".join(f"{name} ({folder})" for name, folder in others)
    return f"note: {run} was trained on regions of {own[0]}, and these are of another detector, or weights: {named}"


def _detectors(opened: Iterable[Regions]) -> dict[tuple[str, str], Path]:
    """(name, fingerprint of the weights) of each detector -> the first folder with its regions."""
    folders: dict[tuple[str, str], Path] = {}
    for part in (part for regions in opened for part in regions.parts if part.detector != UNKNOWN):
        folders.setdefault(detector_and_weights(part.detector, part.extra), part.folder)
    return folders


def _open(folder: Path) -> list[Dataset]:
    """The data set of a folder, or the data sets of its subfolders."""
    inside = _folders(folder) if folder.is_dir() else []
    if not inside or any(not is_stray(path.name) for path in folder.glob("*.tar")):
        return [open_dataset(str(folder))]
    first, *others = (open_dataset(str(path)) for path in inside)
    for other in others:
        if other.feature_size != first.feature_size:
            raise UserError(
                f"{folder}: {first.folder.name} has feature size {first.feature_size} and {other.folder.name} "
                f"{other.feature_size}; extract all with the same detector"
            )
    return [first, *others]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_stray(path.name))


def rows_of_boxes(sample: Sample, box_ids: tuple[str, ...], boxes: Sequence[Box]) -> np.ndarray:
    """The rows of a sample of given boxes that belong to an example.

    Boxes are matched by id (shards.extract --boxes), or by position if the sample has no ids, as in the published
    features of given boxes.

    Args:
        sample: regions of the given boxes of an image.
        box_ids: ids of the example's boxes.
        boxes: the example's boxes, in pixels.

    Returns:
        int64 (n,).
    """
    if "box_ids" not in sample.info:
        return _rows_by_place(sample, boxes)
    known = {str(box): row for row, box in enumerate(sample.info["box_ids"])}
    try:
        return np.array([known[box] for box in box_ids], np.int64)
    except KeyError as error:
        raise UserError(
            f"{sample.shard}: {sample.key} has no box {error.args[0]}; extract the shards again with "
            "shards.extract --boxes, from the boxes of these annotations"
        ) from None


def _rows_by_place(sample: Sample, boxes: Sequence[Box]) -> np.ndarray:
    size = np.array([sample.side("width"), sample.side("height")] * 2)
    wanted = np.array(boxes).clip(0, size)
    distance = np.abs(sample.boxes[None] * size - wanted[:, None]).max(-1)
    for box, away in zip(boxes, distance.min(1), strict=True):
        if away > AT_MOST:
            raise UserError(
                f"{sample.shard}: {sample.key} has no box at {[round(x, 1) for x in box]}, the nearest is {away:.1f} "
                "pixels away; extract the shards from the boxes of these annotations"
            )
    rows: list[int] = []
    for away in distance.tolist():
        # Of several boxes at the same position, use each once: each is in the image stream once.
        rows.append(min(range(len(away)), key=lambda row: (away[row], row in rows)))
    return np.array(rows, np.int64)


def with_regions(examples: PackedExamples, regions: Regions, where, skip: bool, log=print) -> PackedExamples:
    """The examples all of whose images have regions.

    Raises:
        UserError: an image has no regions and `skip` is false, or no examples remain.
    """
    kept = examples.with_images(lambda images: all(map(regions.numbers.__contains__, images)))
    if kept.all():
        return examples
    missing = len(examples) - int(kept.sum())
    first = next(image for images in examples.images()[0] for image in images if image not in regions)
    of_all = f"{missing} of {counted(len(examples), 'example')} {'has' if missing == 1 else 'have'}"
    sentence = f"{of_all} an image without regions in {where}, {first} the first"
    if not skip:
        raise UserError(f"{sentence}; extract these images too, or skip the examples with --missing skip")
    if not kept.any():
        raise UserError(f"{sentence}; no examples remain")
    log(f"skipped: {sentence}")
    return examples.select(kept)


def region_folder(data, name: str) -> Path:
    """The folder of the region shards of this name in a data folder."""
    return Path(data) / "regions" / name
