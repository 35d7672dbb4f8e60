"""Records of JSON files: decoded as msgspec structs, with messages that name the record, the key and the value."""

import codecs
import itertools
import mmap
from collections.abc import Iterator
from types import UnionType
from typing import TypeVar, get_args, get_origin

import msgspec

from shards.common.errors import UserError
from shards.common.untrusted_input import is_number, parse_json, reason_of, refuse_special_file, shown

Kind = TypeVar("Kind")
BROKEN = (msgspec.DecodeError, ValueError, RecursionError)  # errors of decoding


def decode_file(path, kind: type[Kind]) -> Kind:
    """Decodes a JSON file as `kind`, a msgspec type. Fields that it does not declare are skipped, to save memory."""
    with open(path, "rb") as file:
        # Not closed here: msgspec.Raw records that are decoded later refer to the mapped memory.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return msgspec.json.decode(data[text_begin(data) :], type=kind)


def read_list(path, key: str | None, name: str, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    """(location for messages, record) of every record of a list in a .json file.

    Args:
        path: the file.
        key: of the list in the file's object; None if the file is the list.
        name: of a record, for its location.
        kind: msgspec struct with the fields that are needed; others are skipped.

    Raises:
        UserError: the file or a record is not of this form.
        FileNotFoundError: there is no such file.
    """
    refuse_special_file(path)
    try:
        records = _raw_list(path, key)
    except msgspec.ValidationError as error:
        expected = f"should be an object with a list of {key}" if key else "should be a list"
        raise UserError(f"{path}: {expected} ({reason_of(error)}); download it again") from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
    except BROKEN as error:
        raise UserError(f"{path}: is not valid JSON ({reason_of(error)}); download it again") from None
    decoder = msgspec.json.Decoder(kind)
    for number, record in enumerate(records):
        try:
            value = decoder.decode(record)
        except BROKEN as error:
            raise explained(bytes(record), kind, f"{path}, {name} {number}", error) from None
        yield f"{path}, {name} {number}", value


def _raw_list(path, key: str | None) -> list[msgspec.Raw]:
    if key is None:
        return decode_file(path, list[msgspec.Raw])
    found = decode_file(path, dict[str, msgspec.Raw])
    if key not in found:
        raise UserError(f"{path}: has no {key}; it has {_names(found) or 'nothing'}")
    return msgspec.json.decode(found[key], type=list[msgspec.Raw])


def explained(text: bytes, kind, where: str, error: Exception) -> UserError:
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


def text_begin(data) -> int:
    """Offset of the text in the bytes of a file: after the byte order mark, if any."""
    return len(codecs.BOM_UTF8) if bytes(data[: len(codecs.BOM_UTF8)]) == codecs.BOM_UTF8 else 0


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
