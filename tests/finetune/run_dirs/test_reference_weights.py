"""Published weights on a task: the same scores as the run that they were made from, and answers in their order."""

import json
import pickle
import random
import shutil

import pytest
from launching import python

from finetune.inference.predictor import Predictor
from shards.common.errors import UserError


@pytest.fixture(scope="module")
def published(world, pretrained, tmp_path_factory):
    """A run on all of VQA's answers, and its weights under the published names with what lies beside them."""
    folder = tmp_path_factory.mktemp("published")
    run, file = folder / "run", folder / "out" / "model.bin"
    flags = ("--data", world, "--init", pretrained, "--out", run, "--epochs", 2, "--workers", 0)
    for command in (
        ("finetune.st", "--task", "vqa", *flags),
        ("pretrain.convert", run, "--to", "published", "--out", file),
    ):
        done = python(*command)
        assert done.returncode == 0, done.stderr
    shutil.copy(run / "tokenizer.json", file.parent)
    return run, file


def score_of(run_command, tmp_path, *flags, warning="") -> dict:
    status, _, err = run_command("finetune.evaluate", "--scores", tmp_path / "scores.json", "--workers", 0, *flags)
    assert status == 0 and err.startswith(warning) and len(err.splitlines()) == bool(warning), err
    scores = json.loads((tmp_path / "scores.json").read_text())
    return {name: value for name, value in scores.items() if name != "made"}  # which has the time


def test_published_weights_score_as_the_run_does(world, published, tmp_path, run_command):
    run, file = published
    on = ("--data", world, "--task", "vqa")
    given = ("--run", file, "--vqa_answers", run / "answers-vqa.json")
    assert score_of(run_command, tmp_path, *given, *on) == score_of(run_command, tmp_path, "--run", run, *on)


def test_the_order_of_the_answers_is_asked_for_and_kept(world, published, tmp_path, run_command):
    run, file = published
    st = ("--task", "vqa", "--data", world, "--init", file, "--epochs", 1, "--workers", 0, "--out", tmp_path / "st")
    status, _, err = run_command("finetune.st", *st)
    answers = json.loads((run / "answers-vqa.json").read_text())
    assert status == 2 and f"has a head of {len(answers)} answers for vqa, but not the answers" in err
    (tmp_path / "short.json").write_text(json.dumps(answers[1:]))
    status, _, err = run_command("finetune.st", *st, "--answers", tmp_path / "short.json")
    assert status == 2 and f"has {len(answers) - 1} answers and the head of {file} {len(answers)}" in err
    random.Random(1).shuffle(answers)
    (tmp_path / "order.json").write_text(json.dumps(answers))
    status, out, err = run_command("finetune.st", *st, "--answers", tmp_path / "order.json")
    assert (status, err) == (0, "")
    assert f"(AT->ST, from {file})" in out and "unexpected keys, ignored: bert.encoder.c_layer.0 (4)" in out
    assert json.loads((tmp_path / "st" / "answers-vqa.json").read_text()) == answers


def test_the_published_order_is_found_in_the_data(world, published, tmp_path, run_command):
    """The published code's own pickle in the task's folder says what the numbers mean."""
    run, file = published
    data = tmp_path / "data"
    shutil.copytree(world / "vqa", data / "vqa")
    (data / "regions").symlink_to(world / "regions")
    (data / "vqa" / "cache").mkdir()
    answers = json.loads((run / "answers-vqa.json").read_text())
    on = ("--data", data, "--task", "vqa")
    for name, value in (("label2ans", answers), ("ans2label", {answer: n for n, answer in enumerate(answers)})):
        path = data / "vqa" / "cache" / f"trainval_{name}.pkl"
        path.write_bytes(pickle.dumps(value))
        found = score_of(run_command, tmp_path, "--run", file, *on)
        assert found == score_of(run_command, tmp_path, "--run", run, *on, warning=f"warning: --data {data}: differs")
        path.unlink()


def test_weights_without_the_head_are_not_scored(world, published, pretrained, tmp_path, run_command):
    run, file = published
    for flags, complaint in [
        (("--run", pretrained, "--task", "nlvr2"), "contains pretraining weights, which only support"),
        (("--run", run, "--task", "nlvr2"), "was trained on vqa; fine-tune it on nlvr2 first"),
        (("--run", "scratch", "--task", "nlvr2"), "--run scratch: no such file or directory; it should be a run or"),
        (("--run", file), "does not list its tasks; name them by --task"),
        (("--run", run, "--config", "base"), "is a run with its own configuration"),
        (("--run", run, "--tokenizer", "x"), "is a run with its own tokenizer"),
    ]:
        status, _, err = run_command("finetune.evaluate", "--data", world, "--workers", 0, *flags)
        assert status == 2 and complaint in err and err.count("\n") == 1, err


def test_published_weights_are_asked_as_the_run_is(world, published, tmp_path):
    """From pixels on; which tasks they know follows from their heads."""
    run, file = published
    image = next((world / "images" / "coco").glob("*.png"))
    own = Predictor(run)("vqa", "How many are there?", image)
    given = Predictor(file, data=world, vqa_answers=run / "answers-vqa.json")
    assert given("vqa", "How many are there?", image) == own
    assert "vqa" in given.tasks and "vgqa" in given.tasks and "gqa" not in given.tasks
    with pytest.raises(UserError, match=r"the answers of vqa are not known; .*\(vqa_answers"):
        Predictor(file, data=world)("vqa", "How many are there?", image)
    done = python("pretrain.convert", file, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    converted = Predictor(tmp_path / "run", data=world, vqa_answers=run / "answers-vqa.json")
    assert converted("vqa", "How many are there?", image) == own and converted.tasks == given.tasks


def test_answers_of_published_weights_are_found_in_the_data(world, published, tmp_path):
    run, file = published
    (tmp_path / "regions").symlink_to(world / "regions")
    (tmp_path / "vqa" / "cache").mkdir(parents=True)
    answers = json.loads((run / "answers-vqa.json").read_text())
    (tmp_path / "vqa" / "cache" / "trainval_label2ans.pkl").write_bytes(pickle.dumps(answers))
    assert Predictor(file, data=tmp_path).vocabularies["vqa"].answers == answers
    (tmp_path / "vqa" / "cache" / "trainval_label2ans.pkl").write_bytes(pickle.dumps(answers[1:]))
    with pytest.raises(UserError, match=rf"has {len(answers) - 1} answers and the head of .* {len(answers)}"):
        _ = Predictor(file, data=tmp_path).vocabularies
