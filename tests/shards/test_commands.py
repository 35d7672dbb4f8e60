"""extract, convert, inspect and world as a user runs them, on good input and on bad."""

import base64
import contextlib
import errno
import gzip
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import WORLD
from PIL import Image

from shards.common.errors import UserError
from shards.common.image_id import image_id
from shards.common.model_hub import _answers
from shards.detectors import detector_of, keep_detector
from shards.images.source_image import image_of, source_of
from shards.storage.dataset import open_dataset, read_captions
from shards.storage.describe_dataset import overlapping
from shards.storage.reader import RegionReader
from shards.storage.sample import Sample
from shards.world.scenes import draw_scene, make_scene


def draw_images(folder, count, captions=True):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        draw_scene(make_scene(rng), rng).save(folder / f"img_{number}.png")
        if captions:
            (folder / f"img_{number}.txt").write_text(f"caption {number}")


def test_a_folder_of_images_becomes_region_shards(tmp_path, run_command):
    draw_images(tmp_path / "in", 7)
    (tmp_path / "in" / "img_2.png").write_bytes(b"damaged")
    flags = ["shards.extract", tmp_path / "in", "--out", tmp_path / "out", "--per_shard", 3, "--max_regions", 20]
    status, out, err = run_command(*flags)
    assert status == 0, err
    assert "6 images, 6 with captions, in 3 shards; 1 skipped" in out and "img_2.png" in out
    (skipped,) = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert skipped["id"] == "img_2" and "cannot be decoded" in skipped["reason"]
    dataset = open_dataset(str(tmp_path / "out"))
    reader = RegionReader(dataset)
    assert [reader[n].info["id"] for n in range(6)] == [f"img_{n}" for n in (0, 1, 3, 4, 5, 6)]
    assert read_captions(dataset)[2] == ("caption 3",)
    assert all(1 <= len(reader[n].features) <= 20 for n in range(6))
    assert (reader[0].boxes >= 0).all() and (reader[0].boxes <= 1).all()
    status, out, _ = run_command(*flags)
    assert status == 0 and "nothing to do" in out
    status, _, err = run_command(*flags[:-1], 21)
    assert status == 2 and "other settings or other input (max_regions)" in err


def write_webdataset(path, captions, metadata=True):
    """A tar of images and captions by key in the form of img2dataset, or of CC3M on the hub, without metadata."""
    with webdataset.TarWriter(str(path)) as writer:
        for key, caption in captions.items():
            rng = np.random.default_rng(int(key))
            jpeg = io.BytesIO()
            draw_scene(make_scene(rng), rng).convert("RGB").save(jpeg, "JPEG")
            sample = {"__key__": key, "jpg": jpeg.getvalue(), "txt": caption}
            if metadata:
                known = {"caption": f"json {key}", "url": f"https://a.org/{key}", "key": key, "status": "success"}
                known |= {"error_message": None, "width": 256, "height": 256, "original_width": 900}
                known |= {"original_height": 600, "exif": "{}", "sha256": "0" * 64}
                sample["json"] = json.dumps(known, indent=4)
            writer.write(sample)


@pytest.mark.parametrize("metadata", [True, False], ids=["img2dataset", "hub"])
def test_conceptual_captions_in_webdataset_form(tmp_path, run_command, metadata):
    """Keys are ids; of a caption that img2dataset left empty, the json has the text."""
    captions = {"000000000": "a river has burst it 's banks", "000000003": "naïve\ncafé", "000010000": ""}
    folder = tmp_path / "cc3m"
    folder.mkdir()
    for number, keys in enumerate((("000000000", "000000003"), ("000010000",))):
        write_webdataset(folder / f"{number:05d}.tar", {key: captions[key] for key in keys}, metadata)
        (folder / f"{number:05d}.parquet").write_bytes(b"PAR1")
        (folder / f"{number:05d}_stats.json").write_text('{"count": 3, "successes": 2}')
    flags = ("--max_regions", 5, "--visual_words", 4)
    for given, out in ((folder, "a"), (folder / "{00000..00001}.tar", "b")):
        status, said, err = run_command("shards.extract", given, "--out", tmp_path / out, *flags)
        assert status == 0, err
        assert f"3 images, {3 if metadata else 2} with captions, in 2 shards\n" in said
        dataset = open_dataset(str(tmp_path / out))
        assert [RegionReader(dataset)[n].info["id"] for n in range(3)] == list(captions)
        last = ("json 000010000",) if metadata else ()
        assert list(read_captions(dataset)) == [("a river has burst it 's banks",), ("naïve café",), last]
    write_webdataset(folder / "validation.tar", {"000000000": "of another part"}, metadata)
    status, _, err = run_command("shards.extract", folder, "--out", tmp_path / "c", *flags)
    assert status == 2 and "validation.tar#000000000.jpg" in err


def as_of_version_1(folder):
    """Region shards as the first version of the detector described them in dataset.json."""
    path = folder / "dataset.json"
    value = json.loads(path.read_text())
    del value["extra"]["plan"]["detector_version"]
    path.write_text(json.dumps(value))


def test_regions_of_another_version_of_the_detector_can_be_read_and_are_never_mixed(tmp_path, run_command):
    draw_images(tmp_path / "in", 2)
    flags = ["shards.extract", tmp_path / "in", "--out", tmp_path / "out", "--visual_words", 4, "--processes", 1]
    assert run_command(*flags)[0] == 0
    assert detector_of(tmp_path / "out", "cpu").name == "pixels"
    as_of_version_1(tmp_path / "out")
    status, _, err = run_command(*flags)
    assert status == 2 and "other settings or other input (detector_version); use another --out" in err
    with pytest.raises(UserError, match=r"out: was made with version 1 of the detector .* this is version 2; extract"):
        detector_of(tmp_path / "out", "cpu")
    assert len(RegionReader(open_dataset(str(tmp_path / "out")))[0].features) == 36
    (tmp_path / "out" / "dataset.json").rename(tmp_path / "saved.json")
    plan = json.loads((tmp_path / "saved.json").read_text())["extra"]["plan"]
    (tmp_path / "out" / "unfinished.json").write_text(json.dumps(plan))
    status, _, err = run_command(*flags)
    assert status == 2 and "(detector_version)" in err


FORMER = {"max_regions": "regions", "visual_words": "words", "visual_words_file": "words_file"}


def with_former_names(plan: dict) -> dict:
    """The plan of an extraction as the previous release stored it."""
    return {FORMER.get(name, name): value for name, value in plan.items()}


def test_shards_of_the_previous_release_are_complete_and_have_their_detector(tmp_path, run_command):
    draw_images(tmp_path / "in", 2)
    command = ("shards.extract", tmp_path / "in", "--out", tmp_path / "out", "--processes", 1)
    status, _, err = run_command(*command, "--words", 4, "--regions", 5)
    assert status == 0 and "use --visual_words\n" in err and "use --max_regions\n" in err
    path = tmp_path / "out" / "dataset.json"
    described = json.loads(path.read_text())
    plan = described["extra"]["plan"]
    assert (plan["visual_words"], plan["max_regions"]) == (4, 5)
    described["extra"]["plan"] = with_former_names(plan)
    assert described["extra"]["plan"]["regions"] == 5
    path.write_text(json.dumps(described))
    flags = ("--visual_words", 4, "--max_regions", 5)
    status, said, err = run_command(*command, *flags)
    assert (status, err) == (0, "") and "is already complete" in said
    status, _, err = run_command(*command, "--visual_words", 3, "--max_regions", 5)
    assert status == 2 and "other settings or other input (visual_words); use another --out" in err
    assert detector_of(tmp_path / "out", "cpu").max_regions == 5
    keep_detector(tmp_path / "out", tmp_path / "kept")
    assert detector_of(tmp_path / "kept", "cpu").max_regions == 5
    kept = json.loads((tmp_path / "kept" / "dataset.json").read_text())
    kept["extra"]["plan"] = with_former_names(kept["extra"]["plan"])
    (tmp_path / "kept" / "dataset.json").write_text(json.dumps(kept))  # as a run of the previous release has it
    assert detector_of(tmp_path / "kept", "cpu").max_regions == 5
    path.unlink()
    (tmp_path / "out" / "unfinished.json").write_text(json.dumps(with_former_names(plan)))
    status, said, _ = run_command(*command, *flags)
    assert status == 0 and "2 images" in said


def test_one_process_and_two_give_the_same_bytes(tmp_path, run_command):
    draw_images(tmp_path / "in", 6)
    for processes in (1, 2):
        status, _, err = run_command(
            "shards.extract",
            tmp_path / "in",
            "--out",
            tmp_path / f"out{processes}",
            "--per_shard",
            2,
            "--processes",
            processes,
        )
        assert status == 0, err
    for number in range(3):
        name = f"regions-{number:05d}.tar"
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()


def test_a_killed_extraction_ends_its_workers_and_goes_on_with_the_shards_that_are_left(tmp_path, run_command):
    draw_images(tmp_path / "in", 60)
    out = tmp_path / "out"
    command = ["shards.extract", tmp_path / "in", "--out", out, "--per_shard", "4", "--processes", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.time() + 60
        while len(list(out.glob("regions-*.index.npz"))) < 3 and time.time() < until:
            time.sleep(0.02)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        process.kill()
        process.wait()
    until = time.time() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.time() < until, "workers outlive what started them"
        time.sleep(0.05)
    assert workers
    done = {path: path.stat().st_mtime_ns for path in out.glob("regions-*.index.npz")}
    assert 3 <= len(done) < 15 and not (out / "dataset.json").exists()
    status, _, err = run_command("pretrain.run", "--data", out, "--out", tmp_path / "run")
    assert status == 2 and "is incomplete; run the command" in err
    (tmp_path / "begun").mkdir()
    shutil.copy(out / "unfinished.json", tmp_path / "begun")
    status, _, err = run_command("pretrain.run", "--data", tmp_path / "begun", "--out", tmp_path / "run")
    assert status == 2 and "is incomplete; run the command" in err
    status, printed, err = run_command(*command)
    assert status == 0 and "60 images, 60 with captions, in 15 shards" in printed
    kept = [path for path in done if path.stat().st_mtime_ns == done[path]]
    assert len(kept) >= len(done) - 1
    assert sorted(read_captions(open_dataset(str(out)))) == sorted((f"caption {n}",) for n in range(60))
    assert not [name for name in os.listdir(out) if name.endswith(".part") and "dataset" in name]


def test_the_real_caption_tars(tmp_path, real_data, run_command):
    """One shard of real images with human sentences, cut to forty."""
    source = real_data / "captions" / "nlvr-00000.tar"
    with tarfile.open(source) as tar, tarfile.open(tmp_path / "in.tar", "w") as part:
        for member in list(tar)[:120]:
            part.addfile(member, tar.extractfile(member))
    status, out, err = run_command("shards.extract", tmp_path / "in.tar", "--out", tmp_path / "out")
    assert status == 0 and "40 images, 40 with captions, in 1 shard" in out, err
    reader = RegionReader(open_dataset(str(tmp_path / "out")))
    assert reader[0].captions == ("Each grey box contains atleast one yellow object touching the edge",)
    assert (reader[0].info["width"], reader[0].info["height"]) == (400, 100)
    status, out, _ = run_command("shards.inspect", tmp_path / "out", "--image", "00000000008", "--check")
    assert status == 0 and "There is a tower with four blocks." in out and "all 1 correct" in out
    picture = Image.open(tmp_path / "out" / "inspect.png").convert("RGB")
    assert picture.size == (1000, 250)
    # The yellow block of the first box is in the picture, not a blank.
    assert picture.getpixel((125, 225))[2] < 60


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: None, "no such file or folder"),
        (lambda folder: folder.mkdir(), "contains no images"),
        (lambda folder: draw_bad(folder), "none of 400 sampled images"),
    ],
)
def test_extracting_nothing_is_one_sentence(tmp_path, run_command, prepare, words):
    prepare(tmp_path / "in")
    status, _out, err = run_command("shards.extract", tmp_path / "in", "--out", tmp_path / "out")
    assert status == 2 and words in err and "Traceback" not in err
    assert not (tmp_path / "out" / "dataset.json").exists()


def draw_bad(folder):
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no")


def test_a_file_where_the_output_folder_should_be_is_one_sentence(dataset_folder, tmp_path, run_command):
    draw_images(tmp_path / "in", 1)
    (tmp_path / "out").write_text("a file")
    for flags in (["shards.extract", tmp_path / "in"], ["pretrain.run", "--data", dataset_folder]):
        status, _, err = run_command(*flags, "--out", tmp_path / "out")
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and str(tmp_path / "out") in err


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, run_command, monkeypatch):
    draw_images(tmp_path / "in", 2)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = run_command("shards.extract", tmp_path / "in", "--out", tmp_path / "out")
    assert status == 2 and "No space left" in err
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tar", ".npz", ".part")]


def test_one_image_is_enough(tmp_path, run_command):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (1, 1), "red").save(tmp_path / "in" / "dot.v2.png")
    status, out, err = run_command("shards.extract", tmp_path / "in", "--out", tmp_path / "out")
    assert status == 0 and "1 image, 0 with captions" in out, err
    assert out.count("for results on photographs set --detector to a trained one") == 1
    sample = RegionReader(open_dataset(str(tmp_path / "out")))[0]
    assert sample.info["id"] == "dot.v2" and sample.key == "dot_v2" and len(sample.features) >= 1
    status, _, err = run_command("pretrain.run", "--data", tmp_path / "out", "--out", tmp_path / "run")
    assert status == 2 and "has no captions" in err and not (tmp_path / "run").exists()


# --- features in TSV


def base64_of(array, dtype) -> str:
    return base64.b64encode(np.asarray(array, dtype).tobytes()).decode()


def row(image_id="1", columns=10, n=3, width=100, height=50, box=(0, 0, 99, 49), features=8):
    boxes = base64_of([box] * n, "<f4")
    values = base64_of(np.arange(n * features), "<f4")
    if columns == 6:
        return "\t".join([image_id, str(width), str(height), str(n), boxes, values])
    objects = [base64_of(np.arange(n) + 4, "<i8"), base64_of(np.full(n, 0.5), "<f4")] * 2
    return "\t".join([image_id, str(height), str(width), *objects, str(n), boxes, values])


def test_inspect_counts_the_regions_that_overlap():
    boxes = np.float32([[0, 0, 0.4, 0.4], [0, 0, 0.4, 0.3], [0.5, 0.5, 1, 1]])
    assert overlapping([Sample("a", np.zeros((3, 1)), boxes)]) == pytest.approx(2 / 3)
    assert overlapping([Sample("a", np.zeros((1, 1)), boxes[:1])]) == 0


@pytest.mark.parametrize("columns", [6, 10])
def test_both_orders_of_columns(tmp_path, run_command, columns):
    (tmp_path / "f.tsv").write_text("".join(row(f"im{n}", columns) + "\n" for n in range(5)))
    status, out, err = run_command("shards.convert", tmp_path / "f.tsv", "--out", tmp_path / "out", "--per_shard", 2)
    assert status == 0 and "5 images in 3 shards" in out, err
    reader = RegionReader(open_dataset(str(tmp_path / "out")))
    sample = reader[reader.number_of("im3")]
    assert (sample.info["width"], sample.info["height"]) == (100, 50)
    np.testing.assert_allclose(sample.boxes, [[0, 0, 0.99, 0.98]] * 3, rtol=1e-6)
    assert sample.features.tolist() == np.arange(24).reshape(3, 8).tolist()
    if columns == 10:
        assert sample.class_ids.tolist() == [[5], [6], [7]] and sample.class_probs.tolist() == [[0.5]] * 3
        assert reader.dataset.num_classes == 1601
    else:
        assert sample.class_ids is None and reader.dataset.num_classes == 0


def test_gzip_gives_the_same(tmp_path, run_command):
    text = "".join(row(f"im{n}") + "\n" for n in range(3))
    (tmp_path / "f.tsv").write_text(text)
    (tmp_path / "f.tsv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("f.tsv", "f.tsv.gz"):
        assert run_command("shards.convert", tmp_path / name, "--out", tmp_path / f"{name}.out")[0] == 0
    one, two = (RegionReader(open_dataset(str(tmp_path / f"{name}.out"))) for name in ("f.tsv", "f.tsv.gz"))
    assert all(np.array_equal(one[n].features, two[n].features) for n in range(3))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("only\ttwo", "2 columns"),
        (row(width=30, height=200), "outside its 30 x 200 image"),
        (row(n=0), "no boxes"),
        (row()[:-7], "base64"),
        (row(features=8).replace("\t3\t", "\t5\t"), "should be 20 according to num_boxes"),
        (row().replace("\t50\t", "\ttall\t"), "not an integer"),
        (row(box=(0, 0, float("nan"), 4)), "outside"),
    ],
)
def test_a_bad_row_is_named_and_skipped_only_on_request(tmp_path, run_command, bad, words):
    (tmp_path / "f.tsv").write_text(f"{row('a')}\n{bad}\n{row('b')}\n")
    flags = ["shards.convert", tmp_path / "f.tsv", "--out"]
    status, _, err = run_command(*flags, tmp_path / "out")
    assert status == 2 and "f.tsv, line 2" in err and words in err and "--on_bad_row skip" in err
    assert not (tmp_path / "out" / "dataset.json").exists()
    status, out, err = run_command(*flags, tmp_path / "out", "--on_bad_row", "skip")
    assert status == 0 and "2 images in 1 shard" in out and "1 skipped" in out and "f.tsv, line 2: " in out
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert words in json.loads(line)["reason"]


@pytest.mark.parametrize("place", [0, 1, 40])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row(n=0), "no boxes"),
        (row()[:-7], "base64"),
        (row(features=16), "has features of size 16; others have 8"),
        ("image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures", "is a header line"),
        (row(box=(0, 0, 0.5, 1)), "has boxes between 0 and 1"),
    ],
)
def test_a_bad_row_may_be_anywhere_in_a_tsv(tmp_path, run_command, bad, words, place):
    """Neither the first row nor the first ones decide what all others must be like."""
    rows = [row(f"im{n}") for n in range(40)]
    rows.insert(place, bad)
    (tmp_path / "f.tsv").write_text("\n".join(rows) + "\n\n \n")
    flags = ("shards.convert", tmp_path / "f.tsv", "--processes", 1, "--out", tmp_path / "out")
    status, _, err = run_command(*flags)
    assert status == 2 and f"f.tsv, line {place + 1}: {words if 'wide' in words else ''}" in err and words in err
    status, out, err = run_command(*flags, "--on_bad_row", "skip")
    assert status == 0 and "40 images in 1 shard" in out and f"skipped {tmp_path}/f.tsv, line {place + 1}: " in out


def test_a_tsv_whose_first_hundred_rows_are_bad(tmp_path, run_command):
    (tmp_path / "f.tsv").write_text("".join(["bad\n"] * 100 + [row("im0") + "\n"] + ["bad\n"] * 900))
    flags = ("shards.convert", tmp_path / "f.tsv", "--processes", 1, "--out", tmp_path / "out")
    status, out, err = run_command(*flags, "--on_bad_row", "skip")
    assert status == 0 and "1 image in " in out and "1000 skipped" in out, err


def test_blank_lines_are_no_end(tmp_path, run_command):
    (tmp_path / "f.tsv").write_text(f"\n{row('a')}\n\n{row('b')}\n\n")
    status, out, err = run_command("shards.convert", tmp_path / "f.tsv", "--out", tmp_path / "out")
    assert status == 0 and "2 images in 1 shard" in out and "skipped" not in out, err


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("given", ["files", "folder", "pattern", "first"])
def test_official_parts_of_a_tsv(tmp_path, run_command, given, packed):
    """karpathy_train_..._genome.tsv.0 and .tsv.1, as files, their folder or a pattern."""
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    files = [folder / "train.tsv.0", folder / ("deeper/train.tsv.1" if given == "folder" else "train.tsv.1")]
    for number, file in enumerate(files):
        text = "".join(row(f"im{2 * number + n}.jpg") + "\n" for n in range(2)).encode()
        if packed and number:
            files[number] = file = file.with_name(f"{file.name}.gz")
        file.write_bytes(gzip.compress(text) if packed and number else text)
    sources = {"files": files, "folder": [folder], "pattern": [f"{folder}/train.tsv.*"], "first": files[:1]}[given]
    status, _, err = run_command("shards.convert", *sources, "--processes", 1, "--out", tmp_path / "out")
    assert status == 0, err
    reader = RegionReader(open_dataset(str(tmp_path / "out")))
    expected = ["im0", "im1", "im2", "im3"][: 2 if given == "first" else 4]
    assert sorted(reader[n].info["id"] for n in range(len(reader))) == expected


@pytest.mark.parametrize("damaged", [(0, 1), (2, 3)])
def test_a_shard_all_of_whose_images_are_skipped_is_removed(tmp_path, run_command, damaged):
    draw_images(tmp_path / "in", 5, captions=False)
    for number in damaged:
        (tmp_path / "in" / f"img_{number}.png").write_bytes(b"damaged")
    flags = ["shards.extract", tmp_path / "in", "--out", tmp_path / "out", "--per_shard", 2]
    status, out, err = run_command(*flags)
    assert status == 0 and "3 images" in out and "in 2 shards; 2 skipped" in out, err
    assert len(open_dataset(str(tmp_path / "out"))) == 3
    assert len([*(tmp_path / "out").glob("*.tar")]) == len([*(tmp_path / "out").glob("regions-*.npz")]) == 2
    assert "nothing to do" in run_command(*flags)[1]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_in_two_parts_of_a_tsv_is_converted_once(tmp_path, run_command, packed, processes):
    """As where two programs that wrote parts of the features overlapped, or a part was given twice."""
    files = [tmp_path / f"train.tsv.{number}{'.gz' if packed else ''}" for number in range(3)]
    for file, names in zip(files, (("a", "b.jpg", "c"), ("d", "x/b.jpg"), ("a", "e", "d")), strict=True):
        text = "".join(row(name, box=(0, 0, 9, len(file.name))) + "\n" for name in names).encode()
        file.write_bytes(gzip.compress(text) if packed else text)
    flags = ["shards.convert", *files, "--processes", processes, "--per_shard", 2, "--out", tmp_path / "out"]
    status, _, err = run_command(*flags)
    assert status == 2 and re.search(
        r"train\.tsv\.(1.*, line 2.*id b|2.*, line [13].*id [ad]); use --on_bad_row skip", err
    )
    assert not (tmp_path / "out" / "dataset.json").exists()
    status, out, err = run_command(*flags, "--on_bad_row", "skip")
    assert status == 0 and "5 images" in out and "3 skipped" in out, err
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    places = ((1, 2, "b"), (2, 1, "a"), (2, 3, "d"))
    expected = [{"where": f"{files[f]}, line {line}", "reason": f"duplicate image id {id}"} for f, line, id in places]
    assert skipped == expected
    reader = RegionReader(open_dataset(str(tmp_path / "out")))
    assert sorted(reader[n].info["id"] for n in range(len(reader))) == list("abcde")


def test_sources_of_several_kinds_are_refused(tmp_path, run_command):
    (tmp_path / "f.tsv").write_text(row())
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "1.npy", np.zeros(1))
    for sources, words in (
        ((tmp_path / "f.tsv", tmp_path / "npy"), "should have the same format"),
        ((tmp_path,), "should have the same format"),
        ((tmp_path / "npy", tmp_path / "npy"), "several paths are only supported for .tsv"),
        ((tmp_path / "g.tsv.*",), "g.tsv.*: no such file"),
    ):
        status, _, err = run_command("shards.convert", *sources, "--out", tmp_path / "out")
        assert status == 2 and words in err and "Traceback" not in err


def test_the_real_features(tmp_path, real_data, run_command):
    source = real_data / "butd" / "train2014_obj36.tsv"
    assert run_command("shards.convert", source, "--out", tmp_path / "out")[0] == 0
    reader = RegionReader(open_dataset(str(tmp_path / "out")))
    lines = source.read_text().splitlines()
    assert len(reader) == len(lines) == 10
    for number, line in enumerate(lines):
        columns = line.split("\t")
        sample = reader[number]
        height, width = int(columns[1]), int(columns[2])
        assert (sample.info["id"], sample.info["height"], sample.info["width"]) == (image_id(columns[0]), height, width)
        features = np.frombuffer(base64.b64decode(columns[9]), "<f4").reshape(36, 2048)
        assert np.array_equal(sample.features, features.astype(np.float16))
        boxes = np.frombuffer(base64.b64decode(columns[8]), "<f4").reshape(36, 4)
        np.testing.assert_allclose(sample.boxes * [width, height, width, height], boxes, rtol=1e-5, atol=1e-4)
        assert sample.class_ids[:, 0].tolist() == (np.frombuffer(base64.b64decode(columns[3]), "<i8") + 1).tolist()
    status, out, _ = run_command("shards.inspect", tmp_path / "out")
    assert status == 0 and "the image is not available" in out and "2048 numbers per region" in out


# --- inspect, world, and mistakes with data sets


def test_inspect_of_a_folder_that_cannot_be_written_names_the_flag(dataset_folder, tmp_path, run_command):
    (dataset_folder / "inspect.png").mkdir()  # an error for root too, as permissions are not
    status, _, err = run_command("shards.inspect", dataset_folder)
    assert status == 2 and err == (
        f"error: {dataset_folder}/inspect.png: cannot be written (Is a directory); "
        "give the file for the picture by --picture\n"
    )
    assert run_command("shards.inspect", dataset_folder, "--picture", tmp_path / "a.png")[0] == 0


def test_inspect_names_an_image_that_is_not_there(dataset_folder, run_command):
    status, _, err = run_command("shards.inspect", dataset_folder, "--image", "nobody")
    assert status == 2 and "--image nobody" in err and "image.0.0" in err


def files_of(folder) -> list[Path]:
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    return [file for file in files if file.parts[0] != "prepared"]


@pytest.mark.slow
def test_the_world_is_the_same_every_time(world, tmp_path, run_command):
    assert run_command("shards.world", "--out", tmp_path / "one", *WORLD)[0] == 0
    files = files_of(tmp_path / "one")
    assert files == files_of(world) and len(files) > 400
    for file in files:
        if file.suffix in (".tar", ".png", ".json", ".jsonl", ".gz", ".p", ".txt") and file.name != "dataset.json":
            assert (tmp_path / "one" / file).read_bytes() == (world / file).read_bytes(), file


def test_the_world_is_made_once(world, tmp_path, run_command):
    texts = [path.read_text().strip() for path in sorted((world / "images" / "pairs").glob("*.txt"))]
    assert len(texts) == 60 and len(set(texts)) > 40
    shutil.copytree(world, tmp_path / "one")
    tar = tmp_path / "one" / "regions" / "pairs" / "regions-00000.tar"
    before = tar.stat().st_mtime_ns
    assert run_command("shards.world", "--out", tmp_path / "one", *WORLD)[0] == 0
    assert tar.stat().st_mtime_ns == before
    described = (tar.parent / "dataset.json").read_text()
    as_of_version_1(tar.parent)
    status, _, err = run_command("shards.world", "--out", tmp_path / "one", *WORLD)
    assert status == 2 and "version 1 of the detector pixels" in err and "remove" in err and "Traceback" not in err
    (tar.parent / "dataset.json").write_text(described)
    status, _, err = run_command("shards.world", "--out", tmp_path / "one", *WORLD, "--seed", 1)
    assert status == 2 and "other settings" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    status, _, err = run_command("shards.world", "--out", tmp_path / "mine")
    assert status == 2 and "not a miniature world" in err


def cut(folder):
    path = folder / "part-00001.tar"
    os.truncate(path, path.stat().st_size // 2)


def other_width(folder):
    from data_sets import make_samples

    from shards.storage.writer import write_shard

    for path in (folder / "dataset.json", folder / "captions.txt"):
        path.unlink()
    write_shard(folder / "part-00001.tar", make_samples(37, seed=1, features=13))


def nan_in_features(folder):
    """Overwrites the features of one sample, as a damaged disk would."""
    from shards.storage.index import load_index

    index = load_index(folder / "part-00001.tar")
    with open(folder / "part-00001.tar", "r+b") as file:
        file.seek(int(index.members[3, 0, 0]) + 128)
        file.write(np.full(4, np.nan, np.float16).tobytes())


@pytest.mark.parametrize(
    ("damage", "flags", "words"),
    [
        (None, ["--data", "missing"], "missing: no such file or folder"),
        (None, ["--data", "."], "contains no .tar files"),
        (cut, [], "part-00001.tar: has"),
        (other_width, ["--workers", 2], "has features of size 13, the model expects 12"),
        (nan_in_features, ["--workers", 0], "part-00001.tar: k1_00003 has features that are NaN"),
        (nan_in_features, ["--workers", 2], "part-00001.tar: k1_00003 has features that are NaN"),
        (None, ["--batch_size", 0], "--batch_size 0: should be 1 or more"),
        (None, ["--batch_size", "abc"], "--batch_size abc: should be an integer"),
        (None, ["--learning_rate", 1], "--learning_rate: no such flag"),
        (None, ["--config", "huge"], "--config huge: must be base, tiny"),
        (None, ["--bert", "no/such"], "--bert no/such"),
        (None, ["--max_tokens", 999], "--max_tokens 999: exceeds max_position_embeddings, 256"),
    ],
)
def test_mistakes_in_pretraining_are_one_sentence(
    dataset_folder, tmp_path, run_command, monkeypatch, damage, flags, words
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if damage:
        damage(dataset_folder)
    data = [] if "--data" in flags else ["--data", dataset_folder]
    run = tmp_path / "run"
    status, _, err = run_command("pretrain.run", *data, "--out", run, "--log_every", 1000, *flags)
    assert status == 2, err
    assert words in err and err.startswith("error: ") and err.count("\n") == 1, err
    assert not list(run.glob("checkpoints/*")) and not (run / "result.json").exists()


def test_pipes_among_images_and_on_the_command_line_end_in_a_sentence(tmp_path, run_command):
    """Reading one would wait for a writer for ever."""
    draw_images(tmp_path / "in", 2)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    flags = ["shards.extract", tmp_path / "in", "--out", tmp_path / "out", "--visual_words", 4, "--processes", 1]
    status, _, err = run_command(*flags)
    assert status == 2 and "pipe.png: is a named pipe" in err
    (tmp_path / "in" / "pipe.png").rename(tmp_path / "pipe")
    for flag in ("--captions", "--boxes", "--class_names", "--weights"):
        status, _, err = run_command(*flags, flag, tmp_path / "pipe")
        assert status == 2 and err == f"error: {flag} {tmp_path / 'pipe'}: is a named pipe; give a file\n"
    status, _, err = run_command("shards.convert", tmp_path / "pipe", "--out", tmp_path / "out")
    assert status == 2 and "--source" in err and "is a named pipe" in err


@pytest.mark.parametrize("name", ["pixel", "../nowhere", "a/b/c"])
def test_a_wrong_detector_lists_the_local_ones_and_asks_nobody(tmp_path, run_command, monkeypatch, name):
    draw_images(tmp_path / "in", 1)
    monkeypatch.setattr("shards.common.model_hub._answers", lambda address: pytest.fail("the hub was asked"))
    status, _, err = run_command("shards.extract", tmp_path / "in", "--out", tmp_path / "out", "--detector", name)
    assert status == 2 and f"--detector {name}: should be one of backbone, pixels, x152, or " in err


@pytest.mark.slow  # the next test gives up without waiting
def test_a_hub_that_does_not_answer_is_asked_once(tmp_path):
    """The hub's client would ask for each of many files."""
    draw_images(tmp_path / "in", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "shards.extract", tmp_path / "in", "--out", tmp_path / "out"]
        command = [*map(str, command), "--detector", "nobody/nothing"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 2 and "the hub does not answer, its cache was searched" in done.stderr, done.stderr
        silent.setblocking(False)
        requests = []
        with contextlib.suppress(BlockingIOError):  # until there are no more
            while True:
                with silent.accept()[0] as connection:
                    requests.append(connection.recv(100))
        assert [request.startswith(b"HEAD / ") for request in requests].count(True) == 1
        assert not any(b"nobody" in request for request in requests)  # files of the model


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    """Neither a connection without an answer nor a name resolution, which has no timeout, is waited for."""
    given_up, timeouts, waited = threading.Event(), [], []

    def never(request, timeout):
        timeouts.append(timeout)
        waited.append(given_up.wait(60))
        raise TimeoutError

    monkeypatch.setattr("urllib.request.urlopen", never)
    monkeypatch.setattr("shards.common.model_hub.PATIENCE", 0.01)
    assert not _answers("http://hub.invalid")
    assert timeouts == [0.01] and not waited
    given_up.set()


def test_a_source_outside_of_the_images_folders_is_not_opened(tmp_path, run_command):
    """What shards of somebody else name: any file of this machine."""
    draw_images(tmp_path / "data" / "in #1", 2, captions=False)
    draw_images(tmp_path / "private", 1)
    flags = ["--detector", "pixels", "--visual_words", 4, "--processes", 1]
    for out in ("data/regions/in", "elsewhere"):
        assert run_command("shards.extract", tmp_path / "data" / "in #1", "--out", tmp_path / out, *flags)[0] == 0
        folder = tmp_path / out
        sample = RegionReader(open_dataset(str(folder)))[0]
        assert image_of(sample, folder)[1] == "" and Path(source_of(sample, folder)).is_file()
        for source in (tmp_path / "private" / "img_0.png", os.path.relpath(tmp_path / "private" / "img_0.png", folder)):
            sample.info["source"] = str(source)
            image, why = image_of(sample, folder)
            assert "is outside of the folders of these images" in why and np.asarray(image).min() == 255
            with pytest.raises(UserError, match="not opened"):
                source_of(sample, folder)


@pytest.mark.parametrize("path", ["../other/part-00000.tar", "/etc/passwd"])
def test_a_shard_outside_of_its_data_set_is_not_opened(dataset_folder, run_command, path):
    described = json.loads((dataset_folder / "dataset.json").read_text())
    described["shards"][0]["path"] = path
    (dataset_folder / "dataset.json").write_text(json.dumps(described))
    status, _, err = run_command("shards.inspect", dataset_folder)
    assert status == 2 and f"path of a shard is {path}; should be a file name in this folder" in err


def test_no_room_for_semaphores_names_their_place(tmp_path, run_command, monkeypatch):
    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    draw_images(tmp_path / "in", 1)
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", no_room)
    status, _, err = run_command("shards.extract", tmp_path / "in", "--out", tmp_path / "out", "--visual_words", 4)
    assert status == 2 and "/dev/shm: worker processes cannot use shared memory (No space left on device)" in err
