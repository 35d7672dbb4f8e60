"""Shards whose members are of another type or out of range, and indexes that lie."""

import io
import json
import tarfile

import numpy as np
import pytest
from data_sets import make_dataset, make_samples

from shards.common.errors import UserError
from shards.detectors import detector_of
from shards.images.draw_regions import draw
from shards.images.source_image import image_of
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
        ("json", json.dumps({"box_ids": ["one id", "for", "two regions"]}).encode()),
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
    "changes",
    [
        *({"shards": []}, {"captions": "many"}, {"feature_size": -1}, {"extra": [1]}, {"shards": [{"path": 7}]}),
        *({"extra": {"plan": [1]}}, {"extra": {"class_names": "cat"}}, {"extra": {"class_names": [1]}}),
    ],
)
def test_fields_of_dataset_json_are_checked(tmp_path, changes):
    make_dataset(tmp_path, (3,))
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=r"dataset\.json: does not have the fields of a data set"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("plan", [{"images": 5}, {"images": [["a.png"]]}, {"images": [["a.png", "/x/b.png", 1]]}])
def test_a_plan_of_other_images_opens_none(tmp_path, plan):
    make_dataset(tmp_path, (3,))
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra": {"plan": plan}}))
    sample = RegionReader(open_dataset(str(tmp_path)))[0]
    sample.info["source"] = "/c/1.png"
    image, why = image_of(sample, tmp_path)
    assert image.size == (100, 80) and ("has invalid content" in why or "is outside of the folders" in why)


@pytest.mark.parametrize(("name", "value"), [("max_regions", "many"), ("detector", 7), ("visual_words", None)])
def test_settings_of_a_detector_are_checked(tmp_path, name, value):
    make_dataset(tmp_path, (3,))
    path = tmp_path / "dataset.json"
    plan = {"command": "shards.extract", name: value}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra": {"plan": plan}}))
    with pytest.raises(UserError, match=r"has invalid content.*\$\.\w+|was made with version 1"):
        detector_of(tmp_path, "cpu")


@pytest.mark.parametrize("info", [{"width": 1_000_000, "height": 1_000_000}, {"width": 640.5, "height": 3}, {}])
def test_a_blank_image_is_small_whatever_size_is_stated(tmp_path, monkeypatch, info):
    monkeypatch.setattr("shards.images.source_image.MAX_PIXELS", 1000)
    [sample] = make_samples(1)
    sample.info = info
    image, why = image_of(sample, tmp_path)
    assert why and 1 <= image.width * image.height <= 1000


def test_classes_without_a_name_are_numbered(tmp_path):
    [sample] = make_samples(1, regions=(2, 2))
    draw(sample, tmp_path, ["background"])
    sample.class_ids = sample.class_probs = None
    draw(sample, tmp_path, ["background", "cat"])


def test_a_size_that_is_missing_is_named():
    [sample] = make_samples(1)
    sample.info = {"width": 5}
    assert sample.side("width") == 5
    with pytest.raises(UserError, match=r"has no height in its \.json"):
        sample.side("height")
