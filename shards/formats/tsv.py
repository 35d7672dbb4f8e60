"""Bottom-up-attention features as TSV: a line an image, arrays in base64, no header line.

Six columns: image_id, image_w, image_h, num_boxes, boxes, features. Ten columns (LXMERT): img_id, img_h,
img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features. Which of the two sizes
comes first is known by the number of columns and checked by the boxes, which must lie inside the image.
"""

import binascii
import gzip
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pybase64

from shards.errors import UserError
from shards.features import BadRecord, Features
from shards.source import Record, Source

SIX = ("id", "width", "height", "num_boxes", "boxes", "features")
TEN = (
    *("id", "height", "width", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
)
LOOKED_AT = 100  # lines that tell how long a line is
BUFFER = 1 << 20  # bytes: lines are hundreds of kilobytes long


class TSV(Source):
    """A plain file is read in stretches of bytes, by several processes; a packed one from front to back, by one."""

    holds = "a .tsv or .tsv.gz of bottom-up-attention features"
    detector = "bottom-up attention"
    unit = "B"

    def __init__(self, path: Path):
        super().__init__(path)
        self.packed = path.suffix == ".gz"
        self.total = None if self.packed else path.stat().st_size

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_file() and path.name.endswith((".tsv", ".tsv.gz"))

    def parts(self, per_shard: int) -> list[tuple[int, int]]:
        """(first byte, byte after the last) of stretches in which about so many lines begin."""
        if self.packed or not self.total:
            return [(0, 0)]
        lengths = [record.amount for record in itertools.islice(self.records((0, self.total)), LOOKED_AT)]
        step = max(1, round(sum(lengths) / len(lengths) * per_shard))
        return [(begin, min(begin + step, self.total)) for begin in range(0, self.total, step)]

    def records(self, part: tuple[int, int]) -> Iterator[Record]:
        """The lines that begin in a stretch."""
        begin, end = part
        try:
            with self._open() as file:
                place = max(0, begin - 1)
                file.seek(place)
                if begin:
                    place += len(file.readline())  # the end of a line that began before, or just its line feed
                while (self.packed or place < end) and (line := file.readline()):
                    yield Record(place, len(line), line)
                    place += len(line)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{self.path}: cannot be read to its end ({error}); fetch it again") from None

    def _open(self):
        return gzip.open(self.path) if self.packed else open(self.path, "rb", buffering=BUFFER)

    def where(self, place: int) -> str:
        """The number of the line that begins at a byte; counted for those that have a message alone."""
        lines, left = 1, place
        with self._open() as file:
            while left and (block := file.read(min(left, BUFFER))):
                lines, left = lines + block.count(b"\n"), left - len(block)
        return f"{self.path}, line {lines}"

    def some(self, count: int) -> Iterator[Record]:
        """The first ones: a TSV has no class distributions, for which more would be wanted."""
        return itertools.islice(self.records((0, self.total)), 1)

    def parse(self, raw: bytes) -> Features:
        """The image of one line."""
        columns = raw.rstrip(b"\r\n").split(b"\t")
        names = {6: SIX, 10: TEN}.get(len(columns))
        if names is None:
            raise BadRecord(f"has {len(columns)} columns; should be 6 ({', '.join(SIX)}) or 10 ({', '.join(TEN)})")
        row = dict(zip(names, columns, strict=True))
        try:
            width, height, n = int(row["width"]), int(row["height"]), int(row["num_boxes"])
        except ValueError:
            raise BadRecord("has a width, height or num_boxes that is not a whole number") from None
        if n < 1:
            raise BadRecord("has no boxes")
        boxes = _array(row, "boxes", "<f4", n * 4).reshape(n, 4)
        features = _array(row, "features", "<f4", None)
        if len(features) % n:
            raise BadRecord(f"has {len(features)} feature values, which {n} boxes do not divide")
        objects = None
        if "objects_id" in row:
            objects = _array(row, "objects_id", "<i8", n), _array(row, "objects_conf", "<f4", n)
        return Features(
            id=row["id"].decode(errors="replace"),
            width=width,
            height=height,
            features=features.reshape(n, -1),
            boxes=boxes,
            objects=objects,
        )


def _array(row: dict[str, bytes], name: str, dtype: str, length: int | None) -> np.ndarray:
    try:
        values = np.frombuffer(pybase64.b64decode(row[name], validate=True), dtype)
    except (binascii.Error, ValueError):
        raise BadRecord(f"has a column {name} that is not whole base64") from None
    if length is not None and len(values) != length:
        raise BadRecord(f"has {len(values)} values in {name}; its num_boxes asks for {length}")
    return values


FORMAT = TSV
