"""One image in a region shard, and its members in the tar.

A sample has the members KEY.features.npy float16 (N, D), KEY.boxes.npy float32 (N, 4), KEY.class_ids.npy int16 (N, k),
KEY.class_probs.npy float16 (N, k), KEY.json, and one caption in KEY.txt or several in KEY.captions.json, a list of
strings: a webdataset sample.
"""

import functools
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.common.errors import BadSample, UserError
from shards.common.untrusted_input import LARGEST_SIDE, is_number, parse_json, reading
from shards.parsing.text_encoding import decode_text

SEVERAL = "captions.json"  # member with several captions
KINDS = {"features.npy": "f", "boxes.npy": "f", "class_ids.npy": "iu", "class_probs.npy": "f"}  # dtype kinds
# Tolerance, relative to a side, for boxes that end before they begin: detectors that count the last pixel in the width
# (x2 - x1 + 1) return them for boxes of less than a pixel.
PIXEL = 0.05
ROUNDING = 0.002  # tolerance for relative coordinates and probabilities above 1: float16 has three digits
MEMBERS = ("features.npy", "boxes.npy", "class_ids.npy", "class_probs.npy", "json", "txt", SEVERAL)
Member = bytes | memoryview  # the content of a member: bytes, or a view of a mapped tar


@dataclass
class Sample:
    """One image with N regions.

    Attributes:
        key: name of the sample in its tar.
        features: float16 (N, D).
        boxes: float32 (N, 4), x1 y1 x2 y2 relative to width and height.
        class_ids, class_probs: int16 and float16 (N, k), the k most probable classes of each region; or None.
        info: width and height in pixels, id, source.
        captions: none, one or several.
        shard: path of the tar, for messages.
    """

    key: str
    features: np.ndarray
    boxes: np.ndarray
    class_ids: np.ndarray | None = None
    class_probs: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    shard: str = ""

    def side(self, name: str) -> float:
        """The width or height of the image in pixels; UserError if the .json member lacks it."""
        if name not in self.info:
            raise UserError(f"{self.shard}: {self.key} has no {name} in its .json; extract the images again")
        return float(self.info[name])


def _npy(array: np.ndarray, dtype: str) -> bytes:
    array = np.ascontiguousarray(array, dtype=dtype)
    return b"".join((_npy_header(dtype, array.shape), array.data))


@functools.lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The header of an npy file; cached, because creating it takes several times as long as writing the values."""
    file = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def encode(sample: Sample) -> dict[str, bytes]:
    """The members of a sample, suffix -> bytes, in the order of the tar."""
    arrays = {
        "features.npy": (sample.features, "<f2"),
        "boxes.npy": (sample.boxes, "<f4"),
        "class_ids.npy": (sample.class_ids, "<i2"),
        "class_probs.npy": (sample.class_probs, "<f2"),
    }
    members = {name: _npy(array, dtype) for name, (array, dtype) in arrays.items() if array is not None}
    members["json"] = json.dumps(sample.info, ensure_ascii=False).encode()
    if len(sample.captions) == 1:
        members["txt"] = sample.captions[0].encode()
    elif sample.captions:
        members[SEVERAL] = json.dumps(sample.captions, ensure_ascii=False).encode()
    return members


_headers: dict[bytes, tuple[np.dtype, tuple[int, ...], int]] = {}


def _header(data: Member) -> tuple[np.dtype, tuple[int, ...], int]:
    """(dtype, shape, offset of the values) of an npy file; cached per distinct header."""
    length = int.from_bytes(data[8:10], "little") + 10
    raw = bytes(data[:length])
    if raw not in _headers:
        file = io.BytesIO(raw)
        with reading(hint="", error=ValueError):
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("it is not an npy file of version 1.0")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if fortran or dtype.kind not in "biufc":
            raise ValueError("is stored in Fortran order" if fortran else f"has values of type {dtype}")
        if len(_headers) >= 4096:
            _headers.clear()
        _headers[raw] = dtype, shape, length
    return _headers[raw]


def read_npy(data: Member) -> np.ndarray:
    """The array in the bytes of an npy file, without a copy (read-only if the bytes are).

    Several times faster than np.load, which parses the header each time.
    """
    dtype, shape, begin = _header(data)
    if len(data) - begin != dtype.itemsize * math.prod(shape):
        raise ValueError("is truncated")
    return np.frombuffer(data, dtype, offset=begin).reshape(shape)


def _text(data: bytes, errors: str) -> str:
    try:
        return decode_text(data)
    except ValueError:
        return data.decode(errors=errors)


def captions_of(members: Mapping[str, Member], errors: str = "strict") -> tuple[str, ...]:
    """The captions of a sample, without blank ones; all lines of a KEY.txt are one caption.

    Args:
        members: member suffix -> bytes.
        errors: error handling of bytes.decode for a KEY.txt that decode_text cannot decode.

    Raises:
        ValueError: a member cannot be decoded, or is not a list of strings.
    """
    if SEVERAL in members:
        texts = parse_json(bytes(members[SEVERAL]))
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("is not a list of strings")
    else:
        texts = [_text(bytes(members["txt"]), errors)] if "txt" in members else []
    return tuple(text for text in map(str.strip, texts) if text)


def _check_info(info: Any, regions: int) -> None:
    """Raises ValueError for a .json member with values of unexpected types, or not one box id per region."""
    if not isinstance(info, dict) or not isinstance(info.get("source", ""), str):
        raise ValueError
    if not isinstance(info.get("id", ""), str | int) or not isinstance(info.get("box_ids", []), list):
        raise ValueError
    if "box_ids" in info and len(info["box_ids"]) != regions:
        raise ValueError
    if not all(is_number(info.get(side, 1), 1, LARGEST_SIDE) for side in ("width", "height")):
        raise ValueError


def check_values(sample: Sample) -> None:
    """Raises BadSample for boxes and class probabilities that are not finite or out of range."""
    name = f"{sample.shard}: {sample.key}" if sample.shard else f"{sample.key}:"
    boxes, probs = sample.boxes, sample.class_probs
    if not (boxes.min(initial=0) >= -ROUNDING and boxes.max(initial=0) <= 1 + ROUNDING):
        raise BadSample(f"{name} has boxes that are NaN or outside the image (0 to 1); extract it again")
    if not (boxes[:, 2:] >= boxes[:, :2] - PIXEL).all():
        raise BadSample(f"{name} has a box that ends before it begins; extract it again")
    if probs is not None and not (probs.min(initial=0) >= 0 and probs.max(initial=0) <= 1 + ROUNDING):
        raise BadSample(f"{name} has class probabilities that are NaN or outside 0 to 1; extract it again")


def decode(key: str, members: Mapping[str, Member], where: str) -> Sample:
    """Decodes the members of one image; raises BadSample for invalid ones. where: path of the shard."""
    arrays = {}
    for name in MEMBERS[:4]:
        if name in members:
            try:
                arrays[name] = read_npy(members[name])
            except ValueError as error:
                raise BadSample(f"{where}: {key}.{name} {error}; make the shard again") from None
    for name in MEMBERS[:2]:
        if name not in arrays:
            raise BadSample(f"{where}: {key} has no member {name}; expected a region shard")
    for name, array in arrays.items():
        if array.dtype.kind not in KINDS[name]:
            raise BadSample(f"{where}: {key}.{name} has values of type {array.dtype}; make the shard again")
    features, boxes = arrays["features.npy"], arrays["boxes.npy"]
    if features.ndim != 2 or boxes.shape != (len(features), 4):
        raise BadSample(
            f"{where}: {key} has features {features.shape} and boxes {boxes.shape}; should be (N, D) and (N, 4)"
        )
    class_ids, class_probs = arrays.get("class_ids.npy"), arrays.get("class_probs.npy")
    if class_ids is not None and (
        class_probs is None
        or class_ids.ndim != 2
        or class_ids.shape != class_probs.shape
        or len(class_ids) != len(features)
    ):
        raise BadSample(f"{where}: {key} has classes whose shape does not match its {len(features)} regions")
    try:
        info = parse_json(bytes(members["json"])) if "json" in members else {}
        captions = captions_of(members)
        _check_info(info, len(features))
    except ValueError:
        raise BadSample(f"{where}: {key} has a .json, .txt or .{SEVERAL} member that cannot be read") from None
    return Sample(key, features, boxes, class_ids, class_probs, info, captions, where)
