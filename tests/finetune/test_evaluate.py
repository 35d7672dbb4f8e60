"""finetune.evaluate: what it prints and stores, compared with the official files and its own submissions."""

import json
import os
import shutil

import pytest
from official_files import vqa_accuracy_by_type

from finetune.annotations.answers import normalise
from finetune.annotations.boxes import iou_with_box
from finetune.config import EvaluateConfig
from finetune.data.regions import Regions
from finetune.evaluation.scores import ranking_note
from finetune.inference import progress
from finetune.inference.evaluate_task import predict_split
from finetune.inference.model_loader import load
from finetune.reporting.paper_layout import table9
from finetune.run_dirs.finished_runs import find_runs
from finetune.run_dirs.model_source import ModelSource
from finetune.tasks import all_tasks
from shards.common.dist_info import ALONE


def test_vqa_by_question_type(world, trained, tmp_path, run_command):
    flags = ("--run", trained, "--data", world, "--workers", 0, "--task", "vqa", "--split", "val")
    files = ("--submission", tmp_path / "vqa.json", "--scores", tmp_path / "scores.json")
    status, out, err = run_command("finetune.evaluate", *flags, *files)
    assert (status, err) == (0, "")
    said = {one["question_id"]: one["answer"] for one in json.loads((tmp_path / "vqa.json").read_text())}
    annotations = json.loads((world / "vqa" / "v2_mscoco_val2014_annotations.json").read_text())
    expected = vqa_accuracy_by_type(annotations, said, "question_type", normalise)
    kept = json.loads((tmp_path / "scores.json").read_text())
    by = kept["by"]["question type"]
    assert {name: 100 * part["score"] for name, part in by.items()} == pytest.approx(expected) and len(expected) > 2
    assert sum(part["examples"] for part in by.values()) == kept["examples"] == len(said)
    for name, accuracy in vqa_accuracy_by_type(annotations, said, "answer_type", normalise).items():
        assert 100 * kept[name] == pytest.approx(accuracy)
    printed = {line.rsplit(maxsplit=2)[0]: line.split()[-2] for line in out.splitlines() if line.startswith(tuple(by))}
    assert printed == {name: f"{accuracy:.2f}" for name, accuracy in expected.items()}


def test_an_image_that_was_rotated_after_its_annotation_is_named(world, trained, tmp_path, run_command):
    """As where an EXIF orientation was applied in extraction: boxes of the annotations lie elsewhere in the image."""
    for folder in world.iterdir():
        if folder.name != "refcoco":
            (tmp_path / folder.name).symlink_to(folder)
    shutil.copytree(world / "refcoco", tmp_path / "refcoco")
    path = tmp_path / "refcoco" / "instances.json"
    value = json.loads(path.read_text())
    for image in value["images"]:
        image["width"], image["height"] = 2 * image["width"], 4 * image["height"]  # twice as large is the same image
    path.write_text(json.dumps(value))
    flags = ("--run", trained, "--data", tmp_path, "--workers", 0, "--task", "refcoco", "--split", "val")
    status, _, err = run_command("finetune.evaluate", *flags, "--scores", tmp_path / "scores.json")
    assert status == 2 and "extract the image as annotated" in err and "was extracted from an image of" in err
    for image in value["images"]:
        image["height"] //= 2
    path.write_text(json.dumps(value))
    assert run_command("finetune.evaluate", *flags, "--scores", tmp_path / "scores.json")[0] == 0


def test_a_run_that_may_not_be_written_is_named_before_the_predictions(trained, tmp_path, run_command, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=lambda folder, names: ["scores"])
    writable, plain = {run: False}, os.access  # the tests may run as root, who may write everywhere
    monkeypatch.setattr("os.access", lambda path, mode: writable.get(path, plain(path, mode)))
    monkeypatch.setattr("finetune.inference.evaluate_task.predict", None)
    status, _, err = run_command("finetune.evaluate", "--run", run, "--workers", 0, "--task", "vqa", "--split", "val")
    assert status == 2 and f"{run}: no permission to write the scores; give another place with --scores" in err


def test_the_model_is_loaded_once_for_all_tasks(world, trained, tmp_path, run_command, monkeypatch):
    loaded, plain = [], ModelSource.load
    monkeypatch.setattr(ModelSource, "load", lambda source, model: loaded.append(model) or plain(source, model))
    opened, read = [], Regions.__init__
    monkeypatch.setattr(Regions, "__init__", lambda regions, folder: opened.append(folder) or read(regions, folder))
    flags = ("--run", trained, "--data", world, "--workers", 0, "--task", "vqa,gqa,refcoco,coco_retrieval,snli_ve")
    status, out, err = run_command("finetune.evaluate", *flags)
    assert (status, err) == (0, "") and "mean of 5 tasks" in out
    assert len(loaded) == 1
    assert len(opened) == len(set(opened)) == 3  # COCO's images, GQA's and Flickr's


def grounded(world, name: str, split: str, submission) -> list[bool]:
    """Of every expression of a split, whether the submission's box has an IoU above 0.5 with the annotated one."""
    said = {one["sent_id"]: one["bbox"] for one in json.loads(submission.read_text())}
    right = []
    for example in all_tasks()[name].examples(world / name, split):
        x, y, width, height = said[example.id]
        right.append(bool(iou_with_box((x, y, x + width, y + height), example.target)[0] > 0.5))
    return right


def test_test_splits_are_pooled(world, trained, tmp_path, run_command):
    """All examples of testA and testB together, as in table 9, and not the mean of the two: they differ in size."""
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("scores"))
    flags = ("finetune.evaluate", "--run", run, "--data", world, "--workers", 0)
    right = {}
    for split in ("testA", "testB"):
        file = tmp_path / f"{split}.json"
        status, _, err = run_command(*flags, "--task", "refcoco", "--split", split, "--submission", file)
        assert (status, err) == (0, "") and not (run / "scores" / "refcoco-tests.json").exists()
        right[split] = grounded(world, "refcoco", split, file)
    a, b = right.values()
    assert len(a) != len(b) and sum(a) / len(a) != sum(b) / len(b)
    status, out, err = run_command(*flags, "--task", "refcoco,refcocog,nlvr2", "--split", "tests")
    assert (status, err) == (0, "")
    assert "1 of 4: RefCOCO, testA\n" in out and "4 of 4: NLVR2, test1\n" in out
    kept = json.loads((run / "scores" / "refcoco-tests.json").read_text())
    pooled, mean = (sum(a) + sum(b)) / (len(a) + len(b)), (sum(a) / len(a) + sum(b) / len(b)) / 2
    assert kept["score"] == kept["accuracy"] == pytest.approx(pooled) and kept["examples"] == len(a) + len(b)
    assert kept["mean_of_splits"] == pytest.approx(mean) and kept["interval"][0] <= pooled <= kept["interval"][1]
    assert kept["splits"] == {"testA": pytest.approx(sum(a) / len(a)), "testB": pytest.approx(sum(b) / len(b))}
    assert f"RefCOCO, testA and testB pooled: accuracy {pooled:.1%} (" in out
    assert f"on {len(a) + len(b)} examples; mean of the splits {mean:.1%}\n" in out
    assert not (run / "scores" / "refcocog-tests.json").exists()  # which has one test split
    others = [json.loads((run / "scores" / f"{name}.json").read_text()) for name in ("refcocog-test", "nlvr2-test1")]
    means = (pooled + sum(other["score"] for other in others)) / 3
    assert f"mean of 3 tasks: {means:.1%} (" in out and f"{100 * pooled:.2f}" in out.splitlines()[-1]
    rows = {row.name: row.cells for row in table9(find_runs([str(run)]))[1]}
    own = rows["RefCOCO"]["AT, not cleaned"]
    assert own.value == pytest.approx(100 * pooled) and own.note == "testA + testB"


@pytest.mark.parametrize("name", ["refcoco", "flickr_retrieval"])
def test_progress_and_the_time_left_are_printed(world, trained, monkeypatch, capsys, name):
    clock = iter(range(10**6))  # a second for each look at it, so 10 s for each of what is counted
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 10 * next(clock))
    config = EvaluateConfig(run=str(trained), data=str(world), batch_size=7, workers=0)
    task_pass, collator = load(config, all_tasks()[name], "val")
    predict_split(config, "val", task_pass, collator, ALONE)
    lines = capsys.readouterr().out.splitlines()
    if name == "refcoco":
        total = len(collator.examples)
        done = list(range(7, total, 7))
    else:
        captions, images = len(collator.examples), len({example.images for example in collator.examples})
        total = captions * images
        passes = [min(7, captions - begin) for begin in range(0, captions, 7)] * images
        done = [sum(passes[:number]) for number in range(1, len(passes))]
    title = all_tasks()[name].title
    expected = [(n, round(10 * number / n * (total - n))) for number, n in enumerate(done, 1)]
    assert lines == [f"{title}, val: {n / total:.0%} done, {s // 60}:{s % 60:02d} left" for n, s in expected] and lines


def test_recall_among_another_number_of_images_than_the_papers_is_noted():
    found = [{"coco_retrieval": {"images": 5000}}, {"flickr_retrieval": {"images": 40}, "vqa": {}}]
    note = ranking_note(*found, {"coco_retrieval": {"images": 1000}})
    assert note.startswith("R@k ranks 5,000 images of COCO retrieval, 40 images of Flickr30k retrieval; ")
    assert "in the paper it ranks 1,000" in note and ranking_note({"coco_retrieval": {"images": 1000}}) == ""
