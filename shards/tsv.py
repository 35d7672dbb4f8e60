"""Bottom-up-attention features as TSV: a line an image, arrays in base64, no header line.

Six columns: image_id, image_w, image_h, num_boxes, boxes, features. Ten columns (LXMERT): img_id, img_h,
img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features. Which of the two sizes
comes first is known by the number of columns and checked by the boxes, which must lie inside the image.
"""

import base64
import binascii
import gzip

import numpy as np

from shards.errors import UserError
from shards.sample import Sample
from shards.writer import check_sample, safe_key

SIX = ("id", "width", "height", "num_boxes", "boxes", "features")
TEN = (
    *("id", "height", "width", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
)
NUM_CLASSES = 1601  # Visual Genome's 1600 objects; class 0 is the background, object i is class i + 1


class BadRow(Exception):
    """A row that cannot be used, with the reason in words."""


def read_lines(path):
    """Yields (line number from 1, line without its end) of a TSV, plain or gzip."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="ascii", newline="\n") as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n")
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read to its end ({error}); fetch it again") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a TSV of base64 features (it holds other bytes than ASCII)") from None


def parse_row(line: str, source: str) -> Sample:
    """The Sample of one line; BadRow where it is not whole. Boxes become shares of width and height.

    Where the row has objects, a region's class distribution is its object's confidence, the rest being
    spread evenly over the other classes by whoever reads it.
    """
    columns = line.split("\t")
    names = {6: SIX, 10: TEN}.get(len(columns))
    if names is None:
        raise BadRow(f"has {len(columns)} columns; should be 6 ({', '.join(SIX)}) or 10 ({', '.join(TEN)})")
    row = dict(zip(names, columns, strict=True))
    try:
        width, height, n = int(row["width"]), int(row["height"]), int(row["num_boxes"])
    except ValueError:
        raise BadRow("has a width, height or num_boxes that is not a whole number") from None
    if n < 1:
        raise BadRow("has no boxes")
    boxes = _array(row, "boxes", "<f4", n * 4).reshape(n, 4)
    features = _array(row, "features", "<f4", None)
    if len(features) % n:
        raise BadRow(f"has {len(features)} feature values, which {n} boxes do not divide")
    if not np.isfinite(boxes).all() or (boxes[:, 2:] > np.array([width, height]) + 1).any() or (boxes < -1).any():
        raise BadRow(f"has a box outside its {width} x {height} image; are width and height the other way round?")
    sample = Sample(
        key=safe_key(row["id"]),
        features=features.reshape(n, -1),
        boxes=(boxes / np.array([width, height, width, height], np.float32)).clip(0, 1),
        info={"id": row["id"], "width": width, "height": height, "source": source},
    )
    if "objects_id" in row:
        objects = _array(row, "objects_id", "<i8", n)
        if objects.min() < 0 or objects.max() >= NUM_CLASSES - 1:
            raise BadRow(f"has an object id outside 0 to {NUM_CLASSES - 2}")
        sample.class_ids = (objects + 1)[:, None]
        sample.class_probs = _array(row, "objects_conf", "<f4", n)[:, None].clip(0, 1)
    try:
        check_sample(sample)
    except UserError as error:
        raise BadRow(str(error).partition(": ")[2]) from None
    return sample


def _array(row: dict, name: str, dtype: str, length: int | None) -> np.ndarray:
    try:
        values = np.frombuffer(base64.b64decode(row[name], validate=True), dtype)
    except (binascii.Error, ValueError):
        raise BadRow(f"has a column {name} that is not whole base64") from None
    if length is not None and len(values) != length:
        raise BadRow(f"has {len(values)} values in {name}; its num_boxes asks for {length}")
    return values
