"""Karpathy's files of captions with splits: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from shards.common.errors import UserError
from shards.common.image_id import image_id
from shards.parsing.json_records import read_list


class Sentence(msgspec.Struct):
    """The fields of a caption."""

    raw: str
    sentid: int | None = None


class _Record(msgspec.Struct):
    """The fields of an image."""

    split: str
    sentences: list[Sentence]
    cocoid: int | str | None = None
    filename: str | None = None


class CaptionedImage(NamedTuple):
    """An image with its captions.

    where: its place in the file, for messages; split: train, val or test; id: COCO's, or the stem of the file name.
    """

    where: str
    split: str
    id: str
    sentences: list[Sentence]


def read_karpathy(path) -> Iterator[CaptionedImage]:
    """The images of a file, in its order; those of the split restval are part of train.

    Raises:
        UserError: the file is not of this form.
        FileNotFoundError: there is no such file.
    """
    for where, image in read_list(path, "images", "image", _Record):
        if image.cocoid is None and image.filename is None:
            raise UserError(f"{where}: has neither cocoid nor filename; download the file again")
        split = "train" if image.split == "restval" else image.split
        name = image_id(image.filename if image.cocoid is None else str(image.cocoid))
        yield CaptionedImage(where, split, name, image.sentences)
