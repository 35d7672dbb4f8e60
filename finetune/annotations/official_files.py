"""Readers of official annotation files (JSON, JSON lines, CSV, text, XML, Python 2 pickles).

Error messages name the file and the record.
"""

import codecs
import csv
import itertools
import mmap
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Generic, TypeVar, get_args, get_origin

import msgspec

from finetune.annotations.source_files import note_read, note_search
from shards.common.errors import UserError
from shards.common.files import is_stray, refuse_special_file
from shards.common.untrusted_input import byte_lines, is_number, parse_json, reading, reason_of, shown
from shards.parsing.safe_pickle import unpickle

Kind = TypeVar("Kind")
BROKEN = (msgspec.DecodeError, ValueError, RecursionError)  # errors of decoding


class MissingFile(UserError):
    """An official file does not exist."""


def scan(path, kind: type[Kind]) -> Kind:
    """Decodes a .json file as `kind`, a msgspec type. Fields that it does not declare are skipped, to save memory."""
    refuse_special_file(path)
    note_read(path)
    try:
        with reading(path, "download it again"), open(path, "rb") as file:
            # Not closed here: msgspec.Raw records that are decoded later refer to the mapped memory.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            return msgspec.json.decode(data[_text_begin(data) :], type=kind)
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
    """(location for messages, record) of every record of a list in a .json file.

    Args:
        path: the file.
        key: of the list in the file's object; None if the file is the list.
        name: of a record, for its location.
        kind: msgspec struct with the fields that are needed; others are skipped.
    """
    try:
        records = _raw_list(path, key)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: has invalid content ({reason_of(error)}); download it again") from None
    except BROKEN as error:
        raise UserError(f"{path}: is not valid JSON ({reason_of(error)}); download it again") from None
    decoder = msgspec.json.Decoder(kind)
    for number, record in enumerate(records):
        try:
            value = decoder.decode(record)
        except BROKEN as error:
            raise _explained(bytes(record), kind, f"{path}, {name} {number}", error) from None
        yield f"{path}, {name} {number}", value


def _raw_list(path, key: str | None) -> list[msgspec.Raw]:
    refuse_special_file(path)
    note_read(path)
    try:
        with reading(path, "download it again", error=ValueError), open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise _missing(path) from None
    data = data[_text_begin(data) :]
    if key is None:
        return msgspec.json.decode(data, type=list[msgspec.Raw])
    found = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    if key not in found:
        raise UserError(f"{path}: has no {key}; it has {_names(found) or 'nothing'}")
    return msgspec.json.decode(found[key], type=list[msgspec.Raw])


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
            raise _explained(line, kind, where, error) from None
        yield where, value


def _explained(text: bytes, kind, where: str, error: Exception) -> UserError:
    """The error of a record that does not have the fields of `kind`, with the key and the value."""
    try:
        _check_fields(parse_json(text), kind, where)
    except UserError as found:
        return found
    except ValueError as found:
        return UserError(f"{where}: is not valid JSON ({reason_of(found)}); download the file again")
    return UserError(f"{where}: cannot be read ({reason_of(error)}); download the file again")


def _check_fields(value, kind, where: str) -> None:
    """Raises UserError if a parsed value lacks a field of a struct, or has one of another type, also in lists of it."""
    if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct):
        return
    for field in msgspec.structs.fields(kind):
        name, parts = field.encode_name, get_args(field.type)
        if field.required or (isinstance(value, dict) and name in value):
            item = take(value, name, _plain_types(field.type), where)
            for number, one in enumerate(item if isinstance(item, list) else ()):
                _check(one, f"a value of {name}", _plain_types(parts[0]), where)
                _check_fields(one, parts[0], f"{where}, {name} {number}")
            _check_fields(item, field.type, f"{where}, {name}")


def _plain_types(kind) -> tuple[type, ...]:
    """The types that a parsed JSON value of a msgspec type can have."""
    if isinstance(kind, UnionType):
        return tuple(dict.fromkeys(plain for part in get_args(kind) for plain in _plain_types(part)))
    plain = get_origin(kind) or kind
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        return (dict,)
    return (int, float) if plain is float else (plain,)


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
        line = line[_text_begin(line) if number == 1 else 0 :]
        if line.strip():
            yield f"{path}, line {number}", line


def _text_begin(data) -> int:
    """Offset of the text in the bytes of a file: after the byte order mark, if any."""
    return len(codecs.BOM_UTF8) if bytes(data[: len(codecs.BOM_UTF8)]) == codecs.BOM_UTF8 else 0


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


def take(record, key: str, kind, where: str):
    """record[key]. Raises UserError if it is missing or not of type `kind` (a type, or a tuple of types)."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: should be an object with {key} and is a {type(record).__name__}")
    if key not in record:
        raise UserError(f"{where}: has no {key}; it has {_names(record) or 'nothing'}")
    value = record[key]
    _check(value, key, kind, where)
    return value


def _names(record: dict) -> str:
    """Keys for a message, at most 20."""
    names = sorted(str(key)[:30] for key in itertools.islice(record, 20))
    return ", ".join(names) + (", ..." if len(record) > 20 else "")


def take_all(record, key: str, kind, where: str) -> list:
    """record[key], a list. Raises UserError if one of its values is not of type `kind`."""
    values = take(record, key, list, where)
    for value in values:
        _check(value, f"a value of {key}", kind, where)
    return values


def _check(value, name: str, kind, where: str) -> None:
    """Raises UserError for a value that is not of type `kind`, and for a number that is infinite or exceeds 64 bits."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UserError(f"{where}: {name} is {shown(value)}; should be {names}")
    if isinstance(value, int | float) and not isinstance(value, bool) and not is_number(value):
        raise UserError(f"{where}: {name} is {shown(value)}; should be a finite number of at most 64 bits")


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
