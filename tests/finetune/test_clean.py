"""Clean V&L: what is removed and why, what is left, and what finds a leak."""

import io
import json
import os
import shutil
from collections import Counter

import numpy as np
import official_files
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_tars import picture
from PIL import Image

from finetune.annotations.official_files import scan
from finetune.decontamination.hash_search import NEAR, ExactSearch
from finetune.decontamination.image_identity import Photos
from finetune.decontamination.manifest import read_cleaned
from finetune.decontamination.near_duplicates import image_files
from finetune.decontamination.perceptual_hash import (
    DIFFERENT,
    TRIMMED,
    difference,
    grey,
    image_hashes,
)
from finetune.prepared.packed_examples import PackedExamples
from finetune.tasks import paper_tasks
from shards.common import process_pool
from shards.common.errors import UserError
from shards.common.image_id import image_id

TASKS = paper_tasks()


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def cleaned(world, tmp_path_factory):
    """The small world's annotations with more of its photos in several data sets, cleaned; and the report."""
    from finetune.config import CleanConfig
    from finetune.decontamination.remove_images import clean

    data = tmp_path_factory.mktemp("clean") / "data"
    shutil.copytree(world, data, ignore=shutil.ignore_patterns("regions", "pairs", "prepared"))
    (data / "regions").symlink_to(world / "regions")
    path = data / "vgqa" / "image_data.json"
    records = json.loads(path.read_text())
    for task, split, column in (
        ("coco_retrieval", "test", "coco_id"),
        ("snli_ve", "test", "flickr_id"),
        ("snli_ve", "train", "flickr_id"),
        ("refcoco", "train", "coco_id"),
    ):
        images = sorted({int(example.images[0]) for example in TASKS[task].examples(data / task, split)})
        free = [record for record in records if record["coco_id"] is None and record["flickr_id"] is None]
        for record, image in zip(free[:: max(1, len(free) // 4)], images, strict=False):
            record[column] = image
    path.write_text(json.dumps(records))
    return data, clean(CleanConfig(data=str(data), processes=1))


@pytest.mark.parametrize("name", TASKS)
def test_images_are_counted_as_examples_have_them(world, name):
    task, folder = TASKS[name], world / name
    for split in task.splits:
        if (name, split) != ("vqa", "test-dev"):
            expected = Counter(example.images for example in task.examples(folder, split))
            assert task.image_counts(folder, split) == expected and (expected or split.startswith("fold"))


def obvious(data) -> dict[str, set[str]]:
    """Task -> the images that it must leave out, by a set of names that grows until nothing is new."""
    maps = [
        (f"genome:{record['image_id']}", f"{name}:{record[f'{name}_id']}")
        for record in json.loads((data / "vgqa" / "image_data.json").read_text())
        for name in ("coco", "flickr")
        if record[f"{name}_id"] is not None
    ]
    tests = {
        TASKS[name].photo(image)
        for name in TASKS
        for split in TASKS[name].tests
        for example in TASKS[name].examples(data / name, split)
        for image in example.images
    }
    size = 0
    while size != len(tests):
        size = len(tests)
        for one, other in maps:
            if one in tests or other in tests:
                tests |= {one, other}
    return {
        name: {
            image
            for split in task.learned
            for example in task.examples(data / name, split)
            for image in example.images
            if task.photo(image) in tests
        }
        for name, task in TASKS.items()
    }


def test_what_is_removed(cleaned):
    data, report = cleaned
    expected = obvious(data)
    for name, task in TASKS.items():
        assert read_cleaned(data / "clean", task).images == expected[name], name
    assert all(expected[name] for name in TASKS if name not in ("flickr_retrieval", "nlvr2")) and not expected["nlvr2"]
    assert "disagree on Visual7W" in report and "19.81%" in report and "542104" in report
    row = next(line for line in report.splitlines() if line.startswith("VQA v2")).split()
    images = {i for s in TASKS["vqa"].learned for e in TASKS["vqa"].examples(data / "vqa", s) for i in e.images}
    assert row[2] == str(len(images)) and row[4] == str(len(images) - len(expected["vqa"]))


def test_something_is_left_to_train_and_validate_on(cleaned):
    data, _ = cleaned
    for name, task in TASKS.items():
        for split in task.splits[:2]:
            examples = PackedExamples.of(task.examples(data / name, split))
            left = read_cleaned(data / "clean", task).keep(split, examples, log=lambda _: None)
            assert len(left) >= len(examples) / 3, f"{name} {split}"


def test_why_it_is_removed(cleaned):
    """A path leads from the image to a test's, each step by the map; a test's own id needs none."""
    data, _ = cleaned
    known = {
        frozenset((f"genome:{record['image_id']}", f"{name}:{record[f'{name}_id']}"))
        for record in json.loads((data / "vgqa" / "image_data.json").read_text())
        for name in ("coco", "flickr")
    }
    paths = [(name, line) for name in TASKS for line in lines(data / "clean" / "removed" / f"{name}.jsonl")]
    for name, line in paths:
        task, split = line["test"].split()
        assert line["names"][0] == TASKS[name].photo(line["image"])
        assert line["names"][-1] in {TASKS[task].photo(i) for (i,) in TASKS[task].image_counts(data / task, split)}
        assert all(frozenset(pair) in known for pair in zip(line["names"], line["names"][1:], strict=False))
        assert line["evidence"] == ["image_data.json"] * (len(line["names"]) - 1)
    assert {len(line["names"]) for _, line in paths} >= {1, 2}


def test_twice_gives_the_same_bytes(cleaned, run_command):
    data, _ = cleaned
    before = {path: path.read_bytes() for path in (data / "clean").rglob("*") if path.is_file()}
    status, said, _ = run_command("finetune.clean", "--data", data, "--processes", 2)
    assert status == 0 and [line for line in said.splitlines() if line.startswith("note: ")] == [
        "note: images were compared by ids only; --images FOLDER also compares their content"
    ]
    after = {path: path.read_bytes() for path in (data / "clean").rglob("*") if path.is_file()}
    assert before == after and len(before) == 14


def test_a_clean_set_passes_and_a_planted_leak_is_found(cleaned, tmp_path, run_command):
    data = tmp_path / "data"
    shutil.copytree(cleaned[0], data, symlinks=True)
    assert run_command("finetune.clean", "--data", data, "--check")[0] == 0
    before = [line["image"] for line in lines(data / "clean" / "removed" / "flickr_retrieval.jsonl")]
    path = data / "flickr_retrieval" / "dataset_flickr30k.json"
    known = json.loads(path.read_text())
    leaked = next(image for image in known["images"] if image["split"] == "test")
    next(image for image in known["images"] if image["split"] == "train")["filename"] = leaked["filename"]
    path.write_text(json.dumps(known))
    status, said, _ = run_command("finetune.clean", "--data", data, "--check")
    stem = leaked["filename"].removesuffix(".png").removesuffix(".jpg")
    assert status == 1 and f"flickr_retrieval train: image {stem} is flickr:{stem}, in the test set " in said
    assert run_command("finetune.clean", "--data", data)[0] == 0
    assert run_command("finetune.clean", "--data", data, "--check")[0] == 0
    assert [line["image"] for line in lines(data / "clean" / "removed" / "flickr_retrieval.jsonl")] == sorted(
        {stem, *before}
    )
    task = TASKS["flickr_retrieval"]
    examples = PackedExamples.of(task.examples(path.parent, "test"))
    assert any(example.images[0] == stem for example in examples)
    assert read_cleaned(data / "clean", task).keep("test", examples) == examples


def test_a_list_that_lost_a_line_is_not_used(cleaned, tmp_path, run_command):
    shutil.copytree(cleaned[0] / "clean", tmp_path / "clean")
    path = tmp_path / "clean" / "removed" / "vqa.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    for command in (("finetune.st", "--task", "vqa"), ("finetune.mt",)):
        status, _, err = run_command(*command, "--data", cleaned[0], "--clean", tmp_path / "clean")
        assert status == 2 and "vqa.jsonl: was changed after finetune.clean wrote it" in err


def test_training_leaves_them_out(cleaned, tmp_path, pretrained, run_command):
    data, _ = cleaned
    flags = ("--data", data, "--clean", "--init", pretrained, "--workers", 0)  # DATA/clean
    status, said, err = run_command(
        "finetune.st", "--task", "refcoco", *flags, "--epochs", 1, "--out", tmp_path / "run"
    )
    assert status == 0, err
    removed = lines(data / "clean" / "removed" / "refcoco.jsonl")
    task, images = TASKS["refcoco"], {line["image"] for line in removed}
    train = task.examples(data / "refcoco", "train")
    kept = [example for example in train if example.images[0] not in images]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["examples"] == len(kept) < len(train)
    assert f"cleaned: {len(train) - len(kept)} of {len(train)} examples of refcoco's train" in said
    for split in ("testA", "testB"):
        examples = PackedExamples.of(task.examples(data / "refcoco", split))
        assert read_cleaned(data / "clean", task).keep(split, examples) == examples
    status, said, err = run_command(
        "finetune.mt", "--tasks", "refcoco,vqa", *flags, "--iterations", 2, "--out", tmp_path / "mt"
    )
    assert status == 0 and "examples of refcoco's train" in said and "examples of vqa's trainval" in said, err


def test_annotations_that_changed_are_not_trained_on(cleaned, tmp_path, run_command):
    data = tmp_path / "data"
    shutil.copytree(cleaned[0], data, symlinks=True)
    (data / "snli_ve" / "snli_ve_train.jsonl").write_text(
        "".join((data / "snli_ve" / "snli_ve_train.jsonl").read_text().splitlines(keepends=True)[1:])
    )
    flags = ("finetune.st", "--task", "snli_ve", "--data", data, "--clean", data / "clean", "--out", tmp_path / "run")
    status, _, err = run_command(*flags)
    assert status == 2 and "snli_ve's train had 80 examples when finetune.clean ran and now has 79" in err


def test_mistakes(cleaned, tmp_path, run_command):
    data, _ = cleaned
    (tmp_path / "empty").mkdir()
    (tmp_path / "images" / "coco").mkdir(parents=True)
    for flags, complaint in (
        (("--data", tmp_path / "nowhere"), "nowhere: no such folder"),
        (("--data", tmp_path / "empty"), "contains no folder of a task"),
        (("--data", data, "--images", tmp_path / "empty"), "should contain one or more folders named coco"),
        (("--data", data, "--images", tmp_path / "images"), "no images in "),
        (("--data", data, "--check", "--out", tmp_path / "none"), "contains no clean.json; create it with"),
    ):
        status, _, err = run_command("finetune.clean", "--out", tmp_path / "out", *flags)
        assert status == 2 and complaint in err and "Traceback" not in err
        assert not (tmp_path / "out" / "clean.json").exists()


def test_a_test_that_is_not_there_is_told(cleaned, tmp_path, run_command):
    data = tmp_path / "data"
    for name in ("guesswhat", "refcoco"):
        shutil.copytree(cleaned[0] / name, data / name)
    (data / "guesswhat" / "guesswhat.test.jsonl.gz").unlink()
    status, said, _ = run_command("finetune.clean", "--data", data)
    assert status == 0 and "not found: guesswhat's test: " in said
    assert {line["test"] for line in lines(data / "clean" / "removed" / "guesswhat.jsonl")} <= {
        "refcoco testA",
        "refcoco testB",
    }


def test_the_published_lists_of_test_images_count(cleaned, tmp_path, run_command):
    data = tmp_path / "data"
    shutil.copytree(cleaned[0] / "guesswhat", data / "guesswhat")
    images = sorted({e.images[0] for e in TASKS["guesswhat"].examples(data / "guesswhat", "train")})[:3]
    (data / "guesswhat" / "cache").mkdir()
    np.save(data / "guesswhat" / "cache" / "coco_test_ids.npy", np.array([int(image) for image in images]))
    assert run_command("finetune.clean", "--data", data)[0] == 0
    found = lines(data / "clean" / "removed" / "guesswhat.jsonl")
    assert [(line["image"], line["test"]) for line in found] == [(image, "coco_test_ids.npy") for image in images]
    (data / "guesswhat" / "cache" / "coco_test_ids.npy").write_bytes(b"")
    status, _, err = run_command("finetune.clean", "--data", data)
    assert status == 2 and "it should be an array of image ids" in err and "Traceback" not in err


def test_the_images_of_gqas_test_leave_and_those_of_its_submission_stay(cleaned, tmp_path, run_command):
    """Both test files count, beside testdev; the submission asks about val too, which is trained on."""
    data = tmp_path / "data"
    for name in ("gqa", "vgqa"):
        shutil.copytree(cleaned[0] / name, data / name)
    task, folder = TASKS["gqa"], data / "gqa"
    testdev = {images[0] for images in task.image_counts(folder, "testdev")}
    images = sorted({image for split in task.learned for (image,) in task.image_counts(folder, split)} - testdev)
    for name, image in (("test_balanced", images[3]), ("test_all", images[7])):
        path = folder / f"{name}_questions.json"
        records = json.loads(path.read_text())
        records["1"] = {"question": "Is it red?", "imageId": image, "isBalanced": name == "test_balanced"}
        path.write_text(json.dumps(records))
    submission = {images[0] for images in task.image_counts(folder, "submission")}
    assert len(submission & set(images)) > 2
    assert run_command("finetune.clean", "--data", data)[0] == 0
    removed = {line["image"]: line["test"] for line in lines(data / "clean" / "removed" / "gqa.jsonl")}
    assert removed == {images[3]: "gqa test", images[7]: "gqa test_all"}
    assert read_cleaned(data / "clean", TASKS["vgqa"]).images >= set(removed)
    assert run_command("finetune.clean", "--data", data, "--check")[0] == 0
    for name in ("test_balanced", "test_all"):
        (folder / f"{name}_questions.json").unlink()
    status, said, _ = run_command("finetune.clean", "--data", data)
    assert status == 0 and not lines(data / "clean" / "removed" / "gqa.jsonl")
    for name in ("test", "test_all"):
        assert f"not found: gqa's {name}: " in said
    assert "2,987 images" in said


@pytest.mark.parametrize(
    ("text", "complaint"),
    [('[{"image_id": 1, "coco_id": "x"}]', "$[0].coco_id"), ('[{"image_id": 1', "truncated"), ("", "empty")],
)
def test_a_map_that_is_not_whole(cleaned, tmp_path, run_command, text, complaint):
    data = tmp_path / "data"
    shutil.copytree(cleaned[0] / "vgqa", data / "vgqa")
    shutil.copytree(cleaned[0] / "gqa", data / "gqa")
    (data / "vgqa" / "image_data.json").write_text(text)
    status, _, err = run_command("finetune.clean", "--data", data)
    assert status == 2 and "image_data.json: cannot be read (" in err and complaint in err
    assert not (data / "clean" / "clean.json").exists()


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20), st.sets(st.integers(0, 12)))
def test_paths_reach_what_is_connected(links, tests):
    photos = Photos()
    for n, (one, other) in enumerate(links):
        photos.same(str(one), str(other), f"map {n}")
    paths = photos.paths_to_tests({str(test): f"test {test}" for test in sorted(tests)})
    reached = set(tests)
    for _ in range(13):
        reached |= {b for pair in links for a, b in (pair, pair[::-1]) if a in reached}
    assert set(paths) == {str(name) for name in reached}
    for name, path in paths.items():
        assert path.names[0] == name and path.test == f"test {path.names[-1]}"
        for (one, other), evidence in zip(zip(path.names, path.names[1:], strict=False), path.evidence, strict=True):
            assert set(map(str, links[int(evidence.removeprefix("map "))])) == {one, other}


@pytest.mark.parametrize(
    ("file", "image"),
    [
        ("COCO_train2014_000000000042", "42"),
        ("COCO_test2015_000000581929", "581929"),
        ("000000000042", "42"),
        ("1000092795", "1000092795"),
        ("dev-850-0-img0", "dev-850-0-img0"),
        ("000042", "000042"),
    ],
)
def test_file_names_of_all_years(file, image):
    assert image_id(file) == image


def test_scan_takes_what_is_asked_for(tmp_path):
    (tmp_path / "a.json").write_text('{"b": [1, 2], "c": {"d": null}}')
    assert scan(tmp_path / "a.json", dict[str, object])["b"] == [1, 2]
    with pytest.raises(UserError, match=r"not found; it is an official file"):
        scan(tmp_path / "b.json", dict)


def test_photos_in_linked_folders_are_compared(tmp_path):
    """A folder that is skipped would let its leaks pass for clean."""
    (tmp_path / "disk" / "val2014").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "disk" / "val2014" / "COCO_val2014_000000000042.jpg")
    (tmp_path / "images" / "coco").mkdir(parents=True)
    (tmp_path / "images" / "coco" / "val2014").symlink_to(tmp_path / "disk" / "val2014")
    assert list(image_files(str(tmp_path / "images"))) == ["coco:42"]


def test_two_photos_with_one_id_are_refused_by_both_names(tmp_path):
    for name in ("coco/train2014/COCO_train2014_000000000042.jpg", "coco/42.png", "genome/42.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"coco/42\.png and .*COCO_train2014_000000000042\.jpg: duplicate image id 42"):
        image_files(str(tmp_path))
    (tmp_path / "coco" / "42.png").unlink()
    assert list(image_files(str(tmp_path))) == ["coco:42", "genome:42"]


def test_photos_that_cannot_be_compared_are_named(tmp_path, capfd):
    folder = tmp_path / "coco"
    for name in ("1.jpg", "._1.jpg", ".ipynb_checkpoints/1.jpg", "__MACOSX/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "2.jpg").symlink_to(tmp_path / "nowhere.jpg")
    shutil.copy(folder / "1.jpg", os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))
    assert image_files(str(tmp_path)) == {"coco:1": folder / "1.jpg"}
    said = capfd.readouterr().out
    assert "2.jpg: is a broken link" in said and "caf\\xe9.jpg: has a name that is not UTF-8" in said


def test_images_that_were_not_compared_are_counted(tmp_path, run_command):
    """By the report and the check: without an image file, and with one that cannot be decoded."""
    for split in ("train", "test1"):
        official_files.nlvr2(tmp_path / "data" / "nlvr2", split)
    folder = tmp_path / "images" / "nlvr2"
    folder.mkdir(parents=True)
    names = {image for split in ("train", "test1") for of in images_of("nlvr2", tmp_path, split) for image in of}
    for number, name in enumerate(sorted(names)[1:]):
        picture(number).save(folder / f"{name}.png")
    damaged = folder / f"{max(names)}.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    note = f"note: 2 of {len(names)} images of nlvr2 have no readable image file and were compared by ids only"
    flags = ("--data", tmp_path / "data", "--processes", 1)
    for more in (("--images", tmp_path / "images"), ("--check",)):
        status, said, err = run_command("finetune.clean", *flags, *more)
        assert status == 0 and note in said.splitlines(), (said, err)


def images_of(name: str, place, split: str):
    return TASKS[name].image_counts(place / "data" / name, split)


def altered(image: Image.Image, kind: str, rng) -> Image.Image:
    width, height = image.size
    if kind == "resized":
        factor = rng.choice([0.5, 0.7, 1.5])
        return image.resize((round(width * factor), round(height * factor)), Image.Resampling.LANCZOS)
    if kind == "recompressed":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=40)
        return Image.open(file).convert("RGB")
    if kind == "cropped":
        left, top = (rng.uniform(0, 0.05, 2) * (width, height)).tolist()
        return image.crop((left, top, left + 0.95 * width, top + 0.95 * height))
    return image.convert("L").convert("RGB")


@pytest.mark.parametrize("kind", ["resized", "recompressed", "cropped", "grey"])
def test_altered_copies_look_the_same_and_other_images_do_not(world, kind):
    rng = np.random.default_rng(0)
    images = [Image.open(path).convert("RGB") for path in sorted((world / "images" / "coco").glob("*.png"))[:40]]
    copies = [altered(image, kind, rng).convert("L") for image in images]
    images = [image.convert("L") for image in images]
    found = ExactSearch(np.stack(list(map(image_hashes, copies)))).pairs(np.stack(list(map(image_hashes, images))))
    same = {(a, b) for a, b in found.tolist() if difference(images[a], copies[b]) <= DIFFERENT}
    assert all(a == b for a, b in same) and len(same) >= 39
    assert difference(images[0], images[1]) > DIFFERENT


@given(st.integers(0, 1000))
def test_near_pairs_are_those_that_are_near(seed):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 1 << 63, (5, len(TRIMMED)), np.uint64)

    def some(count):
        flips = rng.integers(0, 1 << 63, (count, len(TRIMMED)), np.uint64)
        flips &= rng.integers(0, 1 << 63, flips.shape, np.uint64) & rng.integers(0, 1 << 63, flips.shape, np.uint64)
        return base[rng.integers(0, 5, count)] ^ flips

    ours, theirs = some(30), some(20)

    def near(a, b):
        pairs = [(a[0], y) for y in b] + [(x, b[0]) for x in a]
        return min(int(x ^ y).bit_count() for x, y in pairs) <= NEAR

    expected = {(i, j) for i in range(30) for j in range(20) if near(ours[i], theirs[j])}
    found = ExactSearch(theirs, block=7).pairs(ours).tolist()
    assert {tuple(pair) for pair in found} == expected and len(found) == len(expected)


def test_the_look_finds_what_no_map_tells(world, tmp_path, run_command, monkeypatch):
    """Without the map, the images that the world copied from one data set to another are found by their pixels."""
    data = tmp_path / "data"
    shutil.copytree(world, data, ignore=shutil.ignore_patterns("regions", "pairs", "prepared"))
    (data / "regions").symlink_to(world / "regions")
    assert run_command("finetune.clean", "--data", data, "--out", tmp_path / "by_map")[0] == 0
    (data / "vgqa" / "image_data.json").unlink()
    (data / "images" / "coco" / "broken.png").write_bytes(b"no image")
    with monkeypatch.context() as patch:
        patch.setattr(process_pool, "START_METHOD", "spawn")  # as outside of the tests; the other calls fork
        status, said, err = run_command("finetune.clean", "--data", data, "--images", data / "images")
    assert status == 0, err
    assert "broken.png" in said and "image_data.json: needed to match" in said
    for name, task in TASKS.items():
        assert read_cleaned(data / "clean", task).images == read_cleaned(tmp_path / "by_map", task).images, name
    path = next(line for line in lines(data / "clean" / "removed" / "refcoco.jsonl") if line["evidence"])
    assert path["evidence"] == ["look (0.0)"]
    assert run_command("finetune.clean", "--data", data, "--check")[0] == 0
    before = (data / "clean" / "look_alikes.jsonl").read_bytes()
    assert run_command("finetune.clean", "--data", data, "--images", data / "images", "--processes", 1)[0] == 0
    assert (data / "clean" / "look_alikes.jsonl").read_bytes() == before


def test_a_text_that_is_called_an_image_is_told():
    with pytest.raises(Exception, match="image"):
        grey(b"text")
