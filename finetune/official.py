"""Reading official annotation files (JSON, lines of JSON, CSV, text, XML, Python 2 pickles), with errors that name the
record.
"""

import codecs
import csv
import itertools
import mmap
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from shards.errors import UserError
from shards.files import is_stray, refuse_special_file
from shards.reading import byte_lines, is_number, parse_json, reading, reason_of, shown
from shards.unpickle import unpickle

Kind = TypeVar("Kind")


class MissingFile(UserError):
    """An official file that is not there."""


def scan(path, kind: type[Kind]) -> Kind:
    """What `kind`, a type of msgspec, asks for of a .json file; all else is passed over and takes no memory."""
    refuse_special_file(path)
    try:
        with reading(path, "download it again"), open(path, "rb") as file:
            # Closed when nothing refers to it any more: records that are yet to be decoded do.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            return msgspec.json.decode(data[_text_begin(data) :], type=kind)
    except FileNotFoundError:
        raise _missing(path) from None


class RecordFile(Generic[Kind]):
    """The records of a .json file that is one object of them. A record is decoded when its key is looked up, and only
    what `kind`, a type of msgspec, asks for: few records of a file with millions cost little memory."""

    def __init__(self, path, kind: type[Kind]):
        self.path, self._decoder = path, msgspec.json.Decoder(kind)
        self._records = scan(path, dict[str, msgspec.Raw])

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __getitem__(self, key: str) -> Kind:
        if key not in self._records:
            raise UserError(f"{self.path}: has no record {key}; fetch it again, or the file that names this record")
        with reading(f"{self.path}, record {shown(key)}", "download the file again"):
            return self._decoder.decode(self._records[key])


def scan_records(path, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    """(key, what `kind` asks for) of every record of a .json file that is one object of them, in their order."""
    records = RecordFile(path, kind)
    return ((key, records[key]) for key in records)


def scan_lines(path, kind: type[Kind]) -> Iterator[Kind]:
    """The same of every line of a file with a record a line."""
    decoder = msgspec.json.Decoder(kind)
    for where, line in _lines(path):
        with reading(where, "download the file again"):
            value = decoder.decode(line)
        yield value


def read_annotations(path):
    """The value of an official .json file."""
    try:
        return parse_json(_read(path))
    except ValueError as error:
        raise UserError(f"{path}: is not whole JSON ({reason_of(error)}); fetch it again") from None


def read_list(path) -> list:
    """The value of an official .json file that is a list."""
    value = read_annotations(path)
    if not isinstance(value, list):
        raise UserError(f"{path}: should be a list of records and is a {type(value).__name__}")
    return value


def read_lines(path) -> Iterator[tuple[str, dict]]:
    """(place for messages, record) for every line of a .json, .jsonl or .jsonl.gz file with a record a line."""
    for where, line in _lines(path):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where}: is not whole JSON ({reason_of(error)}); fetch it again") from None
        yield where, record


def read_text(path) -> Iterator[tuple[str, str]]:
    """(place for messages, line without white space around it) for every line of a text file that is not empty."""
    for where, line in _lines(path):
        try:
            yield where, line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: is not UTF-8 text ({error}); download the file again") from None


def read_csv(path) -> Iterator[tuple[str, dict]]:
    """(place for messages, column -> text) for every row of a .csv or .csv.gz file that begins with a header."""
    path = plain_or_packed(path)
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
            raise UserError(f"{where}: has not as many columns as the header; download the file again")
        yield where, record


def _text_lines(path) -> Iterator[str]:
    """The lines of a UTF-8 file, which may begin with the mark of one, with their ends."""
    for number, line in enumerate(byte_lines(path)):
        yield line.decode("utf-8" if number else "utf-8-sig")


class _Plain(ET.TreeBuilder):
    """Refuses a document type, in which a short file can define entities of any length."""

    def doctype(self, name, pubid, system):
        raise ValueError("it has a document type, which no official file has")


def read_xml(path) -> ET.Element:
    """The root of an .xml file."""
    with reading(path, "download it again"):
        return ET.fromstring(_read(path), ET.XMLParser(target=_Plain()))


def _lines(path) -> Iterator[tuple[str, bytes]]:
    """(place for messages, line) of every line with something on it."""
    path = plain_or_packed(path)
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
        line = line[_text_begin(line) if number == 1 else 0 :]
        if line.strip():
            yield f"{path}, line {number}", line


def _text_begin(data) -> int:
    """Where the text begins in the bytes of a file: behind a byte order mark."""
    return len(codecs.BOM_UTF8) if bytes(data[: len(codecs.BOM_UTF8)]) == codecs.BOM_UTF8 else 0


def find_file(folder: Path, name: str) -> Path:
    """An official file of a data set: in its folder, or, as some archives unpack, one or two folders below."""
    path = folder / name
    if plain_or_packed(path).exists() or not folder.is_dir():
        return path
    below = [
        found
        for depth in ("*", "*/*")
        for end in ("", ".gz")
        for found in sorted(folder.glob(f"{depth}/{name}{end}"))
        if not is_stray(str(found.relative_to(folder)))
    ]
    if len(below) > 1:
        raise UserError(f"{folder}: {' and '.join(map(str, below))} are both there; keep one")
    return Path(str(below[0]).removesuffix(".gz")) if below else path


def plain_or_packed(path) -> Path:
    """The file itself, or the same with .gz behind it where only that is there."""
    packed = Path(f"{path}.gz")
    refuse_special_file(path)
    return packed if packed.exists() and not Path(path).exists() else Path(path)


def _read(path) -> bytes:
    refuse_special_file(path)
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it is an official file of the data set") from None


def _missing(path) -> MissingFile:
    return MissingFile(f"{path}: is not there; it is an official file of the data set")


def read_pickle(path):
    """The value of a pickle of plain values, as Python 2 wrote it or later ones do."""
    try:
        return unpickle(_read(path))
    except ValueError as error:
        raise UserError(f"{path}: is not a pickle of plain lists, dicts, texts and numbers ({error})") from None


def read_pickled_list(path) -> list:
    """The value of such a pickle that is a list."""
    value = read_pickle(path)
    if not isinstance(value, list):
        raise UserError(f"{path}: should be a pickled list of records and is a {type(value).__name__}")
    return value


def take(record, key: str, kind, where: str):
    """record[key], which must be of a type (or one of several); else a sentence that names the key."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: should be an object with {key} and is a {type(record).__name__}")
    if key not in record:
        raise UserError(f"{where}: has no {key}; it has {_names(record) or 'nothing'}")
    value = record[key]
    _check(value, key, kind, where)
    return value


def _names(record: dict) -> str:
    """Keys for a message, the first of them where there are many."""
    names = sorted(str(key)[:30] for key in itertools.islice(record, 20))
    return ", ".join(names) + (", ..." if len(record) > 20 else "")


def take_all(record, key: str, kind, where: str) -> list:
    """record[key], which must be a list of values of a type (or one of several)."""
    values = take(record, key, list, where)
    for value in values:
        _check(value, f"a value of {key}", kind, where)
    return values


def _check(value, name: str, kind, where: str) -> None:
    """Refuses a value that is not of a type (or one of several), and numbers that are not finite or beyond 64 bits."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UserError(f"{where}: {name} is {shown(value)}; should be {names}")
    if isinstance(value, int | float) and not isinstance(value, bool) and not is_number(value):
        raise UserError(f"{where}: {name} is {shown(value)}; should be a finite number of at most 64 bits")


def take_box(record, key: str, where: str) -> tuple[float, float, float, float]:
    """A box given as [x, y, width, height] in pixels -> (x1, y1, x2, y2)."""
    values = take(record, key, list, where)
    if len(values) != 4 or not all(map(is_number, values)):
        raise UserError(f"{where}: {key} is {shown(values)}; should be four numbers x, y, width, height")
    x, y, width, height = values
    if width < 0 or height < 0:
        raise UserError(f"{where}: {key} has a width or height below zero ({width} x {height})")
    return float(x), float(y), float(x + width), float(y + height)


def unique(ids, where: str) -> None:
    """Refuses a list in which an id stands twice."""
    seen = set()
    for found in ids:
        if found in seen:
            raise UserError(f"{where}: id {found} stands there twice")
        seen.add(found)
