"""The index of all shards in one file gives the samples that the index of each shard gives, or is made again."""

import os
import pickle
import tarfile

import numpy as np
import pytest
from data_sets import make_dataset, make_samples

from finetune.data.regions import Regions
from shards.common.errors import UserError
from shards.storage import merged_index
from shards.storage.dataset import open_dataset
from shards.storage.merged_index import MAGIC, NAME
from shards.storage.reader import RegionReader
from shards.storage.writer import write_shard


@pytest.fixture
def merging(monkeypatch):
    monkeypatch.setattr(merged_index, "MERGED_FROM", 1)


def contents(folder) -> list[tuple]:
    """Every sample of a folder or pattern, by number."""
    reader = RegionReader(open_dataset(str(folder)))
    return [content(reader, number) for number in range(len(reader))]


def content(reader: RegionReader, number: int) -> tuple:
    sample = reader[number]
    return sample.shard, sample.key, sample.features.tobytes(), sample.captions, sample.info["id"]


def expected(folder, counts, seeds=None) -> list[tuple]:
    """What was written, without any index."""
    return [
        (f"{folder}/part-{shard:05d}.tar", one.key, one.features.tobytes(), one.captions, one.info["id"])
        for shard, count in enumerate(counts)
        for one in make_samples(count, seed=shard if seeds is None else seeds[shard])
    ]


def test_samples_are_those_of_the_tars(tmp_path, merging):
    counts = (3, 1, 4, 1, 5)
    make_dataset(tmp_path, counts)
    assert (tmp_path / NAME).read_bytes().startswith(MAGIC)
    for path in tmp_path.glob("*.index.npz"):
        path.unlink()
    assert contents(tmp_path) == expected(tmp_path, counts)
    assert not list(tmp_path.glob("*.index.npz")), "the merged index alone is read"
    reader = pickle.loads(pickle.dumps(RegionReader(open_dataset(tmp_path), maps=2)))
    assert content(reader, 8) == expected(tmp_path, counts)[8] and reader.maps == 2
    assert [reader.number_of(image) for *_, image in expected(tmp_path, counts)] == list(range(14))
    assert not reader.rows[0].flags.writeable and not reader.rows[0].flags.owndata


def test_few_samples_have_no_merged_index(tmp_path):
    make_dataset(tmp_path)
    assert contents(tmp_path) == expected(tmp_path, (7, 5)) and not (tmp_path / NAME).exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "widths"])
def test_a_damaged_file_is_made_again(tmp_path, merging, damage):
    make_dataset(tmp_path)
    path = tmp_path / NAME
    whole = path.read_bytes()
    damaged = {"cut": whole[:-1], "empty": b"", "foreign": b"x" * len(whole), "widths": whole[:48] + b"\xff" * 8}
    path.write_bytes(damaged[damage])
    assert contents(tmp_path) == expected(tmp_path, (7, 5)) and path.read_bytes() == whole


def test_a_replaced_tar_is_noticed(tmp_path, merging):
    make_dataset(tmp_path)
    (tmp_path / "dataset.json").unlink()
    write_shard(tmp_path / "part-00001.tar", make_samples(6, seed=4))
    assert contents(tmp_path) == expected(tmp_path, (7, 6), (0, 4))
    before = (tmp_path / NAME).read_bytes()
    os.utime(tmp_path / "part-00001.tar", ns=(1, 1))  # another tar of the same size
    assert contents(tmp_path) == expected(tmp_path, (7, 6), (0, 4)) and (tmp_path / NAME).read_bytes() != before


def test_parts_of_a_folder_and_several_folders(tmp_path, merging):
    train = tmp_path / "train"
    make_dataset(train, (3, 2))
    make_dataset(tmp_path / "val", (3, 2), first=2)
    part = [one for one in expected(train, (3, 2)) if one[0].endswith("part-00001.tar")]
    assert contents(train / "part-00001.tar") == part and contents(train) == expected(train, (3, 2))
    regions = Regions(tmp_path)
    found = [content(regions.reader, number)[0] for number in range(8)]
    assert found[:5] == [one[0] for one in expected(train, (3, 2))]
    assert found[5:] == [one[0] for one in expected(tmp_path / "val", (3,), (2,))]


def test_names_that_are_not_ascii(tmp_path, merging):
    make_dataset(tmp_path / "made", (2,))
    with tarfile.open(tmp_path / "made" / "part-00000.tar") as tar, tarfile.open(tmp_path / "a.tar", "w") as other:
        for entry in tar.getmembers():
            data = tar.extractfile(entry)
            entry.name = entry.name.replace("k0_00000", "né").replace("k0_00001", "\udce9" * 40)
            other.addfile(entry, data)
    for _ in range(2):
        reader = RegionReader(open_dataset(tmp_path / "a.tar"))
        assert [reader[0].key, reader[1].key] == ["né", "\udce9" * 40]
        assert list(reader.plain_numbers().values()) == [0, 1] and (tmp_path / NAME).exists()


def test_a_folder_that_cannot_be_written_is_read(tmp_path, merging, monkeypatch):
    make_dataset(tmp_path)
    (tmp_path / NAME).unlink()

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(merged_index, "whole_file", refuse)
    assert contents(tmp_path) == expected(tmp_path, (7, 5)) and not (tmp_path / NAME).exists()


def test_another_number_of_samples_than_described_is_an_error(tmp_path, merging):
    dataset = make_dataset(tmp_path)
    dataset.shards[0].samples += 1
    with pytest.raises(UserError, match=r"part-00000\.tar: contains 7 samples, but 8 according to dataset\.json"):
        RegionReader(dataset)
    dataset.shards[0].samples -= 1
    assert np.array_equal(RegionReader(dataset).ends, [7, 12])
