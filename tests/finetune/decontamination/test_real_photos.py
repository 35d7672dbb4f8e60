"""A real case: validation images of Flickr30k, which e-SNLI-VE names, among the training images of Flickr8k."""

import csv
import io
from itertools import islice

import pytest
from conftest import REAL_DATA
from image_tars import jpeg, lines, write_tar
from PIL import Image

from finetune.decontamination.corpus_images import CorpusPart, corpus_images
from shards.common.excluded_ids import read_excluded
from shards.common.image_id import image_id
from shards.images.image_files import Part, read_records

PHOTOS = REAL_DATA / "photos"
TRAIN, FILES = PHOTOS / "flickr8k-train.tar", ("esnlive_train.csv", "esnlive_dev.csv")
pytestmark = pytest.mark.skipif(not TRAIN.exists(), reason="the photographs of Flickr8k are not on this machine")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    found = []
    for name in FILES:
        with open(PHOTOS / name, encoding="utf-8", newline="") as file:
            found += csv.DictReader(file)
    return found


def test_ids_find_185_of_the_205_photos(rows):
    tests = {image_id(row["Flickr30kID"]) for row in rows}
    part = CorpusPart((str(TRAIN),), TRAIN.stat().st_size)
    names = {name for image in corpus_images(part, "flickr") for name, _ in image.names}
    assert len(tests) == 205 and len(names & {f"flickr:{image}" for image in tests}) == 185


def test_appearance_finds_photos_whose_ids_are_withheld(rows, tmp_path, run_command):
    """Validation images are altered copies, and the training images are numbered."""
    tests = {image_id(row["Flickr30kID"]) for row in rows}
    records = list(read_records(Part([str(TRAIN)], 0)))
    leaked = list(islice((record for record in records if record.id in tests), 30))
    others = list(islice((record for record in records if record.id not in tests), 60))
    (tmp_path / "data" / "esnli_ve").mkdir(parents=True)
    with open(tmp_path / "data" / "esnli_ve" / "esnlive_dev.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "images" / "flickr").mkdir(parents=True)
    for record in leaked:
        image = Image.open(io.BytesIO(record.data))
        (tmp_path / "images" / "flickr" / f"{record.id}.jpg").write_bytes(jpeg(image.resize((200, 150)), 60))
    numbered = {f"{number:09d}.jpg": record.data for number, record in enumerate([*others, *leaked])}
    corpus, out = write_tar(tmp_path / "corpus.tar", numbered), tmp_path / "out"
    flags = ("--data", tmp_path / "data", "--images", tmp_path / "images", "--held_out", "validation")
    status, said, err = run_command("finetune.clean", "--corpus", corpus, *flags, "--out", out, "--processes", 1)
    assert status == 0 and "not found: esnli_ve's test: " in said, err
    row = next(line for line in said.splitlines() if line.startswith("esnli_ve dev")).split()
    assert row[2:5] == ["205", "30", "30"]
    assert read_excluded(out) == {f"{number:09d}" for number in range(len(others), len(numbered))}
    assert {line["photos"][0] for line in lines(out / "found.jsonl")} == {f"flickr:{record.id}" for record in leaked}
