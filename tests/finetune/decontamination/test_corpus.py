"""Test images of known data sets in other training data: what is found, by which evidence, and what is written."""

import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import official_files
import pytest
import webdataset
from data_sets import make_samples
from image_tars import jpeg, lines, picture, write_tar
from PIL import ImageOps

from finetune.config import CleanConfig
from finetune.decontamination.corpus_images import corpus_images, corpus_parts
from finetune.decontamination.corpus_search import search_corpus
from finetune.decontamination.fingerprint_file import read_fingerprint, write_fingerprint
from finetune.decontamination.hash_search import ExactSearch, FaissSearch
from finetune.decontamination.image_identity import Photos
from finetune.decontamination.known_sources import known_names
from finetune.decontamination.known_tests import KnownName, KnownTests
from finetune.decontamination.pretraining_data import unchecked_pretraining
from pretrain.data.collate import Collator
from shards.common.dist_info import Ranks
from shards.common.errors import UserError
from shards.common.excluded_ids import not_excluded, read_excluded
from shards.common.files import write_json
from shards.common.image_id import photo_names
from shards.storage.writer import write_shard

OTHER_IDS, OWN_IDS = ("train/12", "cafe\u0301.jpg"), ["12", "caf\u00e9"]


@pytest.fixture
def tests(tmp_path, run_command) -> Path:
    """The fingerprint of a test set of six Flickr photos, with the numbers 1000000 to 1000005."""
    folder = tmp_path / "test_images"
    folder.mkdir()
    for number in range(6):
        (folder / f"{1000000 + number}.jpg").write_bytes(jpeg(picture(number)))
    path = tmp_path / "tests.safetensors"
    flags = ("--fingerprint", path, "--test_images", folder, "--test_name", "mine", "--collection", "flickr")
    status, said, err = run_command("finetune.clean", *flags, "--processes", 1)
    assert status == 0 and "mine                                6        6" in said, err
    return path


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Two tars of img2dataset with a leak of every kind among other images, and one image that cannot be decoded."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    cropped = picture(3).crop((4, 4, 176, 136))
    sha256 = hashlib.sha256(jpeg(picture(5))).hexdigest()
    write_tar(
        folder / "00000.tar",
        {
            "000000000.jpg": jpeg(picture(100)),
            "000000000.json": b'{"url": "https://example.org/1000000.jpg"}',
            "000000001.jpg": jpeg(picture(101)),
            "000000001.json": b'{"url": "https://live.staticflickr.com/65535/1000001_0a1b2c3d4e_b.jpg?v=2"}',
            "000000002.jpg": jpeg(picture(2)),
            "000000003.jpg": jpeg(cropped.resize((300, 260)), 60),
        },
    )
    write_tar(
        folder / "00001.tar",
        {
            "000010000.jpg": jpeg(picture(102)),
            "flickr30k_images/1000004.jpg": jpeg(picture(4).convert("L"), 50),
            "000010002.jpg": b"not an image",
            "000010003.jpg": jpeg(picture(103)),
            "000010003.json": json.dumps({"sha256": sha256}).encode(),
        },
    )
    return folder


def search(run_command, corpus, tests, out, *flags) -> str:
    status, said, err = run_command(
        "finetune.clean", "--corpus", corpus, "--known", tests, "--out", out, "--processes", 1, *flags
    )
    assert status == 0, err
    return said


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_leak_of_every_kind_is_found_with_its_evidence(corpus, tests, tmp_path, run_command):
    out = tmp_path / "out"
    said = search(run_command, corpus, tests, out)
    found = {line["image"]: line for line in lines(out / "found.jsonl")}
    assert set(found) == {"000000001", "000000002", "000000003", "1000004", "000010003"}
    evidence = {image: [chain["evidence"][0] for chain in line["chains"]] for image, line in found.items()}
    url = "URL https://live.staticflickr.com/65535/1000001_0a1b2c3d4e_b.jpg?v=2"
    assert evidence["000000001"] == [url] and found["000000001"]["difference"] > 0.5
    assert [one.partition(" (")[0] for one in evidence["000000002"]] == ["SHA-256", "look"]
    assert [one.partition(" (")[0] for one in evidence["000000003"]] == ["look"]
    assert [one.partition(" (")[0] for one in evidence["1000004"]] == ["file name", "look"]
    assert evidence["000010003"] == ["SHA-256"]
    assert found["000000003"]["chains"][0]["names"] == ["000000003", "flickr:1000003"]
    assert found["000000003"]["source"] == f"{corpus}/00000.tar#000000003.jpg"
    assert all(line["tests"] == ["mine"] for line in found.values())
    assert read_excluded(out) == set(found)
    assert [line["source"] for line in lines(out / "unseen.jsonl")] == [f"{corpus}/00001.tar#000010002.jpg"]
    row = next(line for line in said.splitlines() if line.startswith("mine")).split()
    assert row[1:] == ["6", "6", "5", "1", "1", "0", "2", "3"]
    assert "1 image of the corpus cannot be decoded" in said
    assert "2 images were found by name or checksum, but look different" in said  # a URL, and a checksum before changes


def test_a_second_run_and_an_interrupted_one_write_the_same_bytes(corpus, tests, tmp_path, run_command, monkeypatch):
    out = tmp_path / "out"
    search(run_command, corpus, tests, out)
    before = content(out)
    assert {"corpus.json", "excluded.txt", "found.jsonl", "known.safetensors", "report.txt", "unseen.jsonl"} <= {
        *before
    }
    times = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    search(run_command, corpus, tests, out)
    assert content(out) == before and times == {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    (out / "parts" / "000001.npz").unlink()  # killed during the second part
    (out / "corpus.json").unlink()
    (out / "parts" / "000000.npz").write_bytes(before["parts/000000.npz"][:100])  # and a disk that lost a part
    search(run_command, corpus, tests, out)
    assert content(out) == before


def test_an_interrupted_search_leaves_no_list_of_an_earlier_one(corpus, tests, tmp_path, run_command):
    """Training with the ids of an earlier search would include images that were added to the corpus since then."""
    out = tmp_path / "out"
    search(run_command, corpus, tests, out)
    write_tar(corpus / "00002.tar", {"000020000.jpg": jpeg(picture(0))})
    (corpus / "00003.tar").write_bytes(b"damaged")
    flags = ("--corpus", corpus, "--known", tests, "--out", out, "--processes", 1)
    assert run_command("finetune.clean", *flags)[0] == 2
    with pytest.raises(UserError, match="no such file; create it with finetune"):
        read_excluded(out)


def test_a_part_that_changed_is_searched_again(corpus, tests, tmp_path, run_command):
    out = tmp_path / "out"
    search(run_command, corpus, tests, out)
    write_tar(corpus / "00001.tar", {"000010000.jpg": jpeg(picture(0))})
    search(run_command, corpus, tests, out)
    assert read_excluded(out) == {"000000001", "000000002", "000000003", "000010000"}


@pytest.mark.usefixtures("spawned_workers")
def test_the_check_finds_a_leak_that_the_list_lacks(corpus, tests, tmp_path, run_command):
    out, flags = tmp_path / "out", ("--corpus", corpus, "--check", "--processes", 1, "--out", tmp_path / "out")
    assert "contains no corpus.json" in run_command("finetune.clean", *flags)[2]
    search(run_command, corpus, tests, out)
    status, said, _ = run_command("finetune.clean", *flags)
    assert status == 0 and said.startswith(
        "no test image remains, as far as images could be compared\nnote: 1 image of"
    )
    assert "cannot be decoded" in said and "6 images of the corpus have a number as name" in said
    ids = (out / "excluded.txt").read_text().splitlines()
    (out / "excluded.txt").write_text("000010003\n")
    status, said, _ = run_command("finetune.clean", *flags)
    leaks = {line.partition(":")[0].rpartition("#")[2]: line for line in said.splitlines()}
    assert status == 1 and {"000000001.jpg", "000000002.jpg", "flickr30k_images/1000004.jpg"} <= {*leaks}
    assert "the same file" in leaks["000000002.jpg"] and len(leaks) <= len(ids)


def test_excluded_images_are_neither_extracted_nor_trained_on(corpus, tests, tmp_path, run_command):
    (corpus / "00001.tar").unlink()
    out, regions = tmp_path / "out", tmp_path / "regions"
    search(run_command, corpus, tests, out)
    flags = ("--out", regions, "--exclude", out, "--visual_words", 4, "--processes", 1)
    status, said, err = run_command("shards.extract", corpus, *flags)
    assert status == 0 and "1 image," in said and "3 skipped" in said, err
    assert {line["source"].rpartition("#")[2] for line in lines(regions / "skipped.jsonl")} == {
        "000000001.jpg",
        "000000002.jpg",
        "000000003.jpg",
    }
    status, _, err = run_command("shards.extract", corpus, "--out", regions, "--visual_words", 4, "--processes", 1)
    assert status == 2 and "other settings or other input (exclude)" in err
    status, _, err = run_command("shards.extract", corpus, "--out", tmp_path / "r", "--exclude", tmp_path / "none")
    assert status == 2 and "none: no such file; create it with finetune.clean --corpus" in err


def caption(number: int) -> str:
    """A caption of words that every tokenizer has, different for every number below 32."""
    return " ".join(f"{number:05b}".replace("0", "a").replace("1", "b"))


@pytest.fixture
def batches(monkeypatch) -> tuple[set[str], set[str]]:
    """The images and the captions of all batches of pretraining runs in this process."""
    images, captions, collate = set(), set(), Collator.__call__

    def noted(self, epoch, numbers, samples):
        batch = collate(self, epoch, numbers, samples)
        images.update(sample.info["id"] for sample in samples)
        rows = zip(batch.input_ids.tolist(), batch.lengths.tolist(), strict=True)
        captions.update(self.tokenizer.backend.decode(ids[1 : length - 1]) for ids, length in rows)
        return batch

    monkeypatch.setattr(Collator, "__call__", noted)
    return images, captions


def test_excluded_images_are_in_no_batch(tests, tmp_path, batches, run_command):
    """From the search to training, with the list given to the extraction, to pretraining, or to neither."""
    copies = {0: jpeg(picture(2).resize((120, 100)), 60), 7: jpeg(picture(3).convert("L")), 11: jpeg(picture(4))}
    members = {}
    for number in range(16):
        members[f"{number:09d}.jpg"] = copies.get(number) or jpeg(picture(100 + number))
        members[f"{number:09d}.txt"] = caption(number).encode()
    members["000000005.json"] = b'{"url": "https://live.staticflickr.com/65535/1000001_0a1b2c3d4e_b.jpg"}'
    corpus, out = tmp_path / "pairs", tmp_path / "out"
    corpus.mkdir()
    write_tar(corpus / "00000.tar", members)
    search(run_command, corpus, tests, out)
    excluded = {f"{number:09d}" for number in (*copies, 5)}
    kept = {f"{number:09d}" for number in range(16)} - excluded
    assert read_excluded(out) == excluded

    without, every = tmp_path / "without", tmp_path / "every"
    for regions, flags in ((without, ("--exclude", out)), (every, ())):
        flags += ("--visual_words", 4, "--processes", 1)
        status, _, err = run_command("shards.extract", corpus, "--out", regions, *flags)
        assert status == 0, err
    official_files.nlvr2(tmp_path / "official" / "nlvr2")
    images, captions = batches
    for number, (regions, flags) in enumerate(((without, ()), (every, ("--exclude", out)), (every, ()))):
        images.clear(), captions.clear()
        run, cleaned = tmp_path / f"run{number}", number < 2
        flags += ("--epochs", 2, "--batch_size", 4, "--workers", 0, "--validation_pairs", 2)
        status, _, err = run_command("pretrain.run", "--data", regions, "--out", run, *flags)
        assert status == 0, err
        assert images == (kept if cleaned else kept | excluded)
        assert captions <= {caption(int(image)) for image in images}  # misaligned captions take the place of some
        assert any(caption(int(image)) in captions for image in excluded) != cleaned
        doctor = ("finetune.doctor", "--data", tmp_path / "official", "--tasks", "nlvr2", "--init", run)
        assert ("warning: " in run_command(*doctor)[1]) != cleaned


def test_a_webdataset_pipeline_skips_excluded_images(tests, tmp_path, run_command):
    """Also those whose names have dots or capitals, which webdataset makes parts of its fields."""
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    names = ("000000000.jpg", "a/b.c.JPG", "a/x.d.jpg", "D.E.jpg", "000000004.jpg")
    pictures = (picture(0), picture(1), picture(100), picture(2).resize((90, 70)), picture(101))
    corpus.mkdir()
    write_tar(corpus / "0.tar", {name: jpeg(image) for name, image in zip(names, pictures, strict=True)})
    search(run_command, corpus, tests, out)
    assert read_excluded(out) == {"000000000", "b.c", "D.E"}
    kept = webdataset.WebDataset(str(corpus / "0.tar"), shardshuffle=False).select(not_excluded(out))
    assert [sample["__key__"] for sample in kept] == ["a/x", "000000004"]
    assert len(pickle.loads(pickle.dumps(not_excluded(out))).args[0]) == 3  # for workers that are spawned


def test_region_shards_are_searched_by_their_ids_and_sources(corpus, tests, tmp_path, run_command):
    (corpus / "00000.tar").unlink()
    regions = tmp_path / "regions"
    status, _, err = run_command("shards.extract", corpus, "--out", regions, "--visual_words", 4, "--processes", 1)
    assert status == 0, err
    said = search(run_command, regions, tests, tmp_path / "out")
    assert read_excluded(tmp_path / "out") == {"1000004"} and "3 images of the corpus have no picture" in said


def test_ids_of_region_shards_of_other_programs_are_those_of_annotations(tmp_path):
    """Ids with folders, and of file names of macOS, were listed in a form that no --exclude compares."""
    samples = [replace(sample, info={"id": id}) for sample, id in zip(make_samples(2), OTHER_IDS, strict=True)]
    write_shard(tmp_path / "a.tar", samples)
    [part] = corpus_parts(str(tmp_path))
    found = list(corpus_images(part, "mine"))
    assert [image.id for image in found] == OWN_IDS
    assert [name for image in found for name, _ in image.names] == [f"mine:{id}" for id in OWN_IDS]


def test_several_ranks_write_what_one_writes(corpus, tests, tmp_path, run_command):
    """Three ranks for two parts: one of them has nothing to do."""
    search(run_command, corpus, tests, tmp_path / "one")
    config = CleanConfig(corpus=str(corpus), known=str(tests), out=str(tmp_path / "two"), processes=1)
    with ThreadPoolExecutor() as ranks:
        said = list(ranks.map(lambda rank: search_corpus(config, Ranks(rank, 3, rank)), range(3)))
    assert "5 of them are test images" in said[0] and said[1:] == ["", ""]
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_folder_of_images_and_ids_of_a_collection(tests, tmp_path, run_command):
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1000003.jpg").write_bytes(jpeg(picture(200)))
    (folder / "7.png").write_bytes(jpeg(picture(201)))
    said = search(run_command, folder, tests, tmp_path / "out")
    assert not read_excluded(tmp_path / "out") and "2 images of the corpus have a number as name" in said
    said = search(run_command, folder, tests, tmp_path / "out", "--collection", "flickr")
    assert read_excluded(tmp_path / "out") == {"1000003"} and "number as name" not in said
    assert "1 image was found by name or checksum, but looks different" in said


def test_names_state_their_collection():
    assert photo_names("http://images.cocodataset.org/val2014/COCO_val2014_000000000042.jpg") == ["coco:42"]
    assert photo_names("train2017/000000581929.jpg") == ["coco:581929"]
    assert photo_names("train2017\\000000581929.jpg") == ["coco:581929"]
    assert photo_names("https://cs.stanford.edu/people/rak248/VG_100K_2/7.jpg") == ["genome:7"]
    assert photo_names("http://farm9.staticflickr.com/8035/8024364858_9c41dc1666_z.jpg") == ["flickr:8024364858"]
    assert photo_names("https://www.flickr.com/photos/some_one/8024364858/in/album") == ["flickr:8024364858"]
    assert photo_names("1000268201_693b08cb0e.jpg") == ["flickr:1000268201"]
    assert photo_names("flickr30k-images/36979.jpg") == ["flickr:36979"]
    assert photo_names("dev-850-0-img0.png") == ["nlvr2:dev-850-0-img0"]
    flickr = "http%3A%2F%2Ffarm9.staticflickr.com%2F8035%2F8024364858_9c41dc1666_z.jpg"
    assert photo_names(f"https://proxy.example.org/fetch?w=640&src={flickr}&q=80") == ["flickr:8024364858"]
    assert photo_names("https://example.org/i?u=http://a.org/val2014/COCO_val2014_000000000042.jpg&w=9") == ["coco:42"]
    for nothing in ("42.jpg", "000000000042.jpg", "00000/000000042.jpg", "https://example.org/1234567.jpg", ""):
        assert photo_names(nothing) == []


def test_all_names_of_a_photo_lead_to_all_its_test_sets():
    photos = Photos()
    photos.same("genome:7", "coco:42", "image_data.json")
    photos.same("coco:42", "flickr:9", "instances.json")
    known = known_names(photos, {"coco:42": ["vqa test"], "genome:7": ["gqa test"]})
    assert {name: one.sets for name, one in known.items()} == dict.fromkeys(
        ("coco:42", "flickr:9", "genome:7"), ("gqa test", "vqa test")
    )
    assert {one.photo for one in known.values()} == {"coco:42"}
    other = KnownTests({"flickr:9": KnownName("flickr:9", ("mine",), ("flickr:9",))})
    merged = KnownTests(known).merged(other)
    assert {one.sets for one in merged.names.values()} == {("gqa test", "mine", "vqa test")}
    assert merged.sets() == dict.fromkeys(("gqa test", "mine", "vqa test"), (1, 0))
    assert other.merged(KnownTests(known)).sets() == merged.sets()
    assert known["flickr:9"].names == ("flickr:9", "coco:42") and known["flickr:9"].evidence == ("instances.json",)


def test_a_fingerprint_keeps_what_is_known(tests, tmp_path, run_command):
    known = read_fingerprint(tests)
    assert [*known.names] == [f"flickr:{1000000 + number}" for number in range(6)]
    assert known.merged(known).pictures.names == known.pictures.names
    again = tmp_path / "again.safetensors"
    status, _, err = run_command("finetune.clean", "--fingerprint", again, "--known", tests)
    assert status == 0 and again.read_bytes() == tests.read_bytes(), err
    assert known.pictures.image(2).size == (48, 48)


def test_test_sets_without_images_are_known_by_their_names(tmp_path, run_command):
    path, folder = tmp_path / "names.safetensors", tmp_path / "folder"
    known = KnownTests({"coco:42": KnownName("coco:42", ("mine",), ("coco:42",), ())})
    write_fingerprint(path, known)
    read = read_fingerprint(path)
    assert read.names == known.names and len(read.pictures) == 0
    folder.mkdir()
    for name in ("COCO_val2014_000000000042.jpg", "COCO_val2014_000000000043.jpg"):
        (folder / name).write_bytes(jpeg(picture(1)))
    said = search(run_command, folder, path, tmp_path / "out")
    assert read_excluded(tmp_path / "out") == {"42"} and "1 photo of the test sets has no known image" in said


@pytest.mark.parametrize("seed", range(3))
def test_faiss_finds_what_the_exact_search_finds(seed):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 1 << 63, (40, 6), np.uint64)
    flips = rng.integers(0, 1 << 63, (2, 500, 6), np.uint64)
    for _ in range(2):
        flips &= rng.integers(0, 1 << 63, flips.shape, np.uint64)
    ours, theirs = (base[rng.integers(0, 40, 500)] ^ flip for flip in flips)
    expected = ExactSearch(theirs).pairs(ours)
    assert len(expected) > 100 and FaissSearch(theirs).pairs(ours).tolist() == expected.tolist()


def save_fingerprint(path: Path, other: Path, alter) -> None:
    """Writes another fingerprint with altered thumbnails."""
    known = read_fingerprint(other)
    known.pictures.thumbnails = [alter(thumbnail) for thumbnail in known.pictures.thumbnails]
    write_fingerprint(path, known)


def test_mistakes_are_one_sentence(corpus, tests, tmp_path, run_command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    write_tar(tmp_path / "texts" / "a.tar", {"a.txt": b"a caption"})
    cut = tmp_path / "cut.tar"
    cut.write_bytes((corpus / "00000.tar").read_bytes()[:3000])
    (tmp_path / "damaged.safetensors").write_bytes(tests.read_bytes()[:500])
    known = ("--known", tests)
    save_fingerprint(tmp_path / "cut.safetensors", tests, lambda thumbnail: thumbnail[:200])
    save_fingerprint(tmp_path / "large.safetensors", tests, lambda _: jpeg(picture(0)))
    for flags, complaint in (
        (("--corpus", corpus, "--known", tmp_path / "cut.safetensors"), "the thumbnail of flickr:1000000 cannot be"),
        (("--corpus", corpus, "--known", tmp_path / "large.safetensors"), "the thumbnail of flickr:1000000 has 180 x"),
        (("--corpus", tmp_path / "nowhere", *known), "nowhere: no such file or folder"),
        (("--corpus", tmp_path / "empty", *known), "contains no images ("),
        (("--corpus", tmp_path / "texts", *known), "a.tar: contains neither images ("),
        (("--corpus", cut, *known), "cut.tar: "),
        (("--corpus", "http://example.org/a.tar", *known), "should be a folder, or local images"),
        (("--corpus", corpus, "--known", tmp_path / "damaged.safetensors"), "make it again with finetune.clean"),
        (("--corpus", corpus, "--known", corpus / "00000.tar"), "00000.tar: "),
        (("--corpus", corpus, *known, "--fingerprint", tmp_path / "f"), "cannot be combined with --corpus"),
        (("--corpus", corpus, "--test_images", corpus, "--test_name", "a"), "needs --fingerprint OUT"),
        (("--fingerprint", tmp_path / "f", "--test_images", corpus), "set both, or neither"),
        (("--collection", "coco"), "--collection coco: needs --corpus or --fingerprint"),
        (("--corpus", corpus, *known, "--search", "fast"), "should be one of exact, faiss"),
        (("--corpus", corpus, "--data", tmp_path / "empty"), "contains no folder of a task"),
    ):
        status, _, err = run_command("finetune.clean", "--out", tmp_path / "out", "--processes", 1, *flags)
        assert status == 2 and complaint in err and "Traceback" not in err and err.count("\n") <= 2, (flags, err)
        assert not (tmp_path / "out" / "corpus.json").exists()


def test_mirrored_copies_are_found_if_they_are_searched_for(tests, tmp_path, run_command):
    corpus, out = tmp_path / "mirrored.tar", tmp_path / "out"
    cropped = ImageOps.mirror(picture(3).crop((4, 4, 176, 136)))
    images = {"1.jpg": ImageOps.mirror(picture(2)), "2.jpg": cropped.resize((300, 260)), "3.jpg": picture(0)}
    images |= {"4.jpg": picture(500), "5.jpg": ImageOps.mirror(picture(501))}
    write_tar(corpus, {name: jpeg(image, 60) for name, image in images.items()})
    search(run_command, corpus, tests, out)
    assert read_excluded(out) == {"3"}
    flags = ("--corpus", corpus, "--check", "--processes", 1, "--out", out)
    assert run_command("finetune.clean", *flags)[0] == 0  # it is not searched again for what was not asked for
    status, said, _ = run_command("finetune.clean", *flags, "--mirrored", "true")
    assert status == 1 and "mirrored.tar#1.jpg: is a test image (it looks like " in said
    search(run_command, corpus, tests, out, "--mirrored", "true")
    assert read_excluded(out) == {"1", "2", "3"}
    found = {line["image"]: line for line in lines(out / "found.jsonl")}
    for image, photo, mark in (("1", 2, ", mirrored)"), ("2", 3, ", mirrored)"), ("3", 0, ")")):
        (chain,) = found[image]["chains"]
        assert chain["names"][1] == f"flickr:{1000000 + photo}" and found[image]["difference"] < 0.5
        assert chain["evidence"][0].startswith("look (0.") and chain["evidence"][0].endswith(mark)
        assert ("mirrored" in chain["evidence"][0]) == ("mirrored" in mark)
    assert run_command("finetune.clean", *flags, "--mirrored", "true")[0] == 0


def test_urls_in_nested_json_are_names(tests, tmp_path, run_command):
    """Under a key that contains `url`, at any depth; other texts are not."""
    url = "https://live.staticflickr.com/65535/100000{}_0a1b2c3d4e_b.jpg"
    infos = (
        {"meta": {"url": url.format(1)}},
        {"sources": [{"URLs": {"large": ["https://example.org/1.jpg", url.format(2)]}}]},
        {"meta": {"caption": url.format(3)}, "url": 7},
    )
    members = {}
    for number, info in enumerate(infos):
        members |= {f"{number}.jpg": jpeg(picture(400 + number)), f"{number}.json": json.dumps(info).encode()}
    write_tar(tmp_path / "nested.tar", members)
    search(run_command, tmp_path / "nested.tar", tests, tmp_path / "out")
    found = {line["image"]: line["chains"][0]["evidence"] for line in lines(tmp_path / "out" / "found.jsonl")}
    assert found == {"0": [f"URL {url.format(1)}"], "1": [f"URL {url.format(2)}"]}


def test_parquet_files_with_images_and_with_urls(tests, tmp_path, run_command):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "rows").mkdir()
    url = "https://live.staticflickr.com/65535/1000001_0a1b2c3d4e_b.jpg"
    images = [
        {"bytes": jpeg(picture(3).resize((90, 70))), "path": "a.jpg"},
        {"bytes": jpeg(picture(300)), "path": None},
    ]
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "rows" / "images.parquet")
    parquet.write_table(pyarrow.table({"URL": [url, "https://example.org/1.jpg"]}), tmp_path / "rows" / "urls.parquet")
    said = search(run_command, tmp_path / "rows", tests, tmp_path / "out")
    assert read_excluded(tmp_path / "out") == {"a", url} and "2 images of the corpus have no picture" in said
    (tmp_path / "rows" / "images.parquet").write_bytes(b"PAR1")
    flags = ("--corpus", tmp_path / "rows", "--known", tests, "--out", tmp_path / "out", "--processes", 1)
    status, _, err = run_command("finetune.clean", *flags)
    assert status == 2 and "images.parquet: cannot be read (" in err


def test_doctor_warns_of_pretraining_data_that_was_not_searched(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    assert unchecked_pretraining(run) is None

    def trained(**flags) -> str | None:
        write_json(run / "config.json", {"flags": flags | {"out": str(run)}})
        return unchecked_pretraining(run)

    assert "was not checked for test images" in trained(data=str(tmp_path), exclude=None)
    assert "was not checked for test images" in trained(data=str(tmp_path))  # a run of an earlier version
    write_json(out / "corpus.json", {"corpus": str(tmp_path)})
    assert trained(data=str(tmp_path), exclude=str(out)) is None
    write_json(out / "corpus.json", {"corpus": str(tmp_path / "another")})
    assert "is the list of" in trained(data=str(tmp_path), exclude=str(out / "excluded.txt"))
    (tmp_path / "another").mkdir()
    another = str(tmp_path / "another" / "0.tar")
    plan = {"command": "shards.extract", "images": [[another, another, 8]]}
    write_json(tmp_path / "dataset.json", {"extra": {"plan": plan}})
    assert trained(data=str(tmp_path), exclude=str(out)) is None  # the images of these region shards were searched
    write_json(out / "corpus.json", {"corpus": f"{tmp_path}/another/{{0..1}}.tar"})
    assert "is the list of" in trained(data=str(tmp_path), exclude=str(out))  # files that no longer exist
    for number in range(2):
        write_tar(tmp_path / "another" / f"{number}.tar", {})
    assert trained(data=str(tmp_path), exclude=str(out)) is None
    write_json(tmp_path / "dataset.json", {"extra": {"plan": plan | {"exclude": "0a1b"}}})
    assert trained(data=str(tmp_path)) is None
