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
from PIL import Image

from shards.common.errors import BadSample, UserError
from shards.images.caption_files import read_caption_file
from shards.importing.record_parsing import image_of
from shards.storage.dataset import finish_dataset, open_dataset, read_captions
from shards.storage.index import index_path, load_index, saved_index
from shards.storage.reader import RegionReader
from shards.storage.sample import MEMBERS, decode, encode
from shards.storage.stream import open_stream, read_stream
from shards.storage.text_lists import TextLists
from shards.storage.writer import write_shard

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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_text_file_of_another_program_is_read_in_its_encoding(encoding):
    members = encode(make_samples(1)[0]) | {"txt": "un caf\u00e9".encode(encoding)}
    assert decode("k", members, "x.tar").captions == ("un caf\u00e9",)


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
    dataset = open_dataset(tmp_path)
    assert (dataset.captions, dataset.captioned, dataset.has_several_captions) == (12, 6, True)
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
    with pytest.raises(UserError, match="unsupported format 3; this version reads 1 and 2"):
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


# --- files of captions


def karpathy(path, coco=False):
    """Images 1 to 4 of the splits train, restval, val and test, with two captions each."""
    images = []
    for number, split in enumerate(("train", "restval", "val", "test"), 1):
        name = f"COCO_val2014_{number:012d}.jpg" if coco else f"{number}.jpg"
        sentences = [{"raw": f"caption {n} of {number} ", "sentid": n} for n in range(2)]
        images.append({"filename": name, "split": split, "sentences": sentences} | ({"cocoid": number} if coco else {}))
    path.write_text(json.dumps({"images": images, "dataset": "made"}))
    return str(path)


def both(number: int) -> tuple[str, str]:
    return f"caption 0 of {number}", f"caption 1 of {number}"


@pytest.mark.parametrize("coco", [True, False])
def test_a_karpathy_file_by_splits(tmp_path, coco):
    path = karpathy(tmp_path / "dataset.json", coco)
    assert read_caption_file(path) == {str(n): both(n) for n in (1, 2, 3, 4)}
    assert read_caption_file(path, "train") == {str(n): both(n) for n in (1, 2)}
    assert read_caption_file(path, "val,test") == {str(n): both(n) for n in (3, 4)}


@pytest.mark.parametrize("named", [{"filename": "cafe\u0301.jpg"}, {"cocoid": "cafe\u0301"}])
def test_ids_of_a_karpathy_file_have_composed_accents(tmp_path, named):
    image = named | {"split": "val", "sentences": [{"raw": "a cup"}]}
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [image]}))
    assert read_caption_file(str(tmp_path / "dataset.json")) == {"caf\u00e9": ("a cup",)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.token", "1.jpg#0\ta cat\n1.jpg#1\ta cat\n2.jpg#0\ta dog\r\n\n"),
        ("rows.tsv", "a/1.jpg\ta cat\n2\ta dog\n1\ta Cat\n"),
        ("rows.jsonl", '{"image": "1.jpg", "caption": "a cat"}\n{"image": 2, "caption": "a dog"}\n'),
    ],
)
def test_rows_of_images_and_captions(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = read_caption_file(str(tmp_path / name))
    assert set(found) == {"1", "2"} and found["1"][0] == "a cat" and found["2"] == ("a dog",)
    assert len(found["1"]) == (1 if name.endswith("jsonl") else 2)


@pytest.mark.parametrize(
    ("name", "text", "splits", "sentence"),
    [
        ("a.tsv", "1.jpg\ta cat\n1.jpg a dog\n", None, "a.tsv, line 2: has 1 columns"),
        ("a.tsv", "1.jpg\ta cat\n2.jpg\ta\n1.jpg\ta cat\n", None, "line 3: duplicate of line 1 (a caption of 1.jpg)"),
        ("a.token", "1.jpg#0\ta cat\n1.jpg#0\ta dog\n", None, "line 2: duplicate of line 1 (1.jpg#0)"),
        ("a.tsv", "1.jpg\t \n", None, "a.tsv, line 1: has no caption"),
        ("a.tsv", "\ta cat\n", None, "a.tsv, line 1: has no image"),
        ("a.tsv", "\n", None, "a.tsv: contains no captions"),
        ("a.jsonl", '{"image": "1.jpg"}\n', None, 'a.jsonl, line 1: should be {"image": ..., "caption": ...}'),
        ("a.jsonl", '{"image": "1.jpg", "caption": ["a"]}\n', None, "a.jsonl, line 1: should be"),
        ("a.tsv", "1.jpg\ta cat\n", "train", "only Karpathy files (.json) have splits"),
        ("a.json", '{"images": []}', "dev", "--captions_split dev: should be one or more of train, val, test"),
        ("a.json", "[]", None, "a.json: should be an object with a list of images"),
        ("a.json", '{"dataset": "coco"}', None, "a.json: has no images; it has dataset"),
        ("a.json", '{"images": [{"filename": "1.jpg"}]}', None, "a.json, image 0: has no split; it has filename"),
        ("a.json", '{"images": [{"split": "val", "sentences": []}]}', None, "image 0: has neither cocoid nor filename"),
        ("a.json", '{"images": [{"filename": "1.jpg", "split": "val", "sentences": [{"raw": " "}]}]}', None, "empty"),
        ("a.json", '{"images": [{"filename": "1.jpg", "split": "val", "sentences": []}]}', "test", "split test"),
    ],
)
def test_a_mistake_in_a_file_of_captions_is_named(tmp_path, name, text, splits, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_caption_file(str(tmp_path / name), splits)
    assert sentence in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_captions_is_read_in_its_encoding(tmp_path, encoding):
    (tmp_path / "a.tsv").write_text("1.jpg\tein Café\n2.jpg\tćma\n", encoding=encoding)
    assert read_caption_file(str(tmp_path / "a.tsv")) == {"1": ("ein Café",), "2": ("ćma",)}


def test_a_file_of_captions_in_no_known_encoding_is_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("1.jpg\tein Café\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.tsv, after line 0: is not text in UTF-8, or in UTF-16 .*convert it"):
        read_caption_file(str(tmp_path / "a.tsv"))


def test_an_image_that_a_karpathy_file_has_twice_is_named(tmp_path):
    path = karpathy(tmp_path / "a.json")
    value = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({"images": value["images"] * 2}))
    with pytest.raises(UserError, match=r"a\.json, image 4: duplicate image 1"):
        read_caption_file(path, "val")


def draw(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(values).save(folder / name)
    return folder


def extract(run_command, images, out, *flags):
    flags = ("--out", out, "--processes", 1, "--max_regions", 4, *flags)
    return run_command("shards.extract", images, *flags)


@pytest.mark.parametrize("tarred", [False, True])
def test_extraction_takes_the_captions_of_a_file(tmp_path, run_command, tarred):
    """Images 1 to 3 and 9 are there, 1 with a caption next to it, and the captions of 1, 2 and 4 are wanted."""
    images = draw(tmp_path / "in", *(f"{'' if tarred else 'sub/'}{number}.png" for number in (1, 2, 3, 9)))
    next(images.rglob("1.png")).with_suffix(".txt").write_text("not this one")
    (tmp_path / "rows.tsv").write_text("".join(f"{n}.jpg\tcaption {k} of {n}\n" for k in (0, 1) for n in (1, 2, 4)))
    if tarred:
        with tarfile.open(tmp_path / "in.tar", "w") as tar:
            for path in sorted(images.iterdir()):
                tar.add(path, path.name)
    source = tmp_path / "in.tar" if tarred else images
    status, said, err = extract(run_command, source, tmp_path / "out", "--captions", tmp_path / "rows.tsv")
    assert status == 0, err
    assert "4 captions of 2 images; 1 image of the file not found; 2 images without captions skipped" in said
    assert "2 images, 2 with 4 captions, in 1 shard" in said
    dataset = open_dataset(str(tmp_path / "out"))
    assert read_captions(dataset) == [both(1), both(2)]
    assert [RegionReader(dataset)[n].key.rpartition("/")[2] for n in (0, 1)] == ["1", "2"]
    status, said, _ = run_command("shards.inspect", tmp_path / "out")
    assert "captions    4 of 2 images, 2 per image, 4 different" in said and '"caption 1 of 1"' in said
    status, _, err = extract(run_command, source, tmp_path / "out")
    assert status == 2 and "made with other settings or other input (captions" in err


def test_only_a_split_is_extracted(tmp_path, run_command):
    images = draw(tmp_path / "in", *(f"{number}.png" for number in (1, 2, 3, 4)))
    file = karpathy(tmp_path / "dataset.json")
    flags = ("--captions", file, "--captions_split", "train", "--per_shard", 1)
    status, said, err = extract(run_command, images, tmp_path / "out", *flags)
    assert status == 0 and "2 images, 2 with 4 captions, in 2 shards" in said, err
    assert read_captions(open_dataset(str(tmp_path / "out"))) == [both(1), both(2)]


@pytest.mark.parametrize(
    ("names", "flags", "sentence"),
    [
        (("a/1.png", "b/1.png"), ("--captions", "FILE"), "b/1.png: duplicate image id 1"),
        (
            ("x.png",),
            ("--captions", "FILE"),
            "captions for none of the images; it has captions for image 1, for example, but not for x",
        ),
        (
            ("1.png",),
            ("--captions_split", "val"),
            "--captions_split val: needs a Karpathy file; set --captions",
        ),
        (("1.png",), ("--captions", "missing.json"), "missing.json: cannot be read"),
    ],
)
def test_captions_that_do_not_fit_the_images_end_in_a_sentence(tmp_path, run_command, names, flags, sentence):
    images, file = draw(tmp_path / "in", *names), karpathy(tmp_path / "dataset.json")
    flags = [file if flag == "FILE" else flag for flag in flags]
    status, _, err = extract(run_command, images, tmp_path / "out", *flags)
    assert status == 2 and sentence in err and not (tmp_path / "out").exists()


def test_photographs_with_five_captions_each(tmp_path, run_command, real_data):
    """Forty of Flickr8k's photographs, with the file of their captions."""
    photos = real_data / "photos"
    if not (photos / "dataset_flickr8k.json").exists():
        pytest.skip(f"the photographs are not there ({photos})")
    (tmp_path / "in").mkdir()
    with tarfile.open(photos / "flickr8k-dev.tar") as tar:
        for entry in [entry for entry in tar if entry.name.endswith(".jpg")][:40]:
            (tmp_path / "in" / entry.name).write_bytes(tar.extractfile(entry).read())
    flags = ("--captions", photos / "dataset_flickr8k.json", "--captions_split", "val")
    status, said, err = extract(run_command, tmp_path / "in", tmp_path / "out", *flags)
    assert status == 0 and "40 images, 40 with 200 captions, in 1 shard" in said, err
    flags = ("--data", tmp_path / "out", "--out", tmp_path / "run", "--epochs", 1, "--workers", 0, "--device", "cpu")
    status, said, err = run_command("pretrain.run", *flags, "--validation_pairs", 20, "--captions_per_image", "one")
    counts = "36 training pairs per epoch (180 captions of 36 images), 20 validation pairs (4 images)"
    assert status == 0 and counts in said
