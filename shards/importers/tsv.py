"""Bottom-up-attention features as TSV: one line per image, arrays in base64, no header line.

Six columns: image_id, image_w, image_h, num_boxes, boxes, features. Ten columns (LXMERT): img_id, img_h, img_w,
objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features. The order of width and height depends on the
number of columns and is verified by the boxes, which must be inside the image.
"""

import binascii
import gzip
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pybase64

from shards.common.errors import UserError
from shards.common.files import files_below
from shards.common.untrusted_input import (
    EXPANSION,
    LARGEST_SIDE,
    LONGEST_LINE,
    most_bytes,
    reading,
    refuse_special_file,
    whole_number,
)
from shards.importing.base import Record, Source
from shards.importing.image_features import BadRecord, Features
from shards.importing.record_parsing import text_of

SIX = ("id", "width", "height", "num_boxes", "boxes", "features")
TEN = (
    *("id", "height", "width", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
)
SAMPLED = 100  # lines used to estimate the length of a line
BUFFER = 1 << 20  # bytes: lines are hundreds of kilobytes long
_NAME = re.compile(r".\.tsv(\.\d+)?(\.gz)?$")  # the published files of 2015 are split into .tsv.0 and .tsv.1


def _is_tsv(name: str) -> bool:
    return _NAME.search(name) is not None


@dataclass(frozen=True)
class LinePlace:
    """The start of a line: number of the file, and offset in bytes."""

    file: int
    byte: int


class TSV(Source):
    """Plain files are read in byte ranges by several processes; compressed ones sequentially by one."""

    holds = "a .tsv, .tsv.0 or .tsv.gz of bottom-up-attention features, or a folder of these"
    detector = "bottom-up attention"
    unit = "B"
    several = True

    def __init__(self, *paths: Path):
        super().__init__(paths[0])
        self.files: list[Path] = []
        for path in paths:
            self.files += map(Path, files_below(path, _is_tsv)) if path.is_dir() else [path]
        self.packed = any(file.suffix == ".gz" for file in self.files)
        self.sizes = [file.stat().st_size for file in self.files]
        self.total = None if self.packed else sum(self.sizes)

    @staticmethod
    def recognises(path: Path) -> bool:
        return bool(files_below(path, _is_tsv)) if path.is_dir() else _is_tsv(path.name)

    def parts(self, per_shard: int) -> list[list[tuple[int, int, int]]]:
        """Parts of about `per_shard` lines, as byte ranges (file number, begin, end); one part for compressed files."""
        whole = [(number, 0, size) for number, size in enumerate(self.sizes)]
        lengths = [record.amount for record in itertools.islice(self.records(whole), SAMPLED)]
        if self.packed or not lengths:
            return [whole]
        step = max(1, round(sum(lengths) / len(lengths) * per_shard))
        return [
            [(number, begin, min(begin + step, size))] for number, _, size in whole for begin in range(0, size, step)
        ]

    def records(self, part: list[tuple[int, int, int]]) -> Iterator[Record]:
        """Yields the lines that start in the byte ranges of a part, without blank ones."""
        for number, begin, end in part:
            yield from self._lines(number, begin, end)

    def _lines(self, number: int, begin: int, end: int) -> Iterator[Record]:
        packed, most = self.files[number].suffix == ".gz", most_bytes(self.sizes[number])
        with self._open(number) as file:
            place = max(0, begin - 1)
            file.seek(place)
            if begin:
                place += len(self._line(number, file))  # the rest of a line that starts before `begin`
            while (packed or place < end) and (line := self._line(number, file)):
                if line.strip():
                    yield Record(LinePlace(number, place), len(line), line)
                place += len(line)
                if packed and place > most:
                    reason = f"expands to more than {EXPANSION} times its size"
                    raise UserError(f"{self.files[number]}: {reason}; fetch it again")

    def _line(self, number: int, file) -> bytes:
        """The next line; empty at the end."""
        with reading(self.files[number]):
            line = file.readline(LONGEST_LINE + 1)
            if len(line) > LONGEST_LINE:
                raise ValueError(f"a line is longer than {LONGEST_LINE >> 20} MB")
            return line

    def _open(self, number: int):
        file = self.files[number]
        refuse_special_file(file)
        return gzip.open(file) if file.suffix == ".gz" else open(file, "rb", buffering=BUFFER)

    def where(self, place: LinePlace) -> str:
        """File and line number, for messages; lines are counted only when this is called."""
        lines, left = 1, place.byte
        with self._open(place.file) as file:
            while left and (block := file.read(min(left, BUFFER))):
                lines, left = lines + block.count(b"\n"), left - len(block)
        return f"{self.files[place.file]}, line {lines}"

    def some(self, count: int) -> Iterator[Record]:
        """Yields at most `count` records: spread over plain files, the first ones of compressed files."""
        if self.packed:
            yield from itertools.islice(self.records([(number, 0, 0) for number in range(len(self.files))]), count)
            return
        seen = set()
        for at in range(0, self.total, max(1, self.total // count)):
            number, byte = 0, at
            while byte >= self.sizes[number]:
                number, byte = number + 1, byte - self.sizes[number]
            record = next(self._lines(number, byte, self.sizes[number]), None)
            if record and record.place not in seen:
                seen.add(record.place)
                yield record

    def parse(self, raw: bytes) -> Features:
        """The image of one line."""
        columns = raw.rstrip(b"\r\n").split(b"\t")
        names = {6: SIX, 10: TEN}.get(len(columns))
        if names is None:
            raise BadRecord(f"has {len(columns)} columns; should be 6 ({', '.join(SIX)}) or 10 ({', '.join(TEN)})")
        row = dict(zip(names, columns, strict=True))
        if row["id"] in (b"image_id", b"img_id"):
            raise BadRecord("is a header line, not an image")
        try:
            width, height, n = (whole_number(row[name], 0, LARGEST_SIDE) for name in ("width", "height", "num_boxes"))
        except ValueError:
            raise BadRecord("has a width, height or num_boxes that is not an integer up to a million") from None
        if n < 1:
            raise BadRecord("has no boxes")
        boxes = _array(row, "boxes", "<f4", n * 4).reshape(n, 4)
        features = _array(row, "features", "<f4", None)
        if len(features) % n:
            raise BadRecord(f"has {len(features)} feature values, not a multiple of its {n} boxes")
        objects = None
        if "objects_id" in row:
            objects = _array(row, "objects_id", "<i8", n), _array(row, "objects_conf", "<f4", n)
        return Features(
            id=text_of(row["id"]),
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
        raise BadRecord(f"has a column {name} that is not valid base64") from None
    if length is not None and len(values) != length:
        raise BadRecord(f"has {len(values)} values in {name}; should be {length} according to num_boxes")
    return values


FORMAT = TSV
