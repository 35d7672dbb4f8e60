"""Region shards: what is written is read back, in place and as a stream, and damage is named."""

import dataclasses
import json
import os
import tarfile
from itertools import pairwise

import numpy as np
import pytest
import webdataset
from data_sets import make_dataset, make_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.common.errors import UserError
from shards.storage.dataset import (
    UNFINISHED,
    begin_dataset,
    checksum_errors,
    open_dataset,
    read_captions,
)
from shards.storage.epoch_order import epoch_order
from shards.storage.index import index_path, load_index
from shards.storage.reader import RegionReader
from shards.storage.sample import Sample, encode
from shards.storage.stream import Stretch, open_stream, read_stream, stream_ranges
from shards.storage.writer import safe_key, write_shard


def same(a: Sample, b: Sample) -> bool:
    def equal(x, y):
        return (x is None and y is None) or np.array_equal(x, np.asarray(y, x.dtype))

    return (
        (a.key, a.info, a.captions) == (b.key, b.info, b.captions)
        and equal(a.features, b.features)
        and equal(a.boxes, b.boxes)
        and equal(a.class_ids, b.class_ids)
        and equal(a.class_probs, b.class_probs)
    )


@pytest.mark.parametrize("options", [{}, {"classes": 0}, {"captions": False}])
def test_what_is_written_is_read_back(tmp_path, options):
    make_dataset(tmp_path, (7, 5), **options)
    written = make_samples(7, seed=0, **options) + make_samples(5, seed=1, **options)
    reader = RegionReader(open_dataset(str(tmp_path)))
    assert len(reader) == 12
    assert all(same(reader[number], sample) for number, sample in enumerate(written))
    streamed = [sample for shard in reader.dataset.shards for sample in read_stream(shard.path)]
    assert all(same(a, b) for a, b in zip(streamed, written, strict=True))
    assert reader.number_of("image.1.3") == 10
    with pytest.raises(KeyError):
        reader.number_of("image.9.9")


def test_webdataset_reads_the_shards(tmp_path):
    make_dataset(tmp_path)
    pattern = str(tmp_path / "part-{00000..00001}.tar")
    theirs = list(webdataset.WebDataset(pattern, shardshuffle=False).decode())
    ours = RegionReader(open_dataset(pattern))
    assert [x["__key__"] for x in theirs] == [ours[n].key for n in range(len(ours))]
    assert all(np.array_equal(x["features.npy"], ours[n].features) for n, x in enumerate(theirs))
    assert all((x["txt"],) == ours[n].captions for n, x in enumerate(theirs))


def test_arrays_are_views_of_the_file(tmp_path):
    make_dataset(tmp_path)
    features = RegionReader(open_dataset(str(tmp_path)))[0].features
    assert not features.flags.owndata and not features.flags.writeable


def test_equal_samples_give_equal_bytes(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, make_samples(4))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_foreign_tars_are_scanned_once_and_give_the_same(tmp_path):
    known = make_dataset(tmp_path)
    for path in [*tmp_path.glob("*.npz"), tmp_path / "dataset.json", tmp_path / "captions.txt"]:
        path.unlink()
    dataset = open_dataset(str(tmp_path))
    assert dataset.counts.tolist() == [7, 5]
    assert (dataset.feature_size, dataset.num_classes, dataset.captions) == (12, 9, 12)
    assert read_captions(dataset) == [s.captions for s in make_samples(7, seed=0) + make_samples(5, seed=1)]
    assert index_path(dataset.shards[0].path).exists()
    assert np.array_equal(load_index(known.shards[1].path).members, RegionReader(dataset).rows[1]["members"])


def test_part_of_a_data_set_has_the_captions_of_that_part(tmp_path):
    make_dataset(tmp_path)
    dataset = open_dataset(str(tmp_path / "part-00001.tar"))
    assert read_captions(dataset) == [sample.captions for sample in make_samples(5, seed=1)]


def test_long_and_odd_names_survive(tmp_path):
    sample = dataclasses.replace(make_samples(1)[0], key=safe_key("x" * 180 + "/ÿ.b c"), captions=("zwei\nZeilen ÿ",))
    write_shard(tmp_path / "a.tar", [sample])
    reader = RegionReader(open_dataset(str(tmp_path / "a.tar")))
    assert same(reader[0], sample)
    assert read_captions(reader.dataset) == [("zwei Zeilen ÿ",)]
    assert next(iter(read_stream(str(tmp_path / "a.tar")))).key == sample.key


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # the same word in Unicode's forms NFC and NFD


@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])
def test_ids_with_accents_are_found_in_either_form(tmp_path, stored):
    """File names of macOS are decomposed, and were ids in shards of earlier versions; annotations are composed."""
    write_shard(tmp_path / "a.tar", [dataclasses.replace(make_samples(1)[0], info={"id": stored})])
    reader = RegionReader(open_dataset(str(tmp_path / "a.tar")))
    assert list(reader.plain_numbers()) == [COMPOSED]
    assert reader.number_of(COMPOSED) == reader.number_of(DECOMPOSED) == reader.number_of(f"b/{COMPOSED}.jpg") == 0
    with pytest.raises(KeyError):
        reader.number_of("cafe")


def repacked(source, path, order, rename=str):
    """A region shard's members as another program packs them."""
    with tarfile.open(source) as tar, tarfile.open(path, "w") as other:
        for entry in order(tar.getmembers()):
            data = tar.extractfile(entry)
            entry.name = rename(entry.name)
            other.addfile(entry, data)


def test_members_of_a_shard_may_come_in_any_order_where_it_can_be_searched(tmp_path):
    samples = make_samples(4)
    write_shard(tmp_path / "a.tar", samples)
    repacked(tmp_path / "a.tar", tmp_path / "b.tar", lambda entries: sorted(entries, key=lambda e: e.name[::-1]))
    reader = RegionReader(open_dataset(str(tmp_path / "b.tar")))
    assert len(reader) == 4 and read_captions(reader.dataset) == [sample.captions for sample in samples]
    with pytest.raises(
        UserError, match=r"b\.tar: .* is not adjacent to the other members of k0_\d+; make the tar again"
    ):
        list(read_stream(str(tmp_path / "b.tar")))


def test_keys_of_other_programs_may_have_dots_and_macos_may_have_been_at_work(tmp_path):
    samples = make_samples(3)
    write_shard(tmp_path / "a.tar", samples)
    repacked(tmp_path / "a.tar", tmp_path / "b.tar", list, lambda name: f"./www.site.{name}")
    with tarfile.open(tmp_path / "b.tar", "a") as tar:
        for name in ("./._www.site.k0_00000.features.npy", "./www.site.k0_00002.foo.npy"):
            tar.addfile(tarfile.TarInfo(name))
    for read in (list(RegionReader(open_dataset(str(tmp_path / "b.tar")))), list(read_stream(str(tmp_path / "b.tar")))):
        assert [sample.key for sample in read] == [f"./www.site.{sample.key}" for sample in samples]
        assert [sample.captions for sample in read] == [sample.captions for sample in samples]


@pytest.mark.parametrize("key", ["a", "x" * 87, "x" * 88, "x" * 300, "ÿ" * 44])
def test_any_tar_program_finds_every_member(tmp_path, key):
    """A header of the old kind has room for 100 bytes, which KEY.features.npy has with a key of 87."""
    sample = dataclasses.replace(make_samples(1)[0], key=key)
    write_shard(tmp_path / "a.tar", [sample])
    with tarfile.open(tmp_path / "a.tar") as tar:
        found = {entry.name: tar.extractfile(entry).read() for entry in tar}
        assert all(entry.mode == 0o644 for entry in tar)
    assert found == {f"{key}.{name}": data for name, data in encode(sample).items()}


@pytest.mark.parametrize("cut", [0, 1, 600, 5000])
def test_a_cut_tar_is_named(tmp_path, cut):
    """Cut inside its last member, or right behind it, where only the end mark is missing."""
    dataset = make_dataset(tmp_path)
    path = dataset.shards[1].path
    end_of_data = load_index(path).members.sum(-1).max()
    os.truncate(path, -(-end_of_data // 512) * 512 - cut)
    with pytest.raises(UserError, match=r"part-00001\.tar: has \d+ bytes"):
        open_dataset(str(tmp_path))
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"part-00001\.tar"):
        open_dataset(str(tmp_path))


def test_a_stream_that_breaks_off_is_named(tmp_path):
    path = make_dataset(tmp_path).shards[0].path
    os.truncate(path, 3000)
    with pytest.raises(UserError, match=r"part-00000\.tar"):
        list(read_stream(path))


def test_a_flipped_byte_is_found_by_its_checksum(tmp_path):
    dataset = make_dataset(tmp_path)
    assert list(checksum_errors(dataset)) == []
    with open(dataset.shards[0].path, "r+b") as file:
        file.seek(2000)
        byte = file.read(1)
        file.seek(2000)
        file.write(bytes([byte[0] ^ 1]))
    assert [line.split(":")[0] for line in checksum_errors(dataset)] == [dataset.shards[0].path]


def test_a_folder_that_was_not_finished_is_refused(tmp_path):
    begin_dataset(tmp_path, {"images": 1})
    with pytest.raises(UserError, match="is incomplete"):
        open_dataset(str(tmp_path))
    write_shard(tmp_path / "part-00000.tar", make_samples(3))
    with pytest.raises(UserError, match="is incomplete"):
        open_dataset(str(tmp_path))
    with pytest.raises(UserError, match="other settings"):
        begin_dataset(tmp_path, {"images": 2})
    begin_dataset(tmp_path, {"images": 1})
    assert json.loads((tmp_path / UNFINISHED).read_text()) == {"images": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": np.zeros((0, 12)), "boxes": np.zeros((0, 4))}, "no regions"),
        ({"features": np.full((2, 12), np.nan), "boxes": np.zeros((2, 4))}, "not finite"),
        ({"features": np.full((2, 12), 1e6), "boxes": np.zeros((2, 4))}, "not finite in float16"),
        ({"features": np.zeros((2, 12)), "boxes": np.zeros((3, 4))}, "boxes of shape"),
    ],
)
def test_samples_that_no_reader_could_use_are_not_written(tmp_path, changes, words):
    sample = dataclasses.replace(make_samples(1)[0], class_ids=None, class_probs=None, **changes)
    with pytest.raises(UserError, match=words):
        write_shard(tmp_path / "a.tar", [sample])
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="duplicate key"):
        write_shard(tmp_path / "a.tar", make_samples(1) * 2)


def test_a_tar_without_regions_is_named(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    with pytest.raises(UserError, match=r"a\.tar: contains no region features"):
        open_dataset(str(tmp_path))


counts = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(sum)


@settings(max_examples=100, deadline=None)
@given(counts, st.integers(0, 5), st.integers(1, 50))
def test_an_epochs_order_holds_every_sample_once(counts, epoch, window):
    order = epoch_order(counts, seed=3, epoch=epoch, window=window)
    assert sorted(order.tolist()) == list(range(sum(counts)))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order([50, 50], seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_window_keeps_reading_local():
    """And mixes shards all the same: they come in another order in each epoch."""
    routes = []
    for epoch in range(2):
        order = epoch_order([10] * 100, seed=0, epoch=epoch, window=20)
        shards = [np.unique(part // 10).tolist() for part in order.reshape(-1, 20)]
        assert all(len(pair) == 2 for pair in shards)
        routes.append(shards)
    near = [abs(a - b) == 1 for route in routes for a, b in route]
    assert sum(near) < 10 and routes[0] != routes[1]


@settings(max_examples=100, deadline=None)
@given(counts, st.integers(1, 9), st.integers(0, 3), st.randoms(use_true_random=False))
def test_stretches_of_a_stream_are_disjoint_and_whole(counts, readers, epoch, random):
    """Whatever part of the samples is wanted, and wherever the readers' stretches begin and end."""
    member = np.array([random.random() < 0.7 for _ in range(sum(counts))])
    total = int(member.sum())
    cuts = [0, *sorted(random.randint(0, total) for _ in range(readers - 1)), total]
    begins = np.concatenate([[0], np.cumsum(counts)])
    seen = []
    for low, high in pairwise(cuts):
        rows = [(s, r) for s, part in stream_ranges(member, counts, 0, epoch, low, high) for r in part.tolist()]
        assert len(rows) == high - low
        seen += [int(begins[shard]) + row for shard, row in rows]
    assert sorted(seen) == np.flatnonzero(member).tolist()


@pytest.mark.parametrize("readers", [1, 3, 8])
def test_one_shard_and_many_readers(tmp_path, readers):
    make_dataset(tmp_path, (13,))
    dataset = open_dataset(str(tmp_path))
    reader = RegionReader(dataset)
    member = np.ones(13, bool)
    member[4] = False
    seen = []
    for part in range(readers):
        low, high = 12 * part // readers, 12 * (part + 1) // readers
        stretch = Stretch(dataset, 0, 0, member, low, high, part, buffer=4)
        planned = list(stretch.numbers())
        for number, sample in stretch.samples():
            assert number == planned.pop(0)
            assert same(sample, reader[number])
            seen.append(number)
    assert sorted(seen) == [n for n in range(13) if n != 4]
    assert seen != sorted(seen)


def test_streams_without_a_description_are_read_through_once(tmp_path, capsys):
    make_dataset(tmp_path)
    remote, captions = open_stream(f"pipe:cat {tmp_path}/part-0000{{0..1}}.tar")
    assert "reading 2 streams once" in capsys.readouterr().out
    assert remote.counts.tolist() == [7, 5]
    assert (remote.feature_size, remote.num_classes, remote.captions) == (12, 9, 12)
    assert captions == [sample.captions for sample in make_samples(7, seed=0) + make_samples(5, seed=1)]
    seen = sorted(number for number, _ in Stretch(remote, 0, 0, np.ones(12, bool), 0, 12).samples())
    assert seen == list(range(12))


def test_streams_with_a_description_are_opened_without_reading_them(tmp_path, capsys, http_folder):
    local = make_dataset(tmp_path)
    remote, captions = open_stream(f"{http_folder(tmp_path)}/part-0000{{0..1}}.tar")
    assert capsys.readouterr().out == ""
    assert remote.counts.tolist() == [7, 5] and remote.shards[1].sha256 == local.shards[1].sha256
    assert captions == read_captions(local)
    one, captions = open_stream(f"{http_folder(tmp_path)}/part-00001.tar")
    assert one.counts.tolist() == [5] and captions == read_captions(local)[7:]
    with pytest.raises(UserError, match="part-00007"):
        open_stream(f"{http_folder(tmp_path)}/part-00007.tar")


def test_few_shards_are_mapped_at_a_time_and_samples_in_use_stay_whole(tmp_path):
    """Each map takes a file descriptor; Conceptual Captions makes 3,100 shards."""
    make_dataset(tmp_path, (3,) * 7)
    dataset = open_dataset(str(tmp_path))
    few, many = RegionReader(dataset, maps=2), RegionReader(dataset)
    numbers = [*range(21), *range(0, 21, 5), *reversed(range(21))]
    held = [few[number] for number in numbers]  # all in use at once: of five shards the samples are copies
    assert len(few._maps) == 2
    assert all(same(sample, many[number]) for number, sample in zip(numbers, held, strict=True))
    held.clear()
    for number in numbers:
        assert same(few[number], many[number])
        assert few.shard_of(number) in few._maps and len(few._maps) == 2
