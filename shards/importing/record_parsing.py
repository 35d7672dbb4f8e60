"""Images as dictionaries of arrays, the form of several published files, with different names of the fields."""

import binascii

import numpy as np
import pybase64

from shards.common.untrusted_input import reason_of, shown, whole_number
from shards.importing.image_features import BadRecord, Features
from shards.parsing.text_encoding import decode_text

# Field names of mmf's feature extractor -> ours.
NAMES = {"bbox": "boxes", "image_width": "image_w", "image_height": "image_h", "objects_prob": "objects_conf"}


def text_of(value) -> str:
    """A string from a value that may be bytes; BadRecord for an unknown encoding.

    Python 2 pickles contain strings as UTF-8 bytes, which are read as Latin-1 in pickles with numpy arrays.
    """
    try:
        if isinstance(value, bytes):
            return decode_text(value)
        text = str(value)
    except ValueError:
        raise BadRecord(f"has a text that is neither UTF-8 nor UTF-16 ({value[:40]!r})") from None
    try:
        return text.encode("latin-1").decode()
    except ValueError:
        return text


def image_of(item: dict, key: str | None) -> Features:
    """Converts an item with our names or those of mmf. Rows after num_boxes are padding.

    Args:
        key: image id in the file, used by the reference implementation; None to use image_id of the item.
    """
    item = {NAMES.get(name, name): value for name, value in item.items()}
    for name in ("features", "boxes", "image_h", "image_w", "num_boxes"):
        if name not in item:
            raise BadRecord(f"has no {name}; it has {shown(list(item)) if item else 'nothing'}")
    boxes = _boxes(item)
    n = _whole(item, "num_boxes")
    if not 1 <= n <= len(boxes):
        raise BadRecord(f"has num_boxes {n}, but {len(boxes)} boxes")
    objects = None
    if item.get("objects") is not None and item.get("objects_conf") is not None:
        ids, confidence = (_rows(item, name, len(boxes), n, "1") for name in ("objects", "objects_conf"))
        objects = ids[:, 0].astype(np.int64), confidence[:, 0]
    captions = item.get("caption")
    if not isinstance(captions, list | tuple):
        captions = () if captions is None else (captions,)
    return Features(
        id=key if key is not None else text_of(item.get("image_id")),
        width=_whole(item, "image_w"),
        height=_whole(item, "image_h"),
        features=_rows(item, "features", len(boxes), n, "D"),
        boxes=boxes[:n],
        distribution=_rows(item, "cls_prob", len(boxes), n, "classes") if item.get("cls_prob") is not None else None,
        objects=objects,
        captions=tuple(text for caption in captions if (text := text_of(caption).strip())),
    )


def _floats(item: dict, name: str) -> np.ndarray:
    """The numbers of an array, or of float32 in base64."""
    value = item[name]
    if value is None:
        raise BadRecord(f"has {name} that are not numbers")
    try:
        if isinstance(value, np.ndarray) and value.dtype.kind not in "biufO":
            raise TypeError(f"an array of dtype {value.dtype}")
        if isinstance(value, str | bytes):
            data = value.encode() if isinstance(value, str) else value
            return np.frombuffer(pybase64.b64decode(data.translate(None, b"\r\n"), validate=True), "<f4")
        return np.asarray(value, np.float32)
    except (binascii.Error, ValueError, TypeError, OverflowError) as error:
        raise BadRecord(f"has {name} that are not numbers ({reason_of(error)})") from None


def _boxes(item: dict) -> np.ndarray:
    """(rows, 4); base64, which has no shape, is reshaped."""
    boxes = _without_ones(_floats(item, "boxes"))
    if isinstance(item["boxes"], str | bytes) and boxes.size % 4 == 0:
        boxes = boxes.reshape(-1, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise BadRecord(f"has boxes of shape {boxes.shape}; should be (n, 4)")
    return boxes


def _rows(item: dict, name: str, rows: int, n: int, width: str) -> np.ndarray:
    """The first n rows of an array with one row per box.

    Base64 has no shape and is reshaped to `rows`. An array must have `rows` or n rows, or more than n rows, of which
    those after n are zeros.

    Args:
        rows: number of boxes with padding.
        n: number of boxes without padding.
        width: name of the row size, for the message.
    """
    values = _without_ones(_floats(item, name))
    if isinstance(item[name], str | bytes) and values.size % rows == 0:
        values = values.reshape(rows, -1)
    if values.ndim == 1 and width == "1":
        values = values[:, None]
    padded = values.ndim == 2 and len(values) > n and (len(values) == rows or not values[n:].any())
    if values.ndim != 2 or values.size == 0 or not (len(values) == n or padded):
        raise BadRecord(f"has {name} of shape {values.shape}; should be ({n}, {width}), one row per box")
    return values[:n]


def _without_ones(values: np.ndarray) -> np.ndarray:
    """Removes leading dimensions of 1, for example of a batch of one image."""
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    return values


def _whole(item: dict, name: str) -> int:
    try:
        return whole_number(item[name], 0)
    except ValueError:
        raise BadRecord(f"has {name} {shown(item[name])}; should be an integer") from None
