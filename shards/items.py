"""Images as dictionaries of arrays, which is how several published files keep them, each with names of its own."""

import binascii

import numpy as np
import pybase64

from shards.features import BadRecord, Features


def text_of(value) -> str:
    """A text, also where it was written as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def image_of(item: dict, key: str | None) -> Features:
    """The image of an item. key: the id that the published code finds it by, else the item's own.

    Rows behind num_boxes are padding.
    """
    for name in ("features", "boxes", "image_h", "image_w", "num_boxes"):
        if name not in item:
            raise BadRecord(f"has no {name}; it has {', '.join(map(str, item)) or 'nothing'}")
    boxes = _floats(item, "boxes")
    if boxes.size == 0 or boxes.size % 4:
        raise BadRecord(f"has {boxes.size} numbers in boxes; should be four a box")
    rows = boxes.size // 4
    n = _whole(item, "num_boxes")
    if not 1 <= n <= rows:
        raise BadRecord(f"has num_boxes {n} and {rows} boxes")
    objects = None
    if item.get("objects") is not None and item.get("objects_conf") is not None:
        ids, confidence = _rows(item, "objects", rows), _rows(item, "objects_conf", rows)
        objects = ids[:n, 0].astype(np.int64), confidence[:n, 0]
    captions = item.get("caption")
    if not isinstance(captions, list | tuple):
        captions = () if captions is None else (captions,)
    return Features(
        id=key if key is not None else text_of(item.get("image_id")),
        width=_whole(item, "image_w"),
        height=_whole(item, "image_h"),
        features=_rows(item, "features", rows)[:n],
        boxes=boxes.reshape(rows, 4)[:n],
        distribution=_rows(item, "cls_prob", rows)[:n] if item.get("cls_prob") is not None else None,
        objects=objects,
        captions=tuple(text for caption in captions if (text := text_of(caption).strip())),
    )


def _floats(item: dict, name: str) -> np.ndarray:
    """The numbers of an array, or of base64 of float32."""
    value = item[name]
    if value is None:
        raise BadRecord(f"has {name} that are not numbers")
    try:
        if isinstance(value, str | bytes):
            data = value.encode() if isinstance(value, str) else value
            return np.frombuffer(pybase64.b64decode(data.translate(None, b"\r\n"), validate=True), "<f4")
        return np.asarray(value, np.float32)
    except (binascii.Error, ValueError, TypeError) as error:
        raise BadRecord(f"has {name} that are not numbers ({error})") from None


def _rows(item: dict, name: str, rows: int) -> np.ndarray:
    values = _floats(item, name)
    if values.size == 0 or values.size % rows:
        raise BadRecord(f"has {values.size} numbers in {name}, which {rows} boxes do not divide")
    return values.reshape(rows, -1)


def _whole(item: dict, name: str) -> int:
    try:
        return int(item[name])
    except (TypeError, ValueError):
        raise BadRecord(f"has {name} {item[name]!r}; should be a whole number") from None
