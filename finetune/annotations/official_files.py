"""Readers of official annotation files (JSON, JSON lines, CSV, text, XML, Python 2 pickles).

Error messages name the file and the record.
"""

import csv
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from finetune.annotations.source_files import note_read, note_search
from shards.common.errors import UserError
from shards.common.files import is_stray
from shards.common.untrusted_input import (
    byte_lines,
    is_number,
    parse_json,
    reading,
    reason_of,
    refuse_special_file,
    shown,
)
from shards.parsing.json_records import BROKEN, decode_file, explained, read_list, text_begin
from shards.parsing.json_records import take as take  # for the readers of tasks
from shards.parsing.json_records import take_all as take_all
from shards.parsing.safe_pickle import unpickle

Kind = TypeVar("Kind")


class MissingFile(UserError):
    """An official file does not exist."""


def scan(path, kind: type[Kind]) -> Kind:
    """Decodes a .json file as `kind`, see json_records.decode_file."""
    refuse_special_file(path)
    note_read(path)
    try:
        with reading(path, "download it again"):
            return decode_file(path, kind)
    except FileNotFoundError:
        raise _missing(path) from None


class RecordFile(Generic[Kind]):
    """The records of a .json file that is an object of records, decoded lazily.

    A record is decoded as `kind`, a msgspec type, when its key is looked up, so that reading a few of millions of
    records takes little memory.
    """

    def __init__(self, path, kind: type[Kind]):
        self.path, self._decoder = path, msgspec.json.Decoder(kind)
        self._records = scan(path, dict[str, msgspec.Raw])

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __getitem__(self, key: str) -> Kind:
        if key not in self._records:
            raise UserError(f"{self.path}: no record {key}; download it again, or the file that refers to this record")
        with reading(f"{self.path}, record {shown(key)}", "download the file again"):
            return self._decoder.decode(self._records[key])


def scan_records(path, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    """(key, record decoded as `kind`) of every record of a .json file that is an object of records, in file order."""
    records = RecordFile(path, kind)
    return ((key, records[key]) for key in records)


def scan_list(path, key: str | None, name: str, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    """(location for messages, record) of every record of a list in a .json file; see json_records.read_list."""
    return official(path, read_list(path, key, name, kind))


def official(path, records: Iterator[Kind]) -> Iterator[Kind]:
    """The records that a reader of shards.parsing yields from an official file, which is noted as read."""
    note_read(path)
    try:
        yield from records
    except FileNotFoundError:
        raise _missing(path) from None


def scan_lines(path, kind: type[Kind]) -> Iterator[Kind]:
    """The records of a file with one JSON record per line, decoded as `kind`, a msgspec type."""
    return (value for _, value in scan_located_lines(path, kind))


def scan_located_lines(path, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    """(location for messages, record) of every line of a file with one JSON record per line; see scan_lines."""
    decoder = msgspec.json.Decoder(kind)
    for where, line in _lines(path):
        try:
            value = decoder.decode(line)
        except BROKEN as error:
            raise explained(line, kind, where, error) from None
        yield where, value


def read_annotations(path):
    """The value of an official .json file."""
    try:
        return parse_json(_read(path))
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({reason_of(error)}); download it again") from None


def read_lines(path) -> Iterator[tuple[str, dict]]:
    """(location for messages, record) for every line of a .json, .jsonl or .jsonl.gz file with one record per line."""
    for where, line in _lines(path):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where}: is not valid JSON ({reason_of(error)}); download it again") from None
        yield where, record


def read_text(path) -> Iterator[tuple[str, str]]:
    """(location for messages, stripped line) for every non-empty line of a text file."""
    for where, line in _lines(path):
        try:
            yield where, line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: is not UTF-8 text ({error}); download the file again") from None


def read_csv(path) -> Iterator[tuple[str, dict]]:
    """(location for messages, column -> text) for every row of a .csv or .csv.gz file with a header."""
    path = plain_or_packed(path)
    note_read(path)
    reader = csv.DictReader(_text_lines(path), strict=True)
    while True:
        try:
            with reading(f"{path}, after line {reader.line_num}", "download it again"):
                record = next(reader, None)
        except FileNotFoundError:
            raise _missing(path) from None
        if record is None:
            return
        where = f"{path}, line {reader.line_num}"
        if None in record or None in record.values():
            raise UserError(f"{where}: number of columns differs from the header; download the file again")
        yield where, record


def _text_lines(path) -> Iterator[str]:
    """The lines, with line ends, of a UTF-8 file with or without a byte order mark."""
    for number, line in enumerate(byte_lines(path)):
        yield line.decode("utf-8" if number else "utf-8-sig")


class _Plain(ET.TreeBuilder):
    """Rejects a document type declaration, in which a short file can define entities of any length."""

    def doctype(self, name, pubid, system):
        raise ValueError("it has a document type, which no official file has")


def read_xml(path) -> ET.Element:
    """The root of an .xml file."""
    with reading(path, "download it again"):
        return ET.fromstring(_read(path), ET.XMLParser(target=_Plain()))


def _lines(path) -> Iterator[tuple[str, bytes]]:
    """(location for messages, line) of every line that is not blank."""
    path = plain_or_packed(path)
    note_read(path)
    lines, number = byte_lines(path), 0
    while True:
        try:
            with reading(f"{path}, after line {number}", "download it again"):
                line = next(lines, None)
        except FileNotFoundError:
            raise _missing(path) from None
        if line is None:
            return
        number += 1
        line = line[text_begin(line) if number == 1 else 0 :]
        if line.strip():
            yield f"{path}, line {number}", line


def find_file(folder: Path, name: str) -> Path:
    """The path of an official file: in the data set's folder, or one or two folders below, as some archives unpack.

    Raises:
        UserError: several such files exist.
    """
    path = folder / name
    if plain_or_packed(path).exists() or not folder.is_dir():
        below = []
    else:
        below = [
            found
            for depth in ("*", "*/*")
            for end in ("", ".gz")
            for found in sorted(folder.glob(f"{depth}/{name}{end}"))
            if not is_stray(str(found.relative_to(folder)))
        ]
    if len(below) > 1:
        raise UserError(f"{folder}: found both {' and '.join(map(str, below))}; keep one")
    path = Path(str(below[0]).removesuffix(".gz")) if below else path
    note_search(folder, name, existing(path))
    return path


def existing(path: Path) -> list[Path]:
    """The path of `find_file` as it exists, plain or packed; empty if it does not exist."""
    found = plain_or_packed(path)
    return [found] if found.exists() else []


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern in the data set's folder, or else one folder below, in alphabetical order."""
    found = sorted(folder.glob(pattern)) or sorted(folder.glob(f"*/{pattern}"))
    note_search(folder, pattern, found)
    return found


def plain_or_packed(path) -> Path:
    """The path itself, or PATH.gz if only that exists."""
    packed = Path(f"{path}.gz")
    refuse_special_file(path)
    return packed if packed.exists() and not Path(path).exists() else Path(path)


def _read(path) -> bytes:
    refuse_special_file(path)
    note_read(path)
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it is an official file of the data set") from None


def _missing(path) -> MissingFile:
    return MissingFile(f"{path}: not found; it is an official file of the data set (docs/downloads.md)")


def read_pickle(path):
    """The value of a pickle of plain values, written by Python 2 or 3."""
    try:
        return unpickle(_read(path))
    except ValueError as error:
        raise UserError(f"{path}: is not a pickle of plain lists, dicts, strings and numbers ({error})") from None


def read_pickled_list(path) -> list:
    """The value of a pickle of plain values that is a list."""
    value = read_pickle(path)
    if not isinstance(value, list):
        raise UserError(f"{path}: should be a pickled list of records and is a {type(value).__name__}")
    return value


def corners(values: list, key: str, where: str) -> tuple[float, float, float, float]:
    """A box given as [x, y, width, height] in pixels -> (x1, y1, x2, y2). key: its name in messages."""
    if len(values) != 4 or not all(map(is_number, values)):
        raise UserError(f"{where}: {key} is {shown(values)}; should be four numbers x, y, width, height")
    x, y, width, height = values
    if width < 0 or height < 0:
        raise UserError(f"{where}: {key} has a negative width or height ({width} x {height})")
    return float(x), float(y), float(x + width), float(y + height)


def by_id(entries: Iterable[tuple[str, int, Kind]]) -> dict[int, Kind]:
    """Id -> value, from (location for messages, id, value); UserError for an id with two different values."""
    found: dict[int, Kind] = {}
    for where, number, value in entries:
        if found.setdefault(number, value) != value:
            raise UserError(f"{where}: duplicate id {number} with other content; remove one of them")
    return found


def unique(ids, where: str) -> None:
    """Raises UserError for a duplicate id."""
    seen = set()
    for found in ids:
        if found in seen:
            raise UserError(f"{where}: duplicate id {found}")
        seen.add(found)
