"""Mutations of a file's bytes, each a function of (bytes, random generator)."""

import gzip
import io
import re
import zipfile

from fuzz.formats import packed_again

DEEP = b"[" * 100_000 + b"]" * 100_000
VALUES = (  # in the place of a value of JSON
    *(b"null", b"true", b'""', b"[]", b"{}", b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"1.5", b'"x"', b"[1]"),
    *(b'"\\ud800"', b'"\\u0000"', b'"' + b"x" * 100_000 + b'"', b"9" * 6000, b"-" + b"9" * 30, b'{"a": 1}', DEEP),
)
_VALUE = re.compile(rb'(?<=[:,\[ ])("[^"\\\n]*"|-?\d[\d.e+-]*|true|false|null|\[[^\[\]{}]*\])(?=[,\]}\s])')
_NUMBER = re.compile(rb"\d+")


def flipped(data: bytes, random) -> bytes:
    changed = bytearray(data)
    for place in random.integers(0, max(len(data), 1), int(random.integers(1, 9))).tolist():
        if changed:
            changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def cut(data: bytes, random) -> bytes:
    return data[: int(random.integers(0, len(data) + 1))]


def doubled(data: bytes, random) -> bytes:
    return data + data


def hole(data: bytes, random) -> bytes:
    """A stretch of zeros, as a disk or a download leaves it."""
    begin = int(random.integers(0, len(data) + 1))
    size = int(random.integers(1, 600))
    return data[:begin] + bytes(min(size, len(data) - begin)) + data[begin + size :]


def other_value(data: bytes, random, value: bytes | None = None) -> bytes:
    """Another value somewhere in JSON; where there is none, somewhere."""
    value = VALUES[int(random.integers(len(VALUES)))] if value is None else value
    places = list(_VALUE.finditer(data)) or [re.match(b"", data)]
    place = places[int(random.integers(len(places)))]
    return data[: place.start()] + value + data[place.end() :]


def other_number(data: bytes, random) -> bytes:
    places = list(_NUMBER.finditer(data))
    if not places:
        return data
    place = places[int(random.integers(len(places)))]
    number = (b"0", b"-1", b"99999999999999999999", b"4294967295", b"inf", b"1e400")[int(random.integers(6))]
    return data[: place.start()] + number + data[place.end() :]


def other_encoding(data: bytes, random) -> bytes:
    try:
        return data.decode().encode(("utf-16", "utf-32", "latin1")[int(random.integers(3))], "replace")
    except UnicodeDecodeError:
        return data[::-1]


def packed(data: bytes, random) -> bytes:
    return packed_again(data)


def inside(data: bytes, random) -> bytes:
    """A mutation of what is packed in a file: of a .gz, or of an entry of a zip."""
    if data[:2] == b"\x1f\x8b":
        return gzip.compress(mutated(gzip.decompress(data), random), mtime=0)
    if data[:4] != b"PK\x03\x04":
        return flipped(data, random)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = list(entries)[int(random.integers(len(entries)))]
    entries[name] = flipped(entries[name], random)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for entry, of in entries.items():
            archive.writestr(entry, of)
    return file.getvalue()


def other_header(data: bytes, random) -> bytes:
    """Flipped bits in a header of a tar, with the checksum that fits them; in other files, anywhere."""
    places = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not places:
        return flipped(data, random)
    at = places[int(random.integers(len(places)))]
    header = bytearray(flipped(data[at : at + 512], random))
    header[148:156] = b" " * 8  # the checksum is computed with spaces in its field
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


MUTATIONS = (
    *(flipped, cut, hole, doubled, other_value, other_value, other_number, other_encoding, other_header),
    *(packed, inside),
)


def mutated(data: bytes, random) -> bytes:
    """One of the mutations."""
    return MUTATIONS[int(random.integers(len(MUTATIONS)))](data, random)
