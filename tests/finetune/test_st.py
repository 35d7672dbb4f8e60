"""finetune.st and finetune.evaluate, end to end on a small world."""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from launching import finish, lines_of, run_ranks, run_ranks_apart, start_ranks, weights_of
from safetensors.torch import load_file

from finetune.annotations.answers import normalise
from finetune.config import MtConfig, StConfig
from finetune.objective.task_pass import TaskPass
from finetune.tasks import paper_tasks
from pretrain.config import PretrainConfig
from pretrain.engine.checkpoint import MODEL, best_checkpoint, checkpoints

TASKS = list(paper_tasks())
SABOTAGE = Path(__file__).parents[1] / "sabotage.py"


@pytest.fixture
def st(world, tmp_path):
    """The flags of a short run."""

    def flags(task, *more, out="run"):
        return ["--task", task, "--data", world, "--workers", 0, "--epochs", 2, "--out", tmp_path / out, *more]

    return flags


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_trained_scored_and_submitted(st, tmp_path, run_command, world, pretrained, task):
    status, out, err = run_command("finetune.st", *st(task, "--init", pretrained, "--epochs", 1))
    assert (status, err) == (0, "")
    run = tmp_path / "run"
    result = json.loads((run / "result.json").read_text())
    assert result["task"] == task and result["kind"] == "ST" and f"(ST, from {pretrained})" in out
    assert 0 <= result["validation"]["score"] <= 1
    assert {"config.json", "metrics.jsonl", "tokenizer.json", "checkpoints"} <= set(os.listdir(run))
    file = tmp_path / "submission"
    flags = ("--run", run, "--data", world, "--submission", file, "--scores", tmp_path / "scores.json")
    status, out, err = run_command("finetune.evaluate", *flags, "--workers", 0)
    assert (status, err) == (0, "")
    scores = json.loads((tmp_path / "scores.json").read_text())
    main = next(name for name in result["validation"] if name != "score")
    assert scores[main] == pytest.approx(result["validation"]["score"], abs=1e-9)
    assert file.stat().st_size > 100


@pytest.mark.slow
def test_compiled_training_gives_the_same_scores(st, tmp_path, run_command, pretrained):
    for out, *flags in (("plain",), ("compiled", "--compile", "true", "--tf32", "true")):
        flags = ["--init", pretrained, "--dropout", 0, "--epochs", 1, *flags]
        assert run_command("finetune.st", *st("snli_ve", *flags, out=out))[0] == 0
    plain, compiled = (load_file(best_checkpoint(tmp_path / out) / MODEL) for out in ("plain", "compiled"))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


def test_an_optimizer_that_is_not_installed(st, run_command, monkeypatch, pretrained):
    monkeypatch.setitem(sys.modules, "apex", None)
    status, _, err = run_command("finetune.st", *st("snli_ve", "--init", pretrained, "--optimizer", "apex"))
    assert status == 2 and "--optimizer apex: apex is not installed" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("task", "epochs"),
    [("refcoco+", 15), *(pytest.param(task, 60, marks=pytest.mark.slow) for task in ("guesswhat", "nlvr2"))],
)
def test_a_task_can_be_learned_by_heart(st, tmp_path, run_command, pretrained, task, epochs):
    """Validated on what it is trained on: inputs, targets, loss and score agree, or it would not come to all right."""
    flags = ["--validation_split", "train", "--epochs", epochs, "--lr", 1e-3, "--dropout", 0, "--batch_size", 10]
    run_command("finetune.st", *st(task, "--init", pretrained, *flags))
    score = json.loads((tmp_path / "run" / "result.json").read_text())["validation"]["score"]
    assert score > 0.9


def test_what_it_starts_from_is_said_and_kept(st, tmp_path, run_command, pretrained, world, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = run_command("finetune.st", *st("snli_ve", out="scratch"))
    assert "training starts from random weights, without any pretraining: no --init given, and runs/mt" in out
    shutil.copytree(pretrained, tmp_path / "runs" / "pretrain")
    _, out, _ = run_command("finetune.st", *st("snli_ve", out="st"))
    assert "SNLI-VE (ST, from runs/pretrain)" in out
    shutil.copytree(tmp_path / "st", tmp_path / "runs" / "mt")
    config = json.loads((tmp_path / "runs" / "mt" / "config.json").read_text())
    (tmp_path / "runs" / "mt" / "config.json").write_text(json.dumps(config | {"tasks": ["snli_ve", "nlvr2"]}))
    _, out, _ = run_command("finetune.st", *st("snli_ve", out="at"))
    assert "SNLI-VE (AT->ST, from runs/mt)" in out
    kinds = {
        name: json.loads((tmp_path / name / "result.json").read_text())["kind"] for name in ("scratch", "st", "at")
    }
    assert kinds == {"scratch": "scratch", "st": "ST", "at": "AT->ST"}


def test_a_start_gives_its_weights_and_its_answers(st, tmp_path, run_command, pretrained):
    run_command("finetune.st", *st("gqa", "--init", pretrained, out="first"))
    flags = ["--init", tmp_path / "first", "--lr", 1e-12]
    run_command("finetune.st", *st("gqa", *flags, out="second"))
    one = weights_of(tmp_path / "first", int(best_checkpoint(tmp_path / "first").name[5:]))
    two = weights_of(tmp_path / "second", int(best_checkpoint(tmp_path / "second").name[5:]))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    answers = [(tmp_path / run / "answers-gqa.json").read_text() for run in ("first", "second")]
    assert answers[0] == answers[1]


def test_stopping_and_resuming_gives_the_same_numbers_to_the_last_bit(st, tmp_path, narrow):
    flags = ["--init", narrow, "--epochs", 4, "--log_every", 1, "--dropout", 0.1, "--batch_size", 16]
    script = (SABOTAGE, "finetune.st")
    plain = run_ranks(1, *st("refcoco", *flags, out="whole"), script=("-m", "finetune.st"))
    assert plain[0][0] == 0, plain
    stopped = run_ranks(
        1,
        *st("refcoco", *flags, out="parts"),
        script=script,
        SABOTAGE="stop_after",
        SABOTAGE_AT=6,
        SABOTAGE_RANK=0,
        SABOTAGE_ONCE="none",
    )
    assert stopped[0][0] == 130 and "stopped at step 6 of 20" in stopped[0][1], stopped
    resumed = run_ranks(1, "--task", "refcoco", "--out", tmp_path / "parts", "--resume", script=("-m", "finetune.st"))
    assert resumed[0][0] == 0 and "resuming after step 6" in resumed[0][1], resumed
    whole, parts = (lines_of(tmp_path / name) for name in ("whole", "parts"))
    assert [(x["step"], x["loss"]) for x in whole] == [(x["step"], x["loss"]) for x in parts] and len(whole) == 20
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts")]
    assert results[0]["validation"] == results[1]["validation"] and results[0]["kind"] == results[1]["kind"] == "ST"


# Name of a run -> (ranks, accumulation steps).
BOTH = {"both": (2, 2)}
LAYOUTS = BOTH | {"ranks": (2, 1), "parts": (1, 3)}


@pytest.mark.parametrize(
    ("task", "layouts"),
    [
        ("nlvr2", BOTH),
        ("visual7w", BOTH),
        *(pytest.param(task, LAYOUTS, marks=pytest.mark.slow) for task in ("nlvr2", "visual7w", "coco_retrieval")),
    ],
)
def test_ranks_and_accumulation_change_no_number(st, tmp_path, narrow, task, layouts):
    flags = ["--init", narrow, "--precision", "float64", "--dropout", 0.1, "--log_every", 1, "--batch_size", 14]
    for name, (ranks, parts) in {"one": (1, 1), **layouts}.items():
        arguments = st(task, *flags, "--accumulate", parts, out=name)
        results = run_ranks(ranks, *arguments, script=("-m", "finetune.st"))
        assert {status for status, _, _ in results} == {0}, results
    one = lines_of(tmp_path / "one")
    held_out = lines_of(tmp_path / "one", "validation")
    for name in layouts:
        for mine, other in zip(one, lines_of(tmp_path / name), strict=True):
            assert all(mine[value] == pytest.approx(other[value], rel=1e-9) for value in ("loss", "gradient_norm"))
        for mine, other in zip(held_out, lines_of(tmp_path / name, "validation"), strict=True):
            assert mine.keys() == other.keys()
            assert all(mine[name] == pytest.approx(other[name]) for name in mine)


def test_a_signal_stops_all_ranks_with_a_checkpoint(st, tmp_path, pretrained):
    import time

    processes = start_ranks(
        2,
        *st("vqa", "--init", pretrained, "--epochs", 100000, "--log_every", 1, "--workers", 1),
        script=("-m", "finetune.st"),
    )
    metrics, until = tmp_path / "run" / "metrics.jsonl", time.time() + 100
    while not metrics.exists() or not metrics.read_text():
        assert time.time() < until and all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    results = finish(processes)
    assert [status for status, _, _ in results] == [143, 143], results
    assert checkpoints(tmp_path / "run")


def test_a_run_stops_when_it_gets_no_better(st, tmp_path, run_command, pretrained, monkeypatch):
    flags = ["--init", pretrained, "--lr", 1e-12, "--epochs", 50, "--patience", 3]
    status, _, _ = run_command("finetune.st", *st("snli_ve", *flags))
    assert status == 0
    scored = lines_of(tmp_path / "run", "validation")
    assert len(scored) == 4 and len({line["score"] for line in scored}) == 1
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr("finetune.training.training_data.open_data", None)  # nothing is read again
    status, out, _ = run_command("finetune.st", "--task", "snli_ve", "--out", tmp_path / "run", "--resume")
    assert status == 0 and "this run is already finished" in out and "SNLI-VE, ST: accuracy" in out
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("task", ["vqa", "refcoco", "flickr_retrieval", "visual7w", "nlvr2"])
def test_a_model_that_has_diverged_has_no_score(st, tmp_path, run_command, pretrained, task):
    """The most likely of choices that are all NaN is the first one, which scored as if the model had chosen it."""
    flags = ["--init", pretrained, "--epochs", 1, "--lr", 1e30, "--warmup", 0]
    status, out, err = run_command("finetune.st", *st(task, *flags))
    assert status == 2 and "the model's scores are NaN" in err and "validation:" not in out
    assert not checkpoints(tmp_path / "run") and not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("command", ["finetune.st", "finetune.mt"])
def test_a_resume_with_other_annotations_is_refused(world, tmp_path, run_command, pretrained, command):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(world, data, ignore=lambda folder, names: ["prepared"])
    flags = ["--data", data, "--init", pretrained, "--workers", 0, "--out", run]
    few = ["--task", "vqa", "--epochs", 1] if command == "finetune.st" else ["--tasks", "vqa,gqa", "--iterations", 2]
    assert run_command(command, *flags, *few)[0] == 0
    (run / "result.json").unlink()
    path = data / "vqa" / "v2_OpenEnded_mscoco_train2014_questions.json"
    path.write_text(path.read_text().replace('"question": "', '"question": "please, ', 1))
    status, _, err = run_command(command, "--out", run, "--resume")
    assert status == 2 and f"{run}: the data of vqa have changed since the run began" in err


@pytest.mark.parametrize(
    ("made_by", "flags"),
    [
        ("pretrain.run", PretrainConfig(data="regions")),
        ("finetune.st", StConfig(task="vqa")),
        ("finetune.mt", MtConfig(clean="true")),
    ],
)
def test_a_run_of_another_command_is_not_resumed(tmp_path, run_command, made_by, flags):
    """The flags of that command were reported as unknown, although the user had given none of them."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"flags": asdict(flags)}))
    for command in {"pretrain.run", "finetune.st", "finetune.mt"} - {made_by}:
        status, _, err = run_command(command, "--out", run, "--resume")
        assert status == 2 and err == (
            f"error: --out {run}: is a run of {made_by}, which {command} cannot resume; "
            f"use python -m {made_by} --out {run} --resume, or another --out\n"
        )


MISTAKES = [
    (["--task", "refcoc"], "--task refcoc: should be one of vqa, vgqa"),
    (["--data", "nowhere"], "nowhere/refcoco: no such folder; it should contain the official files of RefCOCO"),
    (["--train_split", "trainn"], "--split trainn: refcoco has train, val, testA, testB"),
    (["--init", "nowhere"], "--init nowhere: no such file or directory"),
    (["--answers", "x.json"], "--answers x.json: refcoco has no answer vocabulary"),
    (["--epochs", 0], "--epochs 0: should be 1 or more"),
    (["--lr", "abc"], "--lr abc: should be a number"),
    (["--init", "scratch", "--config", "huge"], "--config huge"),
]


@pytest.mark.parametrize(("flags", "complaint"), MISTAKES)
def test_mistakes_are_one_sentence(st, run_command, tmp_path, monkeypatch, flags, complaint):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_command("finetune.st", *st("refcoco", *flags))
    assert status == 2 and err.startswith("error: ") and complaint in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def spoiled(world, tmp_path, task, change):
    """A copy of the world's annotations of a task with a change, beside the world's own regions."""
    folder = tmp_path / "spoiled"
    shutil.copytree(world / task, folder / task)
    (folder / "regions").symlink_to(world / "regions")
    change(folder / task)
    return folder


def test_an_image_without_regions_is_named_or_left_out(st, run_command, world, tmp_path, pretrained):
    def change(folder):
        path = folder / "snli_ve_train.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines[:3]:
            line["Flickr30K_ID"] = "404"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    data = spoiled(world, tmp_path, "snli_ve", change)
    flags = st("snli_ve", "--init", pretrained, "--data", data)
    status, _, err = run_command("finetune.st", *flags)
    assert (
        status == 2 and "3 of " in err and "examples have an image without regions in" in err and "404 the first" in err
    )
    status, out, _ = run_command("finetune.st", *flags, "--missing", "skip")
    assert status == 0 and "skipped: 3 of " in out


def test_features_of_another_width_are_refused(st, run_command, world, tmp_path, pretrained):
    from data_sets import make_dataset

    folder = tmp_path / "other"
    make_dataset(folder / "regions" / "flickr", (7,))
    (folder / "snli_ve").mkdir()
    for split in ("train", "dev"):
        lines = [json.loads(line) for line in (world / "snli_ve" / f"snli_ve_{split}.jsonl").read_text().splitlines()]
        text = "".join(json.dumps(line | {"Flickr30K_ID": "image.0.3"}) + "\n" for line in lines)
        (folder / "snli_ve" / f"snli_ve_{split}.jsonl").write_text(text)
    status, _, err = run_command("finetune.st", *st("snli_ve", "--init", pretrained, "--data", folder))
    assert status == 2 and "was trained with feature size" in err and "12; use shards of the same detector" in err


def test_another_answer_file_than_the_starts_is_told(st, run_command, tmp_path, pretrained):
    run_command("finetune.st", *st("gqa", "--init", pretrained, out="first"))
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no"]))
    flags = ["--init", tmp_path / "first", "--answers", tmp_path / "answers.json"]
    status, _, err = run_command("finetune.st", *st("gqa", *flags, out="second"))
    assert status == 2 and "heads.gqa" in err and "the configurations, features or vocabularies differ" in err


def answers_of(run) -> list[str]:
    return json.loads((run / "answers-vqa.json").read_text())


@pytest.fixture
def genome_alone(world, tmp_path):
    """A data folder with Visual Genome QA's files and regions alone."""
    data = tmp_path / "genome_alone"
    (data / "regions").mkdir(parents=True)
    for part in ("vgqa", "regions/genome", "regions/coco"):
        (data / part).symlink_to(world / part)
    return data


def test_visual_genome_qa_alone_chooses_from_vqas_answers(st, run_command, tmp_path, world, pretrained, genome_alone):
    """As with all tasks together, so that both are scored on the same answers."""
    counts = Counter(
        normalise(one["multiple_choice_answer"])
        for year in ("train2014", "val2014")
        for one in json.loads((world / "vqa" / f"v2_mscoco_{year}_annotations.json").read_text())["annotations"]
    )
    vqas = sorted((answer for answer, count in counts.items() if count >= 9), key=lambda a: (-counts[a], a))
    short = ("--data", world, "--init", pretrained, "--iterations", 1, "--workers", 0)
    for tasks in ("g1", "vgqa,gqa"):
        assert run_command("finetune.mt", "--tasks", tasks, *short, "--out", tmp_path / tasks)[0] == 0
        assert answers_of(tmp_path / tasks) == vqas
    status, out, err = run_command("finetune.st", *st("vgqa", "--init", pretrained, "--epochs", 1))
    assert (status, err) == (0, "") and f"{len(vqas)} answers, those of VQA v2 in {world / 'vqa'}" in out
    assert answers_of(tmp_path / "run") == vqas
    flags = ("--init", pretrained, "--epochs", 1, "--data", genome_alone)
    status, out, err = run_command("finetune.st", *st("vgqa", *flags, out="own"))
    assert (status, err) == (0, "")
    own = answers_of(tmp_path / "own")
    assert own == paper_tasks()["vgqa"].vocabulary(world / "vgqa").answers != vqas
    vqa = genome_alone / "vqa"
    assert f"{len(own)} answers of its own annotations, because {vqa} has no annotations of VQA v2" in out


def test_visual_genome_qa_goes_on_with_the_answers_that_it_has(st, run_command, tmp_path, pretrained, genome_alone):
    """Of a run, whatever lies in the data folder by then."""
    run_command("finetune.st", *st("vgqa", "--init", pretrained, "--data", genome_alone, "--epochs", 1, out="own"))
    status, out, err = run_command("finetune.st", *st("vgqa", "--init", tmp_path / "own", "--epochs", 1))
    assert (status, err) == (0, "") and " answers" not in out
    assert answers_of(tmp_path / "run") == answers_of(tmp_path / "own")


def test_a_split_without_answers_is_submitted_and_not_scored(st, run_command, tmp_path, world, pretrained):
    run_command("finetune.st", *st("vqa", "--init", pretrained))
    flags = ("--run", tmp_path / "run", "--data", world, "--split", "test")
    status, out, err = run_command("finetune.evaluate", *flags)
    assert status == 2 and "no public answers; --submission" in err and "without public answers" in out
    status, out, _ = run_command("finetune.evaluate", *flags, "--submission", tmp_path / "vqa.json")
    said = json.loads((tmp_path / "vqa.json").read_text())
    assert status == 0 and len(said) > 20 and set(said[0]) == {"question_id", "answer"}
    status, _, err = run_command("finetune.evaluate", "--run", pretrained, "--data", world, "--task", "vqa")
    assert status == 2 and "contains pretraining weights" in err and "; fine-tune it on vqa first" in err
    status, _, err = run_command("finetune.evaluate", "--run", pretrained, "--data", world)
    assert status == 2 and "does not list its tasks; name them by --task" in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("st", "--tasks", "refcoco"), "--tasks: no such flag; did you mean --task?"),
        (("mt", "--task", "refcoco"), "--task: no such flag; did you mean --tasks?"),
        (("doctor", "--task", "refcoco"), "--task: no such flag; did you mean --tasks?"),
        (("evaluate", "--run", "x", "--tasks", "g1"), "--tasks: no such flag; did you mean --task?"),
        (("examples", "--run", "x", "--tasks", "g1"), "--tasks: no such flag; did you mean --task?"),
        (("st", "--task", "vqa,gqa"), "--task vqa,gqa: takes one task; python -m finetune.mt --tasks vqa,gqa trains"),
        (("st", "--task", "g1"), "--task g1: takes one task; python -m finetune.mt --tasks g1 trains several"),
    ],
)
def test_the_wrong_one_of_task_and_tasks_is_answered_with_the_right_one(words, complaint, run_command):
    status, _, err = run_command(f"finetune.{words[0]}", *words[1:])
    assert status == 2 and complaint in err


@pytest.mark.parametrize("module", ["finetune.st", "finetune.mt"])
@pytest.mark.parametrize("differing", ["regions", "annotations"])
def test_ranks_that_read_other_data_are_refused(world, tmp_path, module, differing):
    """The same names and numbers, and other values, on one of two machines."""
    for rank in (0, 1):
        for name in ("regions/coco", "snli_ve", "refcoco", "regions/flickr"):
            if (world / name).is_dir():
                shutil.copytree(world / name, tmp_path / f"rank{rank}" / "data" / name)
    data = tmp_path / "rank1" / "data"
    if differing == "regions":
        path = data / "regions" / "coco" / "regions-00000.tar"
        content = bytearray(path.read_bytes())
        content[1024] ^= 1
    else:
        path = data / "refcoco" / "refs(unc).p"
        content = path.read_bytes().replace(b"left", b"LEFT", 1)
    path.write_bytes(content)
    flags = ["--data", "data", "--init", "scratch", "--workers", 0, "--out", tmp_path / "run"]
    flags += ["--task", "refcoco"] if module == "finetune.st" else ["--tasks", "refcoco", "--iterations", 1]
    results = run_ranks_apart(module, tmp_path / "rank", *flags)
    assert [status for status, _, _ in results] == [2, 2], results
    sentence = (
        "error on rank 1: data/refcoco with data/regions/coco: differs from the data set on the first rank; "
        "all ranks must read the same files\n"
    )
    assert [err for _, _, err in results] == ["", sentence]


@pytest.mark.parametrize("command", ["finetune.st", "finetune.mt"])
def test_what_a_pass_adds_up_is_logged(st, tmp_path, run_command, monkeypatch, pretrained, command):
    """A further value in the log takes a line in TaskPass."""
    plain = TaskPass.forward

    def forward(task_pass, batch, counts):
        loss, sums = plain(task_pass, batch, counts)
        return loss, sums | {"halves": 0.5 * len(batch)}

    monkeypatch.setattr(TaskPass, "forward", forward)
    flags = ["--init", pretrained, "--log_every", 1, *st("snli_ve")]
    if command == "finetune.mt":
        flags[flags.index("--task")] = "--tasks"
    assert run_command(command, *flags)[0] == 0
    name = "halves" if command == "finetune.st" else "snli_ve/halves"
    lines = lines_of(tmp_path / "run")
    assert lines and all(line[name] == 0.5 and "examples" not in line for line in lines)
