"""Features of mmf's extractor: KEY.npy with an array (n, D) and KEY_info.npy, or KEY.npy with one dict.

The info, or the dict, is pickled inside the .npy: bbox (n, 4) in pixels, num_boxes, image_width, image_height, and
optionally objects and cls_prob (n, classes); the dict also has features and image_id.
"""

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.common.errors import UserError
from shards.common.files import files_below, is_utf8, printable
from shards.common.image_id import NOT_UTF8, SAME_ID, printable_id
from shards.common.untrusted_input import reading
from shards.importing.base import ListedSource, Record
from shards.importing.image_features import BadRecord, Features
from shards.importing.record_parsing import image_of, text_of
from shards.parsing.safe_pickle import unpickle

INFO = "_info.npy"


def _has_features(name: str) -> bool:
    return name.endswith(".npy") and not name.endswith(INFO)


class NPY(ListedSource):
    """A folder, searched recursively."""

    holds = "a folder of .npy files as mmf's extractor writes them"
    detector = "published (npy)"

    def __init__(self, path: Path):
        super().__init__(path)
        files = files_below(path, lambda name: name.endswith(".npy"))
        self.items = [os.path.relpath(file, path) for file in files if not file.endswith(INFO)]
        self.total = len(self.items)
        self._refuse_same_ids({file for file in files if file.endswith(INFO)})

    def _refuse_same_ids(self, infos: set[str]) -> None:
        """Raises UserError for duplicate ids of pairs of files; a file with one dictionary contains its id."""
        seen: dict[str, str] = {}
        for name in self.items:
            file = str(self.path / name)
            if file.removesuffix(".npy") + INFO in infos:
                image = printable_id(os.path.basename(file).removesuffix(".npy"))
                if image in seen:
                    raise UserError(f"{seen[image]} and {file}: {SAME_ID.format(image=image)}")
                seen[image] = file

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_dir() and bool(files_below(path, _has_features))

    def records(self, part: list[str]) -> Iterator[Record]:
        for name in part:
            yield Record(printable(name), 1, name)

    def where(self, place: str) -> str:
        return f"{self.path}/{place}"

    def parse(self, raw: str) -> Features:
        file = self.path / raw
        if not is_utf8(raw):
            raise BadRecord(NOT_UTF8)
        value = read(file)
        key = file.name.removesuffix(".npy")
        if value.dtype != object:
            info = file.with_name(key + INFO)
            if not info.exists():
                raise BadRecord(f"has no {info.name} next to it")
            item = _dictionary(read(info), info.name) | {"features": value}
        else:
            item = _dictionary(value, file.name)
            key = text_of(item.get("image_id", key))
        return image_of({"num_boxes": len(item.get("bbox", item.get("boxes", ())))} | item, key)


def read(path: Path) -> np.ndarray:
    """Reads a .npy file; a pickle in it may only contain plain values and arrays."""
    if path.exists() and not path.is_file():
        raise BadRecord(f"{path.name} is a named pipe, a device or a folder")
    with reading(path.name, hint="", error=BadRecord):
        data = path.read_bytes()
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        if not dtype.hasobject:
            if len(data) - file.tell() != dtype.itemsize * math.prod(shape):
                raise ValueError(f"its size does not match the shape {shape} of {dtype}")
            return np.load(io.BytesIO(data), allow_pickle=False)
        value = np.asarray(unpickle(memoryview(data)[file.tell() :], arrays=True), object)
    if value.shape != shape:
        raise BadRecord(f"{path.name} contains the shape {value.shape}, but {shape} in its header")
    return value


def _dictionary(value: np.ndarray, name: str) -> dict:
    if value.shape != () or not isinstance(value.item(), dict):
        raise BadRecord(f"{name} should contain one dictionary")
    return value.item()


FORMAT = NPY
