"""finetune.given_boxes, and annotated boxes as regions in training."""

import json
import shutil

import numpy as np
import pytest

from finetune.data.task_data import CollatorSettings, open_data
from finetune.tasks import find_task
from pretrain.tokenizer.tokenizer import learn_tokenizer
from shards.world.scenes import HEIGHT, WIDTH


@pytest.fixture
def with_boxes(world, tmp_path, run_command):
    """The world's RefCOCO with region shards of its annotated boxes, made by the documented commands."""
    data = tmp_path / "data"
    (data / "regions").mkdir(parents=True)
    (data / "refcoco").symlink_to(world / "refcoco")
    (data / "regions" / "coco").symlink_to(world / "regions" / "coco")
    lines = tmp_path / "boxes.jsonl"
    status, out, _ = run_command("finetune.given_boxes", "--task", "refcoco", "--data", data, "--out", lines)
    folder = data / "regions" / "refcoco_boxes"
    assert status == 0 and f"shards.extract IMAGES --boxes {lines} --out {folder}" in out
    size = {(line["width"], line["height"]) for line in map(json.loads, lines.read_text().splitlines())}
    assert size == {(WIDTH, HEIGHT)}
    words = world / "regions" / "pairs" / "visual_words.npz"
    flags = ("--boxes", lines, "--out", folder, "--visual_words_file", words, "--processes", 1)
    status, _, err = run_command("shards.extract", world / "images" / "coco", *flags)
    assert status == 0, err
    return data


def test_annotated_boxes_are_regions_in_training_alone(with_boxes):
    task = find_task("refcoco")
    data = open_data(task, str(with_boxes), "stop", annotated=True)
    examples = data.examples("train")
    tokenizer = learn_tokenizer([example.text for example in examples], 300)
    numbers = np.arange(12)
    settings = CollatorSettings(tokenizer, None, positions=256, max_regions=10)
    more = data.collator(examples, settings, seed=0)(0, numbers)
    plain = data.collator(examples, settings)(0, numbers)
    assert plain.pairs.valid.sum(1).tolist() == [10] * 12
    for row, number in enumerate(numbers):
        example = examples[number]
        given = task.given_boxes(with_boxes / "refcoco")[example.images[0]].boxes
        assert more.pairs.valid[row].sum() == 10 + len(given)
        np.testing.assert_array_equal(more.pairs.features[row, :10], plain.pairs.features[row])
        np.testing.assert_allclose(more.target[row, :11], plain.target[row])
        of_given = more.target[row, 11 : 11 + len(given)].numpy()
        assert of_given.max() == pytest.approx(1, abs=1e-4)  # the box that is meant is one of them
        size = np.array([example.facts["width"], example.facts["height"]] * 2)
        boxes = more.pairs.boxes[row, 10 : 10 + len(given)].numpy() * size
        np.testing.assert_allclose(boxes, np.array(list(given.values())), atol=1e-3)
        assert tuple(given.values())[int(of_given.argmax())] == example.target


def test_runs_take_them(with_boxes, tmp_path, run_command, pretrained):
    flags = ("--task", "refcoco", "--data", with_boxes, "--init", pretrained, "--workers", 0, "--epochs", 1)
    status, _, err = run_command("finetune.st", *flags, "--annotated_boxes", "true", "--out", tmp_path / "run")
    assert (status, err) == (0, "")
    shutil.rmtree(with_boxes / "regions" / "refcoco_boxes")
    status, _, err = run_command("finetune.st", *flags, "--annotated_boxes", "true", "--out", tmp_path / "other")
    assert status == 2 and "refcoco_boxes" in err and "Traceback" not in err


def test_tasks_without_boxes_say_so(world, tmp_path, run_command, pretrained):
    flags = ("--data", world, "--out", tmp_path / "boxes.jsonl")
    status, _, err = run_command("finetune.given_boxes", "--task", "vqa", *flags)
    assert status == 2 and "use one of visual7w, refcoco, refcoco+, refcocog, guesswhat, flickr30k_entities" in err
    flags = ("--data", world, "--init", pretrained, "--out", tmp_path / "run", "--annotated_boxes", "true")
    status, _, err = run_command("finetune.st", "--task", "vqa", *flags)
    assert status == 2 and "--annotated_boxes: applies to referring expressions only, not to vqa" in err


@pytest.mark.parametrize("task", ["visual7w", "guesswhat"])
def test_boxes_of_candidates_are_those_that_the_world_gives(world, tmp_path, run_command, task):
    run_command("finetune.given_boxes", "--task", task, "--data", world, "--out", tmp_path / "boxes.jsonl")

    def read(path) -> dict:
        lines = map(json.loads, path.read_text().splitlines())
        boxes = {str(x["image_id"]): dict(zip(map(str, x["box_ids"]), x["boxes"], strict=True)) for x in lines}
        return boxes

    mine, given = read(tmp_path / "boxes.jsonl"), read(world / "images" / f"{task}_boxes.jsonl")
    assert len(mine) > 10
    for image, boxes in mine.items():
        for key, box in boxes.items():
            np.testing.assert_allclose(box, given[image][key], atol=1e-6)
