"""Several captions per image: in shards, in dataset.json and captions.txt, from caption files and from features."""

import dataclasses
import json
import pickle
import tarfile

import numpy as np
import pytest
from data_sets import make_dataset, make_samples
from hypothesis import given
from hypothesis import strategies as st

from shards.dataset import finish_dataset, open_dataset, read_captions
from shards.errors import BadSample, UserError
from shards.index import index_path, load_index, saved_index
from shards.items import image_of
from shards.reader import RegionReader
from shards.sample import MEMBERS, decode, encode
from shards.stream import open_stream, read_stream
from shards.texts import TextLists
from shards.writer import write_shard

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\t"), min_size=1)
LISTS = st.lists(st.lists(TEXT, max_size=4).map(tuple))


@given(LISTS)
def test_lists_of_texts_come_back_as_they_were(lists):
    lines = np.frombuffer("".join("\t".join(texts) + "\n" for texts in lists).encode(), np.uint8)
    for packed in (TextLists.of(lists), TextLists.of_lines(lines, tabs=True)):
        assert packed == lists and list(packed) == lists and len(packed) == len(lists)
        assert [packed[n] for n in range(-len(lists), len(lists))] == lists * 2
        assert packed == pickle.loads(pickle.dumps(packed)) and packed != [*lists, ()]
        half = len(lists) // 2
        assert packed.part(0, half) == lists[:half] and packed.part(half, len(lists)) == lists[half:]
        assert TextLists.joined([packed.part(half, len(lists)), packed]) == lists[half:] + lists


def mixed(count=9):
    """Samples with 0, 1, 2, 3 captions, and so on."""
    samples = make_samples(count, per_image=3)
    return [dataclasses.replace(s, captions=s.captions[: n % 4]) for n, s in enumerate(samples)]


def test_a_sample_keeps_all_its_captions_in_the_member_that_fits():
    none, one, two, _ = mixed(4)
    assert {"txt", "captions.json"} & set(encode(none)) == set()
    assert encode(one)["txt"].decode() == one.captions[0] and "captions.json" not in encode(one)
    assert json.loads(encode(two)["captions.json"]) == list(two.captions) and "txt" not in encode(two)
    assert [decode("k", encode(s), "x.tar").captions for s in (none, one, two)] == [(), one.captions, two.captions]


def test_a_text_file_of_several_lines_is_one_caption():
    members = encode(make_samples(1)[0]) | {"txt": b"a cat\non a mat\n"}
    assert decode("k", members, "x.tar").captions == ("a cat\non a mat",)


@pytest.mark.parametrize("damaged", [b"[1, 2]", b'"a cat"', b'["a cat"', b"\xff"])
def test_captions_that_are_no_list_of_texts_are_named(damaged, tmp_path):
    members = encode(mixed(4)[2]) | {"captions.json": damaged}
    with pytest.raises(
        BadSample, match=r"x\.tar: k has a \.json, \.txt or \.captions\.json member that cannot be read"
    ):
        decode("k", members, "x.tar")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            (tmp_path / "member").write_bytes(data)
            tar.add(tmp_path / "member", f"k.{name}")
    with pytest.raises(UserError, match=r"a\.tar: k\.captions\.json .*; make the shard again"):
        open_dataset(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("described", [True, False])
def test_all_ways_of_reading_give_all_captions(tmp_path, described, http_folder):
    """Random access and streams, with dataset.json and captions.txt and without."""
    samples = mixed()
    write_shard(tmp_path / "part-0.tar", samples[:5])
    write_shard(tmp_path / "part-1.tar", samples[5:])
    if described:
        finish_dataset(tmp_path, sorted(tmp_path.glob("*.tar")), detector="random", num_classes=9, extra={})
        assert (tmp_path / "captions.txt").read_text().split("\n")[3] == "\t".join(samples[3].captions)
    else:
        for path in tmp_path.glob("*.npz"):
            path.unlink()
    wanted = [sample.captions for sample in samples]
    dataset = open_dataset(str(tmp_path))
    assert (dataset.captions, dataset.captioned, dataset.several) == (12, 6, True)
    assert read_captions(dataset) == wanted
    assert [RegionReader(dataset)[n].captions for n in range(9)] == wanted
    assert read_captions(open_dataset(str(tmp_path / "part-1.tar"))) == wanted[5:]
    remote, captions = open_stream(f"{http_folder(tmp_path)}/part-{{0..1}}.tar")
    assert (remote.captions, remote.captioned) == (12, 6) and captions == wanted
    assert [s.captions for shard in dataset.shards for s in read_stream(shard.path)] == wanted


def test_only_data_sets_with_several_captions_have_the_new_format(tmp_path):
    """Readers of format 1 would take the captions of a line for one long caption."""
    make_dataset(tmp_path / "one")
    make_dataset(tmp_path / "two", per_image=2)
    one, two = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("one", "two"))
    assert one["format"] == 1 and one["captions"] == 12 and "captioned" not in one
    assert two["format"] == 2 and (two["captions"], two["captioned"]) == (24, 12)
    (tmp_path / "two" / "dataset.json").write_text(json.dumps(two | {"format": 3}))
    with pytest.raises(UserError, match="format 3 is neither 1 nor 2"):
        open_dataset(str(tmp_path / "two"))


def test_a_tab_in_captions_of_format_1_divides_nothing(tmp_path):
    make_dataset(tmp_path, (2,))
    (tmp_path / "captions.txt").write_text("a\tb\nc\n")
    assert read_captions(open_dataset(str(tmp_path))) == [("a\tb",), ("c",)]


def as_before(path, sha256: str):
    """Rewrites an index as versions without several captions saved it."""
    index = load_index(path)
    values = {name: value for name, value in vars(index).items() if name != "path"}
    np.savez(index_path(path), **values | {"members": index.members[:, :6], "sha256": sha256})


def test_indexes_of_earlier_versions_are_read_where_they_are_enough(tmp_path):
    write_shard(tmp_path / "a.tar", make_samples(3))
    index = load_index(tmp_path / "a.tar")
    as_before(tmp_path / "a.tar", index.sha256)
    assert np.array_equal(saved_index(tmp_path / "a.tar").members, index.members)
    write_shard(tmp_path / "b.tar", make_samples(3, per_image=2))
    as_before(tmp_path / "b.tar", "")  # of a scan, which did not know what it saw
    assert saved_index(tmp_path / "b.tar") is None
    assert load_index(tmp_path / "b.tar").members[:, MEMBERS.index("captions.json"), 1].all()


def test_earlier_versions_read_the_index_of_one_caption_per_image(tmp_path):
    write_shard(tmp_path / "a.tar", make_samples(3))
    with np.load(index_path(tmp_path / "a.tar")) as saved:
        assert saved["members"].shape == (3, 6, 2)


def test_a_record_with_a_list_keeps_all_its_captions():
    item = {
        "features": np.ones((1, 4), "f4"),
        "boxes": np.ones((1, 4), "f4"),
        "num_boxes": 1,
        "image_h": 9,
        "image_w": 9,
    }
    assert image_of(item | {"caption": [b"a cat", " ", "a dog "]}, "k").captions == ("a cat", "a dog")
    assert image_of(item | {"caption": "a cat"}, "k").captions == ("a cat",)
    assert image_of(item, "k").captions == ()
