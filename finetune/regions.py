"""The regions of a task's images by image id, and of the boxes that come with its examples."""

from pathlib import Path

import numpy as np

from shards.dataset import open_dataset
from shards.errors import UserError
from shards.given_boxes import plain_id
from shards.reader import RegionReader
from shards.sample import Sample


class Regions:
    """Region shards by image id. Given to data workers, each maps the shards for itself."""

    def __init__(self, folder):
        self.dataset = open_dataset(str(folder))
        self.reader = RegionReader(self.dataset)
        ids = (plain_id(image) for index in self.reader.indexes for image in index.ids.tolist())
        self.numbers = {image: number for number, image in enumerate(ids)}

    def __contains__(self, image: str) -> bool:
        return image in self.numbers

    def shard_of(self, image: str) -> int:
        """The number of the shard that has an image."""
        return self.reader.shard_of(self.numbers[image])

    def __getitem__(self, image: str) -> Sample:
        return self.reader[self.numbers[image]]


def rows_of_boxes(sample: Sample, box_ids: tuple[str, ...]) -> np.ndarray:
    """int (n,): the rows of a sample of given boxes (shards.extract --boxes) that have these ids."""
    known = {str(box): row for row, box in enumerate(sample.info.get("box_ids", ()))}
    try:
        return np.array([known[box] for box in box_ids], np.int64)
    except KeyError as error:
        raise UserError(
            f"{sample.shard}: {sample.key} has no box {error.args[0]}; make the shards again with "
            "shards.extract --boxes, from the boxes of these annotations"
        ) from None


def with_regions(examples: list, regions: Regions, where, skip: bool, say=print) -> list:
    """The examples all of whose images have regions; without `skip`, one that has none is a UserError."""
    kept = [example for example in examples if all(image in regions for image in example.images)]
    if len(kept) == len(examples):
        return examples
    missing = len(examples) - len(kept)
    first = next(image for example in examples for image in example.images if image not in regions)
    sentence = f"{missing} of {len(examples)} examples have an image without regions in {where}, {first} the first"
    if not skip:
        raise UserError(f"{sentence}; extract these images too, or --missing skip leaves the examples out")
    if not kept:
        raise UserError(f"{sentence}; these are all there are")
    say(f"left out: {sentence}")
    return kept


def region_folder(data, name: str) -> Path:
    """Where a data folder has the region shards of a name."""
    return Path(data) / "regions" / name
