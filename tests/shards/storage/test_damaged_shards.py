"""Shards whose members are of another type or out of range, and indexes that lie."""

import io
import json
import tarfile

import numpy as np
import pytest
from data_sets import make_dataset, make_samples

from shards.common.errors import UserError
from shards.storage.dataset import open_dataset
from shards.storage.index import index_path
from shards.storage.reader import RegionReader
from shards.storage.sample import check_values
from shards.storage.writer import write_shard


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def rewritten(path, name: str, data: bytes) -> None:
    """A tar with other bytes in the member of this suffix of its first sample."""
    with tarfile.open(path) as tar:
        members = [(entry.name, tar.extractfile(entry).read()) for entry in tar]
    first = members[0][0].partition(".")[0]
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            content = data if member == f"{first}.{name}" else content
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def header(text: str) -> bytes:
    """An npy file with a header of this text."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("features.npy", npy(np.full((2, 12), "a"))),
        ("features.npy", npy(np.zeros((2, 12), "V2"))),
        ("features.npy", npy(np.zeros((2, 12), bool))),
        ("features.npy", npy(np.zeros((2, 12), complex))),
        ("features.npy", npy(np.zeros((2, 12), object))),
        ("features.npy", npy(np.zeros((2, 12), np.int32))),
        ("features.npy", header("{'descr': '<f2', 'fortran_order': False, 'shape': (4294967296, 4294967296)}")),
        ("features.npy", header("{'descr': '<f2', 'fortran_order': False, 'shape': (-1, 12)}")),
        ("features.npy", header("{'descr': '<f2', 'shape': (")),
        ("features.npy", header("(" * 300)),
        ("features.npy", header("-" * 9000)),
        ("boxes.npy", npy(np.full((2, 4), np.nan, np.float32))),
        ("boxes.npy", npy(np.full((2, 4), 7, np.float32))),
        ("boxes.npy", npy(np.array([[0.5, 0, 0.1, 1]] * 2, np.float32))),
        ("class_ids.npy", npy(np.zeros((2, 3), np.float32))),
        ("class_probs.npy", npy(np.full((2, 3), -0.5, np.float16))),
        ("class_probs.npy", npy(np.full((2, 3), np.nan, np.float16))),
        ("class_probs.npy", npy(np.full((2, 3), np.inf, np.float16))),
        ("json", b"[" * 100_000),
        ("json", b"7"),
        ("json", json.dumps({"id": 1, "width": "wide"}).encode()),
        ("json", json.dumps({"id": 1, "source": ["a"]}).encode()),
        ("json", b'{"width": 1e999}'),
        ("json", b'{"id": "\\ud800"}'),
    ],
)
def test_a_damaged_member_is_named_and_the_others_are_read(tmp_path, name, data):
    path = make_dataset(tmp_path, (3,), regions=(2, 2)).shards[0].path
    rewritten(path, name, data)
    for other in (index_path(path), tmp_path / "dataset.json"):
        other.unlink()
    reader, bad = RegionReader(open_dataset(str(tmp_path))), []
    for number in range(3):
        try:
            check_values(reader[number])
        except UserError as error:
            bad.append(str(error))
    assert len(bad) == 1 and "k0_00000" in bad[0]


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan, np.inf])
def test_class_probabilities_that_are_none_are_not_written(tmp_path, value):
    [sample] = make_samples(1, regions=(2, 2))
    sample.class_probs[1, 0] = value
    with pytest.raises(UserError, match="class probabilities that are NaN or outside 0 to 1"):
        write_shard(tmp_path / "a.tar", [sample])


@pytest.mark.parametrize(
    "changes",
    [
        {"members": np.zeros((3, 6, 2), np.float64)},
        {"members": np.full((3, 6, 2), 2**62)},
        {"members": np.full((3, 6, 2), -5)},
        {"keys": np.array([1, 2, 3])},
        {"ids": np.array(["a"])},
        {"bytes": np.array("many")},
    ],
)
def test_an_index_that_lies_is_made_again(tmp_path, changes):
    path = make_dataset(tmp_path, (3,)).shards[0].path
    with np.load(index_path(path)) as saved:
        values = dict(saved)
    np.savez(index_path(path), **values | changes)
    reader = RegionReader(open_dataset(str(tmp_path)))
    assert [reader[number].key for number in range(3)] == ["k0_00000", "k0_00001", "k0_00002"]


@pytest.mark.parametrize(
    "changes", [{"shards": []}, {"captions": "many"}, {"feature_size": -1}, {"extra": [1]}, {"shards": [{"path": 7}]}]
)
def test_fields_of_dataset_json_are_checked(tmp_path, changes):
    make_dataset(tmp_path, (3,))
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=r"dataset\.json: does not have the fields of a data set"):
        open_dataset(str(tmp_path))
