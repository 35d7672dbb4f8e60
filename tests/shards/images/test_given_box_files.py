"""shards.extract --boxes: given boxes are described as the detector's regions are."""

import json

import numpy as np
import pytest
from PIL import Image

from shards.detection import handcrafted
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader

LINES = [
    {"image_id": 17, "boxes": [[10, 20, 50, 60], [0, 0, 200, 30.5]], "box_ids": [4, 9]},
    {"image_id": "b", "boxes": [[5, 5, 25, 45]], "box_ids": ["x"]},
]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("COCO_train2014_000000000017", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_given_boxes_keep_their_order_and_ids_and_are_cut_to_the_image(images, tmp_path, run_command):
    boxes = write(tmp_path / "boxes.jsonl", [*LINES, {"image_id": "gone", "boxes": [[0, 0, 1, 1]], "box_ids": [1]}])
    flags = ("--out", tmp_path / "out", "--visual_words", 4, "--processes", 1)
    status, out, _ = run_command("shards.extract", images, "--boxes", boxes, *flags)
    assert status == 0 and "1 of its 3 images were not found" in out and "2 images" in out
    reader = RegionReader(open_dataset(str(tmp_path / "out")))
    samples = {sample.info["id"]: sample for sample in (reader[n] for n in range(len(reader)))}
    sample = samples["17"]
    assert sample.info["box_ids"] == ["4", "9"] and samples["b"].info["box_ids"] == ["x"]
    expected = np.float32([[0.1, 0.25, 0.5, 0.75], [0, 0, 1, 30.5 / 80]])
    np.testing.assert_allclose(sample.boxes, expected, atol=1e-6)
    image = np.asarray(Image.open(images / "COCO_train2014_000000000017.png"))
    described = handcrafted.crop_features(image, np.float32([[10, 20, 50, 60], [0, 0, 100, 30.5]]))
    np.testing.assert_allclose(sample.features, described, atol=2e-3)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([{"image_id": "b", "boxes": [[1, 2, 3]], "box_ids": [1]}], "line 1: should have boxes of four numbers"),
        ([LINES[1], LINES[1]], "line 2: duplicate image b"),
        (
            [LINES[1] | {"boxes": [[150, 5, 160, 10]]}],
            "line 1, image b: box [150.0, 5.0, 160.0, 10.0] lies outside its image",
        ),
        (
            [LINES[1] | {"boxes": [[120, 5, 120, 10]]}],
            "line 1, image b: box [120.0, 5.0, 120.0, 10.0] lies outside its",
        ),
        (
            [LINES[1] | {"width": 80, "height": 100}],
            "line 1, image b: the image is 100 x 80 pixels and was annotated with 80",
        ),
        (
            [LINES[1] | {"width": 200, "height": 164}],
            "annotated with 200 x 164, another aspect ratio; extract the image",
        ),
        ([LINES[1] | {"width": 0, "height": 80}], "line 1: width and height are (0, 80); should be those of the image"),
        ([LINES[1] | {"width": 100}], "line 1: width and height are (100, None); should be those of the image"),
        ([LINES[1] | {"boxes": [[9, 5, 8, 10]]}], "line 1: has a box that ends before it begins"),
        ([LINES[1] | {"boxes": [[0, 0.5, 0.5, 1]]}], "all boxes are between 0 and 1; they should be in pixels"),
        ([LINES[1] | {"box_ids": []}], "boxes of four numbers and the same number of box_ids; it has 0 ids"),
        ([{"image_id": "b"}], "line 1: cannot be read (KeyError: 'boxes'); it should be an object with"),
        ([LINES[1] | {"image_id": "nowhere"}], "has boxes for none of the images"),
        ([], "is empty"),
    ],
)
def test_boxes_that_cannot_be_used_are_told_by_line(images, tmp_path, run_command, lines, complaint):
    boxes = write(tmp_path / "boxes.jsonl", lines)
    flags = ("--out", tmp_path / "out", "--visual_words", 4, "--processes", 1)
    status, _, err = run_command("shards.extract", images, "--boxes", boxes, *flags)
    assert status == 2 and complaint in err and "Traceback" not in err


def test_annotated_boxes_without_area_are_described_as_a_pixel(images, tmp_path, run_command):
    """COCO has some, which finetune.given_boxes writes and candidates of a task may be."""
    flat = [[10, 20, 10, 60], [5, 80, 50, 80], [100, 0, 100, 0], [3, 4, 30, 40]]
    boxes = write(tmp_path / "boxes.jsonl", [{"image_id": "b", "boxes": flat, "box_ids": [1, 2, 3, 4]}])
    flags = ("--out", tmp_path / "out", "--visual_words", 4, "--processes", 1)
    status, out, err = run_command("shards.extract", images, "--boxes", boxes, *flags)
    assert status == 0 and "3 boxes without area, enlarged to a width or height of one pixel" in out, err
    sample = RegionReader(open_dataset(str(tmp_path / "out")))[0]
    expected = np.float32([[10, 20, 11, 60], [5, 79, 50, 80], [99, 0, 100, 1], [3, 4, 30, 40]])
    np.testing.assert_allclose(sample.boxes * [100, 80, 100, 80], expected, atol=1e-4)
    assert sample.info["box_ids"] == ["1", "2", "3", "4"] and np.isfinite(sample.features).all()


@pytest.mark.parametrize("size", [(400, 320), (50, 40), (100, 80), (640, 513), (13, 10)])
def test_boxes_of_a_larger_or_smaller_original_are_scaled_to_the_image(images, tmp_path, run_command, size):
    width, height = size
    original = np.array([[0.1, 0.25, 0.5, 0.75], [0, 0, 1, 1]]) * (size * 2)
    line = {"image_id": "b", "width": width, "height": height, "boxes": original.tolist(), "box_ids": [1, 2]}
    flags = ("--out", tmp_path / "out", "--visual_words", 4, "--processes", 1)
    boxes = write(tmp_path / "boxes.jsonl", [line])
    status, _, err = run_command("shards.extract", images, "--boxes", boxes, *flags)
    assert status == 0, err
    sample = RegionReader(open_dataset(str(tmp_path / "out")))[0]
    np.testing.assert_allclose(sample.boxes, np.float32([[0.1, 0.25, 0.5, 0.75], [0, 0, 1, 1]]), atol=1e-5)
    assert (sample.info["width"], sample.info["height"]) == (100, 80)


def test_ids_of_images_may_be_file_names(images, tmp_path, run_command):
    line = LINES[1] | {"image_id": "val2014/COCO_train2014_000000000017.jpg"}
    boxes = write(tmp_path / "boxes.jsonl", [line])
    boxes.write_bytes(b"\xef\xbb\xbf" + boxes.read_bytes())
    flags = ("--out", tmp_path / "out", "--visual_words", 4, "--processes", 1)
    status, out, err = run_command("shards.extract", images, "--boxes", boxes, *flags)
    assert status == 0 and "1 image," in out, err
