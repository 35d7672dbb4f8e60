"""A run and its data: which data commands read it with, where scores go, and runs read from elsewhere or moved."""

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.config import MtConfig, StConfig
from finetune.inference.predictor import Predictor
from finetune.run_dirs.finished_runs import find_runs
from finetune.run_dirs.run_data_folder import choose_data, own_data
from pretrain.config import PretrainConfig
from pretrain.engine.run_dir import PATHS, read_config
from pretrain.pretrained.find_weights import find_weights
from shards.common.errors import UserError
from shards.detectors import detector_of, keep_detector


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty directory, which is the current one."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run of all tasks, without scores."""
    shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("scores", "consistency"))
    return tmp_path / "copy"


def change_flags(run, **flags) -> None:
    config = json.loads((run / "config.json").read_text())
    config["flags"] |= flags
    (run / "config.json").write_text(json.dumps(config))


def evaluate(run_command, run, *flags):
    return run_command("finetune.evaluate", "--run", run, "--task", "nlvr2", "--split", "test1", "--workers", 0, *flags)


def test_commands_read_a_run_with_its_own_data(world, run, elsewhere, run_command):
    status, _, err = evaluate(run_command, run)
    assert (status, err) == (0, "")
    kept = json.loads((run / "scores" / "nlvr2-test1.json").read_text())
    lines = (world / "nlvr2" / "test1.json").read_text().splitlines()
    assert kept["data"] == str(world) and kept["split"] == "test1" and kept["examples"] == len(lines)
    assert kept["made"]["commit"] == json.loads((run / "config.json").read_text())["made"]["commit"]
    assert {"version", "torch", "began"} <= set(kept["made"])
    status, _, err = run_command("finetune.consistency", "--run", run, "--workers", 0)
    assert (status, err) == (0, "")
    rows = json.loads((run / "consistency" / "consistency.json").read_text())
    assert all(row["data"] == str(world) and row["expressions"] == "testA,testB" for row in rows.values())
    flags = ("--task", "nlvr2", "--examples", 4, "--count", 1, "--attention", "false")
    status, out, err = run_command("finetune.examples", "--run", run, *flags)
    assert status == 0 and "NLVR2" in out, err
    assert [path.name for path in elsewhere.iterdir()] == ["examples.html"]


def test_other_data_is_a_warning_and_its_scores_are_kept_apart(world, run, tmp_path, elsewhere, run_command):
    evaluate(run_command, run)
    own = (run / "scores" / "nlvr2-test1.json").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "regions").symlink_to(world / "regions")
    shutil.copytree(world / "nlvr2", other / "nlvr2")
    lines = (other / "nlvr2" / "test1.json").read_text().splitlines()
    (other / "nlvr2" / "test1.json").write_text("\n".join(lines[:7]) + "\n")
    status, out, err = evaluate(run_command, run, "--data", other)
    assert status == 0 and err == f"warning: --data {other}: differs from the data that {run} was trained on, {world}\n"
    assert (run / "scores" / "nlvr2-test1.json").read_text() == own
    (kept,) = (run / "scores" / "other_data").glob("other-*/nlvr2-test1.json")
    assert json.loads(kept.read_text())["examples"] == 7 and f"scores: {kept}" in out
    assert find_runs([str(run)])[0].evaluations["nlvr2", "test1"]["examples"] == len(lines)
    status, _, err = evaluate(run_command, run, "--data", os.path.relpath(world))
    assert (status, err) == (0, "")


def test_scores_of_a_run_whose_data_are_gone_are_not_overwritten(world, run, tmp_path, run_command):
    change_flags(run, data="/not/here", out="/not/run")
    status, _, err = evaluate(run_command, run)
    assert status == 2 and "its training data /not/here does not exist; give its current location by --data" in err
    status, _, err = evaluate(run_command, run, "--data", world)
    assert status == 0 and err.startswith(f"warning: --data {world}: differs")
    file = run / "scores" / "nlvr2-test1.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"data": "/not/here", "score": 2}))
    evaluate(run_command, run, "--data", world)
    assert json.loads(file.read_text())["score"] == 2
    (apart,) = (run / "scores" / "other_data").glob("*/nlvr2-test1.json")
    assert json.loads(apart.read_text())["score"] == kept["score"]


def test_weights_without_data_of_their_own_need_some(world, pretrained, tmp_path, elsewhere, run_command):
    assert own_data(pretrained) == str(world)
    weights = next(pretrained.glob("checkpoints/*/model.safetensors"))
    shutil.copy(weights, tmp_path / "model.safetensors")
    status, _, err = evaluate(run_command, tmp_path / "model.safetensors")
    assert status == 2 and "--data is missing: " in err and "does not name a data folder; " in err
    shutil.copytree(pretrained, tmp_path / "pairs")
    shutil.copytree(world / "regions" / "pairs", tmp_path / "shards")
    change_flags(tmp_path / "pairs", data=str(tmp_path / "shards"))
    assert own_data(tmp_path / "pairs") is None


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("doctor", ()),
        ("clean", ()),
        ("given_boxes", ("--task", "guesswhat", "--out", "boxes.jsonl")),
    ],
)
def test_only_training_makes_the_miniature_world(command, flags, elsewhere, run_command):
    status, _, err = run_command(f"finetune.{command}", *flags)
    assert status == 2 and "--data data/world: no such folder; python -m shards.world creates" in err
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("evaluate", ("--run",)),
        ("evaluate", ("--task", "vqa", "--data", ".", "--run")),
        ("examples", ("--run",)),
        ("consistency", ("--run",)),
        ("predict", ("a.png", "--task", "vqa", "--text", "What?", "--run")),
        ("attention", ("--image", "1", "--task", "vqa", "--text", "What?", "--run")),
        ("demo", ("--run",)),
        ("embed", ("--retrieval", "flickr_retrieval", "--out", "e.npz", "--run")),
        ("share", ("--out", "shared", "--run")),
        ("report", ()),
        ("st", ("--task", "nlvr2", "--data", "WORLD", "--init")),
    ],
)
def test_a_missing_run_lists_those_that_exist(command, flags, world, trained, elsewhere, run_command):
    shutil.copytree(trained, elsewhere / "runs" / "demo" / "mt", ignore=shutil.ignore_patterns("scores"))
    shutil.copytree(trained, elsewhere / "runs" / "st-vqa", ignore=shutil.ignore_patterns("scores"))
    flags = [world if flag == "WORLD" else flag for flag in flags]
    status, _, err = run_command(f"finetune.{command}", *flags, "runs/mt")
    assert status == 2 and "runs/mt" in err and "Traceback" not in err, err
    assert "existing runs: runs/demo/mt, runs/st-vqa" in err


def test_paths_are_kept_so_that_a_run_can_be_read_from_anywhere(world, pretrained, tmp_path, monkeypatch, run_command):
    """A run that was begun with relative paths, read from another directory, after a copy, and after a move of all."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "data").symlink_to(world)
    shutil.copytree(pretrained, place / "runs" / "pretrain")
    monkeypatch.chdir(place)
    flags = ("--data", "data", "--init", "runs/pretrain", "--out", "runs/st", "--epochs", 1, "--workers", 0)
    status, _, err = run_command("finetune.st", "--task", "nlvr2", *flags)
    assert status == 0, err
    config = json.loads((place / "runs" / "st" / "config.json").read_text())
    assert config["flags"]["data"] == str(place / "data") and config["flags"]["out"] == str(place / "runs" / "st")
    assert config["flags"]["init"] == config["start"]["run"] == str(place / "runs" / "pretrain")
    monkeypatch.chdir(tmp_path)
    status, out, err = run_command("finetune.st", "--task", "nlvr2", "--out", "place/runs/st", "--resume", "true")
    assert status == 0 and "already finished" in out, err
    status, _, err = run_command(
        "finetune.st", "--task", "nlvr2", "--out", "place/runs/st", "--resume", "--data", "place/data"
    )
    assert status == 0, err
    status, _, err = run_command(
        "finetune.st", "--task", "nlvr2", "--out", "place/runs/st", "--resume", "--data", "place"
    )
    assert status == 2 and "--data place: the run in place/runs/st has " in err
    shutil.copytree(place / "runs" / "st", tmp_path / "copy")
    assert own_data(tmp_path / "copy") == str(place / "data")
    place.rename(tmp_path / "moved")
    found = read_config("moved/runs/st")
    assert found["flags"]["data"] == str(tmp_path / "moved" / "data")
    assert found["start"]["run"] == found["flags"]["init"] == str(tmp_path / "moved" / "runs" / "pretrain")
    assert found["flags"]["out"] == str(tmp_path / "moved" / "runs" / "st")
    status, _, err = evaluate(run_command, "moved/runs/st")
    assert (status, err) == (0, "")
    assert own_data("copy") == str(place / "data")  # which is not there: said where it is needed


def test_runs_of_earlier_versions_have_relative_paths(world, run, elsewhere, run_command):
    old = elsewhere.parent / "old"
    (old / "runs").mkdir(parents=True)
    (old / "data").mkdir()
    (old / "data" / "world").symlink_to(world)
    shutil.move(run, old / "runs" / "mt")
    shutil.rmtree(old / "runs" / "mt" / "detector")
    change_flags(old / "runs" / "mt", data="data/world", out="runs/mt", init="runs/pretrain")
    status, _, err = evaluate(run_command, "../old/runs/mt")
    assert (status, err) == (0, "")
    image = next((world / "images" / "coco").glob("*.png"))
    assert Predictor("../old/runs/mt")("vqa", "What is it?", image).choices


def test_prediction_needs_no_data(world, trained, run, elsewhere):
    """The visual words and the settings of the detector are in the run."""
    change_flags(run, data="/not/here", out="/not/run")
    image = next((world / "images" / "coco").glob("*.png"))
    expected = Predictor(trained, data=world)("refcoco", "the red thing", image)
    assert Predictor(run)("refcoco", "the red thing", image) == expected
    assert Predictor(trained)("refcoco", "the red thing", image) == expected
    with pytest.raises(UserError, match="/not/here does not exist; give its current location by --data"):
        Predictor(run).query_by_id("refcoco", "the red thing", "1")


def test_a_pretraining_run_keeps_its_detector(pretrained, world):
    image = np.asarray(Image.open(next((world / "images" / "coco").glob("*.png"))).convert("RGB"))
    kept, own = (detector_of(folder, "cpu") for folder in (pretrained / "detector", world / "regions" / "pairs"))
    (a,), (b,) = kept.detect([image]), own.detect([image])
    assert np.array_equal(a.features, b.features) and np.array_equal(a.class_probs, b.class_probs)
    assert not list((pretrained / "detector").glob("*.tar"))


def test_what_is_kept_of_a_network(tmp_path, monkeypatch):
    """Settings are copied, weights are named by an absolute path, and what an earlier run left is removed."""
    monkeypatch.chdir(tmp_path)
    Path("shards").mkdir()
    for name in ("w.pth", "sizes.json", "shards/detector.json", "names.txt"):
        Path(name).write_text("{}")
    plan = {"command": "shards.extract", "detector": "x152", "weights": "w.pth", "detector_config": "sizes.json"}
    facts = {"format": 1, "detector": "x152", "feature_size": 8, "num_classes": 3, "extra": {"plan": plan}}
    Path("shards/dataset.json").write_text(json.dumps(facts | {"shards": []}))
    Path("kept").mkdir()
    Path("kept/visual_words.npz").touch()
    keep_detector("shards", "kept")
    assert sorted(path.name for path in Path("kept").iterdir()) == [
        "dataset.json",
        "detector.json",
        "detector_config.json",
    ]
    found = json.loads(Path("kept/dataset.json").read_text())
    assert found["extra"]["plan"]["weights"] == str(tmp_path / "w.pth") and "shards" not in found
    keep_detector("nowhere", "kept")
    assert not Path("kept").exists()


def test_every_flag_that_names_a_path_is_known():
    names = {"task", "tasks", "groups", "train_split", "validation_split", "log_to"}  # texts that are no paths
    for config in (StConfig, MtConfig, PretrainConfig):
        texts = {one.name for one in fields(config) if "str" in str(one.type) and not one.metadata.get("choices")}
        assert texts - names <= set(PATHS), config


def test_a_folder_that_is_not_a_run_is_not_said_to_lack_data(tmp_path):
    shards, run = tmp_path / "shards", tmp_path / "run"
    step = run / "checkpoints" / "step-00000001"
    for path in (
        shards / "dataset.json",
        shards / "regions-00000.tar",
        run / "config.json",
        step / "checkpoint.json",
        step / "model.safetensors",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    for folder, complaint in (
        (shards, "contains no complete checkpoint and no weights; it should be a run or weights"),
        (step, f"is a checkpoint of a run and not a run; give the run, {run}"),
    ):
        with pytest.raises(UserError) as raised:
            choose_data(folder, None)
        assert str(raised.value).startswith(f"--run {folder}: {complaint}")
        with pytest.raises(UserError) as raised:
            find_weights(str(folder))
        assert str(raised.value).startswith(f"{folder}: {complaint}")
