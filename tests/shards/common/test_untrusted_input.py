"""What all readers share: reasons, limits of what is unpacked, JSON and numbers."""

import gzip
import zipfile
import zlib

import msgspec
import numpy as np
import pytest

from finetune.annotations.official_files import read_lines, read_text, read_xml
from shards.common import untrusted_input as module
from shards.common.errors import UserError
from shards.common.files import read_json
from shards.common.untrusted_input import (
    byte_lines,
    check_fields,
    check_pixels,
    is_number,
    parse_json,
    read_arrays,
    reading,
    shown,
    whole_number,
)
from shards.importers.tsv import TSV


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 5000, "a number has thousands of digits"),
        ("[NaN]", "it contains NaN instead of a number"),
        ('{"a": -Infinity}', "it contains -Infinity instead of a number"),
        ("[-1e999]", "the number -1e999 is too large"),
        ('"\\ud83d"', "lone surrogate"),
        (b'{"\\uDC00": 1}', "lone surrogate"),
        (b"\xff\xfe\xfd", "decode"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_none(text, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        parse_json(text)
    (tmp_path / "a.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=r"a\.json: is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_json_that_is_some():
    assert parse_json('"\\ud83d\\ude00 \\\\ud800"') == "😀 \\ud800"
    assert parse_json(b"\xef\xbb\xbf[1e9, -2.5]") == [1e9, -2.5]
    assert np.isnan(parse_json("NaN", finite=False)) and parse_json("1e999", finite=False) == np.inf


def test_numbers():
    good, bad = (0, -1.5, 2**62), (True, "1", None, np.nan, np.inf, -np.inf, 2**64, 10**400)
    assert all(map(is_number, good)) and not any(map(is_number, bad))
    assert whole_number(np.array(7.0)) == 7 and whole_number("12") == 12
    for value in (np.inf, np.nan, "x", None, [1, 2], 10**30, -(10**30)):
        with pytest.raises(ValueError):
            whole_number(value)


def test_boxes_in_pixels():
    for boxes in (np.empty((0, 4)), np.array([[0, 0, 1, 1.5]]), np.array([[0, 0, 1, 1], [0, 0, 9, 9]])):
        check_pixels(boxes, "a.csv: all boxes", "in pixels")
    with pytest.raises(UserError, match=r"a\.csv: all boxes are between 0 and 1; they should be in pixels"):
        check_pixels(np.array([[0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]]), "a.csv: all boxes", "in pixels")


def test_values_in_messages_are_short():
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in ("x" * 100_000, list(range(9999)), deep, 10**9999, "\ud800", {str(n): deep for n in range(99)}):
        assert len(shown(value).encode()) < 500


def test_whatever_a_library_raises_is_one_sentence():
    for error in (zlib.error("x"), MemoryError(), RecursionError(), KeyError("a"), OSError(5, "Input/output error")):
        with pytest.raises(UserError, match=r"^a\.bin: cannot be read \(.+\); do this$"), reading("a.bin", "do this"):
            raise error
    with pytest.raises(UserError, match=r"^as it is$"), reading("a.bin"):
        raise UserError("as it is")


def test_fields():
    class Fields(msgspec.Struct):
        a: int

    assert check_fields({"a": 1, "b": 2}, Fields, "x") == {"a": 1, "b": 2}
    for value in ({}, {"a": "1"}, [], {"a": 1.5}, {"a": 10**30}, None):
        with pytest.raises(UserError, match="x: has invalid content"):
            check_fields(value, Fields, "x")


@pytest.mark.parametrize(("line", "megabytes"), [(b"", 30), (b"\n", 2)])
def test_a_gz_that_unpacks_to_very_much_is_left_at_a_limit(tmp_path, monkeypatch, line, megabytes):
    """Of 30 MB in 30 KB, or 2 MB of lines in 2 KB, no more than the limit is ever in memory."""
    monkeypatch.setattr(module, "ALLOWANCE", 1 << 16)
    monkeypatch.setattr(module, "LONGEST_LINE", 1 << 22)
    packed = gzip.compress((line or b"x") * (megabytes << 20))
    for name in ("a.jsonl.gz", "a.txt.gz", "a.tsv.gz"):
        (tmp_path / name).write_bytes(packed)
    with pytest.raises(ValueError, match="more than 100 times its size" if line else "a line is longer than 4 MB"):
        list(byte_lines(tmp_path / "a.jsonl.gz"))
    for read in (lambda: list(read_lines(tmp_path / "a.jsonl.gz")), lambda: list(read_text(tmp_path / "a.txt.gz"))):
        with pytest.raises(UserError, match=r"\.gz, after line \d+: cannot be read"):
            read()
    if line:
        source = TSV(tmp_path / "a.tsv.gz")
        with pytest.raises(UserError, match="expands to more than 100 times its size"):
            [record for part in source.parts(10) for record in source.records(part)]


@pytest.mark.parametrize("place", [5, 40, -9])
def test_a_damaged_gz_is_a_sentence(tmp_path, place):
    packed = bytearray(gzip.compress(b'{"a": 1}\n' * 5000))
    packed[place] ^= 0xFF
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"cannot be read|JSON"):
        if len(list(read_lines(tmp_path / "a.jsonl.gz"))) == 5000:
            raise UserError("cannot be read: what was changed is not part of the text")


def test_arrays_that_unpack_to_very_much_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1 << 25))
    with pytest.raises(UserError, match="it expands to 256 MB, more than 100 times its size"):
        read_arrays(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", a=np.arange(5))
    assert read_arrays(tmp_path / "b.npz")["a"].tolist() == [0, 1, 2, 3, 4]
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00\xff\xff(((")
    with pytest.raises(UserError, match=r"c\.npz: cannot be read"):
        read_arrays(tmp_path / "c.npz")


ENTITIES = '<!DOCTYPE a [<!ENTITY b "{}">{}]><a>&z;</a>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_entities_is_refused(tmp_path, encoding):
    """A kilobyte of entities that refer to each other is gigabytes of text."""
    chain = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("bcdefgh", "cdefghz", strict=True))
    (tmp_path / "a.xml").write_bytes(ENTITIES.format("x" * 100, chain).encode(encoding))
    with pytest.raises(UserError, match="it has a document type, which no official file has"):
        read_xml(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_bytes("<a><b>1</b></a>".encode(encoding))
    assert read_xml(tmp_path / "a.xml").findtext("b") == "1"
