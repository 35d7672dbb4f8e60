"""The folders and the forms of the published code's datasets.tar.gz, beside the official files of the same data."""

import json
import pickle
import shutil

import numpy as np
import pytest

from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.official_files import find_file
from finetune.annotations.reference_annotations import captions
from finetune.data.regions import Regions, detector_note, other_detector_note, rows_of_boxes
from finetune.tasks import all_tasks
from shards.common.errors import UserError
from shards.detectors import keep_detector
from shards.storage.dataset import finish_dataset
from shards.storage.sample import Sample
from shards.storage.writer import write_shard

TASKS = all_tasks()
FOLDERS = {
    "vqa": "VQA",
    "vgqa": "visual_genome",
    "gqa": "gqa",
    "coco_retrieval": "cocoRetreival",
    "flickr_retrieval": "flickr30k",
    "refcoco": "refcoco",
    "refcoco+": "refcoco+",
    "refcocog": "refcocog",
    "visual7w": "visual7w",
    "guesswhat": "guesswhat",
    "nlvr2": "nlvr2",
    "snli_ve": "visual_entailment",
}


@pytest.fixture(scope="module")
def published(world, tmp_path_factory):
    """The small world in the published folders: processed forms where the archive has these, official files else."""
    data = tmp_path_factory.mktemp("published") / "datasets"
    for task, folder in FOLDERS.items():
        if task in ("vqa", "vgqa", "gqa"):
            write_targets(world / task, data / folder, TASKS[task])
        elif task.endswith("retrieval"):
            write_captions(world / task, data / folder, TASKS[task])
        elif task.startswith("refcoco"):
            shutil.copytree(world / task, data / folder / task)  # a folder below, as REFER has it
        else:
            shutil.copytree(world / task, data / folder)
    shutil.copy(world / "vqa" / "v2_OpenEnded_mscoco_train2014_questions.json", data / "VQA")
    shutil.copy(world / "vqa" / "v2_OpenEnded_mscoco_val2014_questions.json", data / "VQA")
    (data / "regions").symlink_to(world / "regions")
    return data


def write_targets(source, folder, task) -> None:
    """cache/*_target.pkl with the answers' numbers, and the answers."""
    vocabulary = task.vocabulary(source)
    cache = folder / "cache"
    cache.mkdir(parents=True)
    (cache / "trainval_label2ans.pkl").write_bytes(pickle.dumps(vocabulary.answers))
    for split in {"vqa": ("train", "val"), "vgqa": ("train", "val"), "gqa": ("trainval", "minval")}[task.name]:
        records = []
        for example in task.read(source, split):
            known = {answer: score for answer, score in example.target.items() if answer in vocabulary.labels}
            record = {
                "question_id": example.id,
                "image_id": int(example.images[0]),
                "labels": [vocabulary.labels[answer] for answer in known],
                "scores": list(known.values()),
            }
            records.append(record if task.name == "vqa" else record | {"question": example.text})
        name = {"trainval": "train", "minval": "val"}.get(split, split)
        (cache / f"{name}_target.pkl").write_bytes(pickle.dumps(records, 2))


def write_captions(source, folder, task) -> None:
    folder.mkdir()
    for split, name in (("train", "train"), ("val", "val_set0"), ("test", "test_set0")):
        images: dict[str, list[str]] = {}
        for example in task.read(source, split):
            images.setdefault(example.images[0], []).append(example.text)
        coco = task.name == "coco_retrieval"
        lines = [
            {
                "id": int(image) if coco else number,
                "img_path": f"COCO_val2014_{int(image):012d}.jpg" if coco else f"{image}.jpg",
                "sentences": captions,
            }
            for number, (image, captions) in enumerate(images.items())
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"all_data_final_{name}_2014.jsonline").write_text(text)


@pytest.mark.parametrize("name", FOLDERS)
def test_both_readings_give_the_same_examples(world, published, name):
    task = TASKS[name]
    folder = task.folder(published)
    assert folder == published / FOLDERS[name]
    vocabulary = task.vocabulary(world / name) if hasattr(task, "vocabulary") else None
    if vocabulary:
        assert task.vocabulary(folder).answers == vocabulary.answers
    for split in task.splits[:2]:
        one, two = task.read(world / name, split), task.read(folder, split)
        assert len(one) == len(two) > 5
        for ours, theirs in zip(one, two, strict=True):
            assert (ours.text, ours.images, ours.candidates) == (theirs.text, theirs.images, theirs.candidates)
            if vocabulary:
                assert ours.id == theirs.id
                np.testing.assert_allclose(vocabulary.target(ours.target), vocabulary.target(theirs.target))
            else:
                assert ours.target == theirs.target
                assert ours.id == theirs.id or name.endswith("retrieval")


@pytest.mark.parametrize("task", ["vqa", "vgqa", "flickr_retrieval", "refcoco"])
def test_a_task_is_trained_and_scored_on_them(published, pretrained, tmp_path, run_command, task):
    flags = ("--data", published, "--workers", 0)
    out = tmp_path / "run"
    done = run_command("finetune.st", "--task", task, "--init", pretrained, "--epochs", 1, "--out", out, *flags)
    assert (done[0], done[2]) == (0, "")
    status, said, err = run_command("finetune.evaluate", "--run", out, *flags)
    assert (status, err) == (0, "") and ("soft score" in said) == (task == "vqa")


def test_official_files_come_first(world, published, tmp_path):
    folder = tmp_path / "VQA"
    shutil.copytree(published / "VQA", folder)
    for name in ("train2014", "val2014"):
        shutil.copy(world / "vqa" / f"v2_mscoco_{name}_annotations.json", folder)
    assert "answers" in TASKS["vqa"].read(folder, "minval")[0].facts


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": [10**6], "scores": [1.0]}, r"labels \[1000000\] should be numbers below"),
        ({"labels": [0], "scores": []}, "labels and scores should be lists of the same length"),
        ({"labels": None}, "labels is None; should be list"),
        ({"labels": [0], "scores": [2.0]}, r"scores \[2\.0\] should be numbers between 0 and 1"),
        ({"labels": [0], "scores": [-1.0]}, r"scores \[-1\.0\] should be numbers between 0 and 1"),
        ({"labels": [0], "scores": ["1"]}, r"scores \['1'\] should be numbers between 0 and 1"),
    ],
)
def test_targets_that_are_broken(published, tmp_path, change, complaint):
    folder = tmp_path / "visual_genome"
    shutil.copytree(published / "visual_genome", folder)
    path = folder / "cache" / "train_target.pkl"
    records = pickle.loads(path.read_bytes())
    records[3] |= change
    path.write_bytes(pickle.dumps(records))
    with pytest.raises(UserError, match=rf"train_target\.pkl, record 3: {complaint}"):
        TASKS["vgqa"].read(folder, "train")
    (folder / "cache" / "trainval_label2ans.pkl").unlink()
    with pytest.raises(UserError, match=r"trainval_label2ans\.pkl: not found"):
        TASKS["vgqa"].read(folder, "train")


def test_a_file_that_is_there_twice(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.json").write_text("{}")
    with pytest.raises(UserError, match=r"found both .*a/x\.json and .*b/x\.json; keep one"):
        find_file(tmp_path, "x.json")
    (tmp_path / "x.json").write_text("{}")
    assert find_file(tmp_path, "x.json") == tmp_path / "x.json"


def made_of(folder, ids, width=4):
    samples = [
        Sample(name, np.ones((2, width)), np.array([[0, 0, 0.5, 0.5], [0.1, 0.2, 0.9, 1]]), info=info(name))
        for name in ids
    ]
    folder.mkdir(parents=True)
    write_shard(folder / "regions-00000.tar", samples)


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_images_of_captions_are_found_by_paths_of_any_system(tmp_path, separator):
    paths = {"9": ("val2014", "COCO_val2014_000000000042.jpg"), "8": ("flickr30k-images", "1000092795.jpg")}
    lines = [{"id": id, "img_path": separator.join(parts), "sentences": ["a"]} for id, parts in paths.items()]
    (tmp_path / "a.jsonline").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(captions(tmp_path / "a.jsonline")) == [("9", ["a"]), ("1000092795", ["a"])]


def info(name: str) -> dict:
    return {"id": name, "width": 100, "height": 50}


def test_regions_of_several_folders(tmp_path):
    made_of(tmp_path / "coco" / "test", ["c"])
    made_of(tmp_path / "coco" / "trainval", ["a", "b"])
    regions = Regions(tmp_path / "coco")
    assert all(name in regions and regions[name].info["id"] == name for name in "abc") and "d" not in regions
    made_of(tmp_path / "coco" / "other", ["d"], width=3)
    with pytest.raises(UserError, match="other has feature size 3 and test 4"):
        Regions(tmp_path / "coco")


def test_regions_of_different_detectors_are_reported(tmp_path):
    """They have the same feature size. Shards that name no detector may be of any."""

    def extracted(name: str, image: str, detector: str, weights: str) -> None:
        folder = tmp_path / name
        made_of(folder, [image])
        plan = {"fingerprint": weights}
        finish_dataset(folder, [folder / "regions-00000.tar"], detector=detector, num_classes=0, extra={"plan": plan})

    extracted("coco/one", "a", "backbone", "x")
    extracted("coco/two", "b", "backbone", "x")
    made_of(tmp_path / "nlvr2", ["c"])
    same = [Regions(tmp_path / name) for name in ("coco", "nlvr2")]
    assert detector_note(same) is None
    for name, detector, weights in (("detector", "pixels", "x"), ("weights", "backbone", "y")):
        extracted(name, "d", detector, weights)
        found = detector_note([*same, Regions(tmp_path / name)])
        assert f"backbone ({tmp_path}/coco/one), {detector} ({tmp_path}/{name})" in found
        keep_detector(tmp_path / "coco" / "one", tmp_path / "run" / "detector")
        assert other_detector_note(tmp_path / "run", same) is None
        found = other_detector_note(tmp_path / "run", [*same, Regions(tmp_path / name)])
        assert f"{tmp_path}/run was trained on regions of backbone" in found and f": {detector} ({tmp_path}" in found
    assert other_detector_note(tmp_path / "no-detector", same) is None
    (tmp_path / "run" / "detector" / "dataset.json").write_text('{"detector": 5}')
    with pytest.raises(UserError, match=r"dataset\.json"):
        other_detector_note(tmp_path / "run", same)


def test_regions_of_one_image_in_two_folders_are_refused(tmp_path):
    """Their features may be of different images: COCO's and Visual Genome's have the same numbers."""
    made_of(tmp_path / "coco" / "test", ["c", "COCO_val2014_000000000042"])
    made_of(tmp_path / "coco" / "trainval", ["a", "42"])
    shards = (f"{folder}/regions-00000\\.tar" for folder in ("test", "trainval"))
    with pytest.raises(UserError, match=f"{' and .*'.join(shards)}: duplicate image id 42; keep one"):
        Regions(tmp_path / "coco")


def test_published_boxes_are_known_by_where_they_lie(tmp_path):
    made_of(tmp_path / "boxes", ["a"])
    sample = Regions(tmp_path / "boxes")["a"]
    boxes = [(10.4, 10, 91, 50), (0, 0, 50, 25)]
    assert rows_of_boxes(sample, ("7", "8"), boxes).tolist() == [1, 0]
    with pytest.raises(UserError, match=r"a has no box at \[0, 0, 60, 25\], the nearest is 10\.0 pixels away"):
        rows_of_boxes(sample, ("7",), [(0, 0, 60, 25)])


def test_a_vocabulary_pickled_either_way(tmp_path):
    from finetune.annotations.answers import read_vocabulary

    answers = AnswerVocabulary(["yes", "no", "2"])
    for value in (answers.answers, answers.labels):
        (tmp_path / "answers.pkl").write_bytes(pickle.dumps(value, 2))
        assert read_vocabulary(tmp_path / "answers.pkl").answers == answers.answers
    (tmp_path / "answers.pkl").write_bytes(pickle.dumps({"yes": 0, "no": 2}))
    with pytest.raises(UserError, match="should be a JSON or pickled list of answers"):
        read_vocabulary(tmp_path / "answers.pkl")


def test_the_doctor(world, published, tmp_path, run_command):
    for data in (world, published):
        status, said, err = run_command("finetune.doctor", "--data", data)
        assert (status, err) == (0, "") and "12 of 12 tasks are ready" in said
    data = tmp_path / "data"
    shutil.copytree(world, data, ignore=shutil.ignore_patterns("images", "nlvr2", "flickr", "world.json"))
    (data / "gqa" / "train_balanced_questions.json").write_text("{")
    shutil.rmtree(data / "regions" / "guesswhat_boxes")
    games = (data / "guesswhat" / "guesswhat.test.jsonl.gz", data / "guesswhat" / "guesswhat.test.jsonl")
    next(path for path in games if path.exists()).unlink()
    status, said, err = run_command("finetune.doctor", "--data", data)
    assert status == 1, err
    assert "7 of 12 tasks are ready" in said
    for line in (
        f"no folder {data}/nlvr2: it should contain the official files of NLVR2",
        "trainval: ",
        "not found: guesswhat.test.jsonl",
        "finetune.given_boxes --task guesswhat",
        f"shards.extract IMAGES --out {data}/regions/flickr",
    ):
        assert line in said, line
    status, said, _ = run_command("finetune.doctor", "--data", world, "--tasks", "refcoco")
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.startswith("  ")}
    assert rows["train"][1] == "120624" and rows["train"][2] == rows["train"][3] and len(rows["testA"]) == 3
