"""finetune.mt, end to end on a small world."""

import json
import math
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import finish, lines_of, run_ranks, start_ranks, weights_of

from finetune.data.task_batches import ExampleOrder
from finetune.heads.classification_head import PairClassificationHead
from finetune.run_dirs.finished_runs import read_run
from finetune.tasks import choose_tasks, paper_tasks
from finetune.training.multi_task_setup import task_tokens
from pretrain.data.batch_schedule import BatchSchedule
from pretrain.engine.checkpoint import newest_checkpoint
from pretrain.engine.step import Engine

SABOTAGE = Path(__file__).parents[1] / "sabotage.py"
MT = ("-m", "finetune.mt")
SOME = "gqa,flickr_retrieval,refcoco,guesswhat,nlvr2"  # every kind of head but one
THREE = "gqa,refcoco,nlvr2"  # with epochs of five, four and four steps


@pytest.fixture
def mt(world, narrow, tmp_path):
    """The flags of a short run."""

    def flags(*more, out="run"):
        flags = ["--data", world, "--init", narrow, "--workers", 0, "--max_batch", 20, "--log_every", 1]
        return [*flags, "--out", tmp_path / out, *more]

    return flags


def final_weights(run) -> dict:
    return weights_of(run, int(newest_checkpoint(run).name.removeprefix("step-")))


def same_weights(one, other) -> bool:
    one, other = final_weights(one), final_weights(other)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def twelve(world, pretrained, tmp_path_factory):
    """A run on all twelve tasks: its folder and what it said."""
    run = tmp_path_factory.mktemp("mt") / "run"
    flags = ("--data", world, "--init", pretrained, "--workers", 1, "--max_batch", 20, "--iterations", 7)
    [(status, out, err)] = run_ranks(1, *flags, "--out", run, "--log_every", 1, script=MT)
    assert (status, err) == (0, ""), err
    return run, out


def test_twelve_tasks_are_trained_scored_and_put_beside_the_paper(twelve):
    run, out = twelve
    result = json.loads((run / "result.json").read_text())
    assert list(result["tasks"]) == list(paper_tasks())
    scores = [of_task["score"] for of_task in result["tasks"].values()]
    assert result["mt_score"] == pytest.approx(np.mean(scores))
    assert result["groups"]["G2"] == pytest.approx(np.mean(scores[3:5]))
    assert result["mt_interval"][0] < result["mt_score"] < result["mt_interval"][1]
    for of_task in result["tasks"].values():
        low, high = of_task["interval"]
        assert 0 <= low <= of_task["score"] <= high <= 1 and of_task["steps"] <= 7
    ranked = [result["tasks"][name]["images"] for name in ("coco_retrieval", "flickr_retrieval")]
    note = "R@k ranks {} images of COCO retrieval, {} images of Flickr30k retrieval; in the paper"
    assert note.format(*ranked) in out
    assert min(ranked) > 1 and "images" not in result["tasks"]["vqa"]
    rows = [line.split() for line in out.splitlines()]
    [mine] = [row for row in rows if row[:3] == ["this", "run,", "validation"]]
    [paper] = [row for row in rows if row[:3] == ["the", "paper,", "test"]]
    assert len(mine) == len(paper) == 3 + 21 and paper[-1] == "69.08"
    assert float(mine[-1]) == pytest.approx(100 * result["mt_score"], abs=0.005)
    assert "not cleaned: this run was trained without --clean; the paper's model was trained on cleaned data" in out


def test_a_cleaned_run_is_not_marked(mt, world, tmp_path, run_command):
    assert run_command("finetune.clean", "--data", world, "--out", tmp_path / "clean")[0] == 0
    flags = ("--tasks", "nlvr2", "--iterations", 1, "--clean", tmp_path / "clean")
    status, out, err = run_command("finetune.mt", *mt(*flags))
    assert (status, err) == (0, "") and "the paper, test" in out and "not cleaned" not in out


def test_curves_hold_every_task_by_step(twelve):
    run, _ = twelve
    training, validation = lines_of(run), lines_of(run, "validation")
    assert [line["step"] for line in training] == list(range(1, 8))
    for name in paper_tasks():
        assert all({f"{name}/loss", f"{name}/score", f"{name}/going"} <= set(line) for line in training[:3])
        scored = [line["step"] for line in validation if f"{name}/score" in line]
        each = 5 if name in ("vgqa", "gqa") else 4  # steps of its own epoch
        assert scored == [step for step in range(1, 8) if step % each == 0 or step == 7]
    assert "mt_score" in validation[-1] and "mt_score" not in validation[0]
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if line["kind"] == "validation":
            timed = {name.removesuffix("/validation_seconds") for name in line if name.endswith("/validation_seconds")}
            assert timed == {name.removesuffix("/score") for name in line if name.endswith("/score")}


def test_single_tasks_go_on_from_all(twelve, tmp_path, run_command, world):
    run, _ = twelve
    flags = ("--task", "refcoco", "--data", world, "--init", run, "--workers", 0, "--epochs", 1, "--lr", 1e-12)
    status, out, err = run_command("finetune.st", *flags, "--out", tmp_path / "st")
    assert (status, err) == (0, "") and f"RefCOCO (AT->ST, from {run})" in out
    result = json.loads((tmp_path / "st" / "result.json").read_text())
    before = json.loads((run / "result.json").read_text())["tasks"]["refcoco"]
    assert result["kind"] == "AT->ST" and result["validation"]["score"] == before["score"]
    status, out, _ = run_command("finetune.evaluate", "--run", run, "--task", "refcoco", "--data", world)
    assert status == 0 and f"accuracy {before['score']:.1%}" in out


def test_all_tasks_of_a_run_are_scored_at_once(twelve, tmp_path, run_command, world):
    """By default on validation, to what training has found there; of tests, those whose answers are public."""
    run, _ = twelve
    flags = ("--run", run, "--data", world, "--workers", 0)
    status, out, err = run_command("finetune.evaluate", *flags, "--task", "g3,nlvr2")
    before = json.loads((run / "result.json").read_text())
    mean = np.mean([before["tasks"][name]["score"] for name in ("refcoco", "refcoco+", "refcocog", "visual7w")])
    kept = {path.name: json.loads(path.read_text()) for path in (run / "scores").iterdir()}
    assert (status, err) == (0, "") and len(kept) == 6 and kept["nlvr2-dev.json"]["score"] > 0
    found = np.mean([kept[f"{name}-val.json"]["score"] for name in ("refcoco", "refcoco+", "refcocog", "visual7w")])
    assert found == pytest.approx(mean) and "mean of 6 tasks: " in out and "Mean G3" in out
    status, out, _ = run_command("finetune.evaluate", *flags, "--task", "refcoco,vqa,vgqa,g2", "--split", "tests")
    assert status == 0 and "RefCOCO, testA: " in out and "RefCOCO, testB: " in out
    assert "COCO retrieval, test: " in out and "test5k" not in out
    assert "VQA v2, test: " in out and "examples without public answers" in out and "Visual Genome QA" not in out
    for given, words in (
        (("--submission", tmp_path / "all.json"), "needs a single --task and --split; 12 were given"),
        (("--task", "vgqa", "--split", "tests"), "vgqa has no test split; it has train, val"),
        (("--task", "g3", "--split", "testA"), "visual7w has train, val, test"),
    ):
        status, _, err = run_command("finetune.evaluate", *flags, *given)
        assert status == 2 and words in err


def same_numbers(one: Path, other: Path) -> None:
    """Two runs gave the same numbers and weights but for rounding in float64."""
    for kind in ("train", "validation"):
        for mine, theirs in zip(lines_of(one, kind), lines_of(other, kind), strict=True):
            numbers = [key for key in mine if "/" in key or key in ("gradient_norm", "lr", "samples", "mt_score")]
            assert numbers and all(mine[key] == pytest.approx(theirs[key], rel=1e-8) for key in numbers), other
    weights = final_weights(one)
    assert all(torch.allclose(weights[key], value, atol=1e-8) for key, value in final_weights(other).items())


# Name of a run -> (ranks, accumulation steps).
BOTH = {"both": (2, 2)}
LAYOUTS = BOTH | {"ranks": (2, 1), "parts": (1, 3)}


@pytest.mark.parametrize(
    ("layouts", "balance", "iterations"),
    [
        (BOTH, "steps", 5),  # the second epoch of most tasks begins with the fifth iteration
        (BOTH, "pcgrad", 2),
        *(
            pytest.param(LAYOUTS, name, 7, marks=pytest.mark.slow)
            for name in ("steps", "sum", "famo", "gradnorm", "pcgrad", "upgrad")
        ),
    ],
)
def test_ranks_and_accumulation_change_no_number(mt, tmp_path, layouts, balance, iterations):
    if balance in ("pcgrad", "upgrad"):
        pytest.importorskip("torchjd", reason="TorchJD, an extra, is not installed")
    flags = ["--tasks", SOME, "--precision", "float64", "--dropout", 0.1, "--iterations", iterations]
    flags += ["--balance", balance, "--update_unused", "true", "--clip", 1.0]
    for name, (ranks, parts) in {"one": (1, 1), **layouts}.items():
        results = run_ranks(ranks, *mt(*flags, "--accumulate", parts, out=name), script=MT)
        assert {status for status, _, _ in results} == {0}, results
    for name in layouts:
        same_numbers(tmp_path / "one", tmp_path / name)


@pytest.mark.parametrize("balance", ["steps", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sum", "gradnorm"))])
def test_a_rank_without_examples_takes_part_in_every_step(world, narrow, tmp_path, balance):
    """Steps of two examples on three ranks. The answer heads, which no task uses, stay as they were drawn."""
    flags = ["--data", world, "--init", narrow, "--workers", 0, "--log_every", 1, "--max_batch", 2]
    flags += ["--tasks", "guesswhat,nlvr2", "--precision", "float64", "--dropout", 0.1, "--iterations", 5]
    for name, ranks in (("one", 1), ("three", 3)):
        results = run_ranks(ranks, *flags, "--balance", balance, "--out", tmp_path / name, script=MT)
        assert {status for status, _, _ in results} == {0}, results
    same_numbers(tmp_path / "one", tmp_path / "three")
    unused = [name for name in final_weights(tmp_path / "one") if name.startswith("heads.entailment.")]
    one, three = final_weights(tmp_path / "one"), final_weights(tmp_path / "three")
    assert unused and all(torch.equal(one[name], three[name]) for name in unused)


@pytest.mark.slow
def test_attention_on_packed_rows_changes_no_number(mt, pretrained, tmp_path):
    """As on a GPU, for all twelve tasks with dropout; GuessWhat's texts are too long for it and are padded."""
    flags = ("--init", pretrained, "--precision", "float64", "--dropout", 0.1, "--iterations", 2, "--validate_on", 8)
    played = (Path(__file__).parents[1] / "graph_on_cpu.py", "finetune.mt")
    for name, script in (("padded", MT), ("packed", played)):
        [(status, _, err)] = run_ranks(1, *mt(*flags, out=name), script=script)
        assert status == 0, err
    for kind in ("train", "validation"):
        pairs = zip(lines_of(tmp_path / "padded", kind), lines_of(tmp_path / "packed", kind), strict=True)
        for mine, other in pairs:
            numbers = [key for key in mine if "/" in key or key == "gradient_norm"]
            assert len(numbers) > 24
            assert all(mine[key] == pytest.approx(other[key], rel=1e-8) for key in numbers)
    padded, packed = (final_weights(tmp_path / name) for name in ("padded", "packed"))
    assert all(torch.allclose(padded[key], value, atol=1e-9) for key, value in packed.items())


def stop_in_iteration(number: int) -> dict:
    """Variables of sabotage.py that stop a run after the first task of an iteration."""
    return {"SABOTAGE": "stop_after", "SABOTAGE_AT": number, "SABOTAGE_RANK": 0, "SABOTAGE_ONCE": "none"}


@pytest.mark.parametrize(
    ("tasks", "ranks"), [(THREE, 2), *(pytest.param(SOME, ranks, marks=pytest.mark.slow) for ranks in (1, 2))]
)
def test_stopping_and_resuming_gives_the_same_numbers_to_the_last_bit(mt, tmp_path, tasks, ranks):
    """Stopped between two tasks of an iteration, after some have stopped and some go on."""
    flags = ["--tasks", tasks, "--dropout", 0.1, "--epochs", 5, "--lr_scale", 1e-6, "--update_unused", "true"]
    whole = run_ranks(ranks, *mt(*flags, out="whole"), script=MT)
    assert {status for status, _, _ in whole} == {0}, whole
    sabotage = stop_in_iteration(17)
    stopped = run_ranks(ranks, *mt(*flags, out="parts"), script=(SABOTAGE, "finetune.mt"), **sabotage)
    assert {status for status, _, _ in stopped} == {130}, stopped
    assert "stopped at step 17 of 25" in stopped[0][1]
    metadata = json.loads((newest_checkpoint(tmp_path / "parts") / "checkpoint.json").read_text())
    assert any(state["stopped"] for state in metadata["regime"].values()) and len(set(metadata["taken"].values())) > 1
    resumed = run_ranks(ranks, "--out", tmp_path / "parts", "--resume", script=MT)
    assert {status for status, _, _ in resumed} == {0} and "resuming after iteration 17" in resumed[0][1], resumed
    names = {"whole", "parts"}
    lines = {name: lines_of(tmp_path / name) + lines_of(tmp_path / name, "validation") for name in names}
    for mine, other in zip(*lines.values(), strict=True):
        assert {k: v for k, v in mine.items() if "/" in k} == {k: v for k, v in other.items() if "/" in k}
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in names]
    assert results[0] | {"seconds": 0} == results[1] | {"seconds": 0}
    assert len({of_task["steps"] for of_task in results[0]["tasks"].values()}) > 1  # stop-and-go had its say


def test_a_gap_of_one_is_round_robin(mt, tmp_path, run_command):
    flags = ["--tasks", "snli_ve,refcoco", "--epochs", 4]
    run_command("finetune.mt", *mt(*flags, "--gap", 1, "--lr_scale", 1e-6, out="gap"))
    run_command("finetune.mt", *mt(*flags, "--regime", "round_robin", "--lr_scale", 1e-6, out="round"))
    assert "paused" in json.dumps(lines_of(tmp_path / "gap", "validation"))
    assert same_weights(tmp_path / "gap", tmp_path / "round")


def test_stopped_tasks_train_every_fourth_iteration_and_are_watched(mt, tmp_path, run_command):
    """At a learning rate of nothing no task gets better: all stop at their third validation."""
    run_command("finetune.mt", *mt("--tasks", "snli_ve,refcoco", "--lr_scale", 1e-12, "--iterations", 24))
    training = lines_of(tmp_path / "run")
    trained = [line["step"] for line in training if "refcoco/loss" in line]
    assert trained == [*range(1, 13), 13, 17, 21]  # iterations 12, 16 and 20, counted from 0
    changes = [
        (line["step"], line["refcoco/change"])
        for line in lines_of(tmp_path / "run", "validation")
        if "refcoco/change" in line
    ]
    assert [step for step, _ in changes] == [12] and "second consecutive score that does not improve" in changes[0][1]
    assert [line["step"] for line in lines_of(tmp_path / "run", "validation")] == list(range(4, 25, 4))
    lrs = [line["lr"] for line in training]
    assert lrs[13] == lrs[14] == lrs[15] == lrs[16] > lrs[17]  # it follows the iterations in which any task trained


def test_one_task_whose_gradients_are_never_finite_does_not_fail_the_others(mt, run_command, monkeypatch):
    """Skipped optimizer steps, of which an iteration has several, were compared with the number of iterations."""
    monkeypatch.setattr(PairClassificationHead, "losses", lambda head, logits, targets: logits.sum(1) * math.nan)
    status, out, err = run_command("finetune.mt", *mt("--tasks", "refcoco,nlvr2", "--iterations", 3))
    assert (status, err) == (0, "") and out.count("1 step skipped: gradients not finite") == 3
    status, _, err = run_command("finetune.mt", *mt("--tasks", "nlvr2", "--iterations", 3, out="alone"))
    assert status == 2 and "none of the 3 optimizer steps changed the weights" in err


def test_a_balanced_iteration_takes_one_step_for_all(mt, run_command, monkeypatch):
    updates, plain = [], Engine._update
    monkeypatch.setattr(Engine, "_update", lambda engine: (updates.append(1), plain(engine))[1])
    for name, expected in (("sum", 3), ("gradnorm", 3), ("steps", 6)):
        updates.clear()
        run_command("finetune.mt", *mt("--tasks", "g4", "--iterations", 3, "--balance", name, out=name))
        assert len(updates) == expected


def test_a_balanced_run_is_resumed_to_the_same_numbers_with_paused_tasks(mt, tmp_path):
    """GradNorm has learned weights, and the losses of the first iteration, in the checkpoint."""
    flags = ["--tasks", THREE, "--dropout", 0.1, "--epochs", 5, "--lr_scale", 1e-6, "--balance", "gradnorm"]
    [(status, _, err)] = run_ranks(1, *mt(*flags, out="whole"), script=MT)
    assert status == 0, err
    sabotage = stop_in_iteration(17)
    [(status, out, _)] = run_ranks(1, *mt(*flags, out="parts"), script=(SABOTAGE, "finetune.mt"), **sabotage)
    assert status == 130 and "stopped at step 17 of 25" in out, out
    metadata = json.loads((newest_checkpoint(tmp_path / "parts") / "checkpoint.json").read_text())
    assert set(metadata["balance"]["values"]) == set(THREE.split(",")) == set(metadata["balance"]["first"])
    assert any(state["stopped"] for state in metadata["regime"].values()) and len(set(metadata["taken"].values())) > 1
    [(status, _, err)] = run_ranks(1, "--out", tmp_path / "parts", "--resume", script=MT)
    assert status == 0, err
    whole = lines_of(tmp_path / "whole")
    for mine, other in zip(whole, lines_of(tmp_path / "parts"), strict=True):
        assert {k: v for k, v in mine.items() if "/" in k} == {k: v for k, v in other.items() if "/" in k}
    # The weight of a task that trains alone is 1.
    learned = [line["step"] for line in whole if any(k.endswith("/weight") and v != 1 for k, v in line.items())]
    assert learned and learned[-1] > 17
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


TRACK = ("--track", "true", "--track_every", 2)


def records_of(run) -> list[dict]:
    """The records of --track, without the time that they took."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines_of(run, "gradients")]


@pytest.mark.parametrize("balance", ["steps", "gradnorm"])
def test_tracking_changes_no_number_of_training(mt, tmp_path, run_command, balance):
    """Also where its gradients are kept in the memory of those of the method."""
    flags = ["--tasks", SOME, "--dropout", 0.1, "--iterations", 5, "--balance", balance, "--validate_on", 8]
    run_command("finetune.mt", *mt(*flags, out="plain"))
    status, out, err = run_command("finetune.mt", *mt(*flags, *TRACK, out="tracked"))
    assert (status, err) == (0, "") and "--track: every 2 iterations" in out
    assert same_weights(tmp_path / "plain", tmp_path / "tracked")
    names = {
        kind: [lines_of(tmp_path / name, kind) for name in ("plain", "tracked")] for kind in ("train", "validation")
    }
    for plain, tracked in names.values():
        for one, other in zip(plain, tracked, strict=True):
            assert {k: v for k, v in one.items() if "/" in k} == {k: v for k, v in other.items() if "/" in k}
    records = records_of(tmp_path / "tracked")
    assert [line["step"] for line in records] == [2, 4, 5] and records_of(tmp_path / "plain") == []
    parts = records[0]["parts"]
    assert np.shape(parts["all"]["similarity"]) == (4, 5, 5) and np.shape(parts["image"]["norm"]) == (4, 5)
    assert parts["all"] != records[1]["parts"]["all"]


def test_a_killed_run_has_the_same_records(mt, tmp_path):
    """Killed after a record that is later than its checkpoint."""
    flags = ["--tasks", "g4", "--dropout", 0.1, "--iterations", 6, "--save_every", 3, "--validate_on", 8, *TRACK]
    [(status, _, err)] = run_ranks(1, *mt(*flags, out="whole"), script=MT)
    assert status == 0, err
    sabotage = {
        "SABOTAGE": "kill_in_step",
        "SABOTAGE_AT": 2 * 4 + 1,
        "SABOTAGE_RANK": 0,
        "SABOTAGE_ONCE": tmp_path / "once",
    }
    [(status, _, _)] = run_ranks(1, *mt(*flags, out="parts"), script=(SABOTAGE, "finetune.mt"), **sabotage)
    assert status == -signal.SIGKILL and [line["step"] for line in records_of(tmp_path / "parts")] == [2, 4]
    [(status, out, err)] = run_ranks(1, "--out", tmp_path / "parts", "--resume", script=MT)
    assert status == 0 and "resuming after iteration 3" in out, err
    assert records_of(tmp_path / "parts") == records_of(tmp_path / "whole")
    assert [line["step"] for line in records_of(tmp_path / "whole")] == [2, 4, 6]


def test_records_do_not_depend_on_the_number_of_ranks(mt, tmp_path):
    """In float64; three ranks have different numbers of the eight examples of a batch."""
    flags = ["--tasks", "refcoco,nlvr2", "--precision", "float64", "--iterations", 2, "--validate_on", 8, *TRACK]
    for name, ranks in (("one", 1), ("three", 3)):
        results = run_ranks(ranks, *mt(*flags, out=name), script=MT)
        assert {status for status, _, _ in results} == {0}, results
    [one], [three] = (records_of(tmp_path / name) for name in ("one", "three"))
    np.testing.assert_allclose(one["loss"], three["loss"], rtol=1e-4)
    for part, found in one["parts"].items():
        for what, value in found.items():
            other = np.array(three["parts"][part][what], float)
            np.testing.assert_allclose(np.array(value, float), other, rtol=1e-4, equal_nan=True)


def test_a_run_of_an_earlier_version_is_resumed_with_its_single_step(mt, tmp_path, run_command):
    run = tmp_path / "run"
    status, _, err = run_command("finetune.mt", *mt("--tasks", "g4", "--iterations", 2), "--one_step")
    assert status == 0 and "--one_step is deprecated" in err and "use --balance sum\n" in err
    config = json.loads((run / "config.json").read_text())
    assert config["flags"].pop("balance") == "sum"
    config["flags"] |= {"one_step": True, "regions": config["flags"].pop("max_regions")}
    (run / "config.json").write_text(json.dumps(config))
    (run / "result.json").unlink()
    status, _, err = run_command("finetune.mt", "--out", run, "--resume", "--balance", "dwa")
    assert status == 2 and f"error: --balance dwa: the run in {run} has sum" in err
    status, out, err = run_command("finetune.mt", "--out", run, "--resume")
    assert (status, err) == (0, "") and "resuming after iteration 2" in out
    assert read_run(run).flags["balance"] == "sum"


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_signal_stops_all_ranks_with_a_checkpoint(mt, tmp_path, ranks):
    """Data workers ignore signals: they must be ended, or the run would wait for them for ever."""
    flags = ("--tasks", "g4", "--iterations", 100000, "--workers", 1)
    processes = start_ranks(ranks, *mt(*flags), script=MT)
    metrics, until = tmp_path / "run" / "metrics.jsonl", time.time() + 100
    while not metrics.exists() or not metrics.read_text():
        assert time.time() < until and all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.02)
    processes[-1].send_signal(signal.SIGTERM)
    results = finish(processes)
    assert {status for status, _, _ in results} == {143}, results
    assert newest_checkpoint(tmp_path / "run")


def test_bad_features_end_all_ranks_with_one_sentence(mt, world, tmp_path):
    """The rank that meets them has no parts to count; none may wait for it for ever."""
    data = tmp_path / "data"
    (data / "regions").mkdir(parents=True)
    for part in ("snli_ve", "nlvr2", "regions/nlvr2"):
        (data / part).symlink_to(world / part)
    shutil.copytree(world / "regions" / "flickr", data / "regions" / "flickr")
    [shard] = (data / "regions" / "flickr").glob("*.tar")
    with tarfile.open(shard) as tar:
        place = next(member.offset_data for member in tar if member.name.endswith("features.npy"))
    content = bytearray(shard.read_bytes())
    content[place + 128 : place + 130] = b"\x00\x7e"  # a NaN behind the header of one image's array
    shard.write_bytes(content)
    results = run_ranks(2, *mt("--data", data, "--tasks", "g4", "--iterations", 50), script=MT)
    assert {status for status, _, _ in results} == {2}, results
    said = "".join(err for _, _, err in results)
    assert said.count("error") >= 1 and "NaN" in said and "Traceback" not in said


def test_damaged_weights_end_all_ranks_with_one_sentence(mt, pretrained, tmp_path):
    """The first rank alone reads them."""
    shutil.copytree(pretrained, tmp_path / "damaged")
    path = newest_checkpoint(tmp_path / "damaged") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    results = run_ranks(2, *mt("--tasks", "g4", "--iterations", 1, "--init", tmp_path / "damaged"), script=MT)
    assert [status for status, _, _ in results] == [2, 2], results
    assert "SHA-256 differs from" in results[0][2] and results[1][2] == ""


def test_an_order_has_every_example_once_an_epoch_and_another_order_in_the_next():
    order = ExampleOrder(BatchSchedule(samples=23, batch_size=5), seed=3)
    epochs = [np.concatenate([order.micro_batch(epoch * 5 + step, 0)[1] for step in range(5)]) for epoch in range(3)]
    assert all(sorted(numbers.tolist()) == list(range(23)) for numbers in epochs)
    assert len({tuple(numbers.tolist()) for numbers in epochs}) == 3
    again = ExampleOrder(BatchSchedule(samples=23, batch_size=5), seed=3)
    assert np.array_equal(again.micro_batch(7, 0)[1], order.micro_batch(7, 0)[1])


def test_tasks_are_chosen_by_name_and_group():
    names = [task.name for task in choose_tasks("g3,snli_ve,G4")]
    assert names == ["visual7w", "refcoco", "refcoco+", "refcocog", "guesswhat", "nlvr2", "snli_ve"]
    assert len(choose_tasks("all")) == 12 and [t.name for t in choose_tasks("refcoco+")] == ["refcoco+"]
    assert [t.name for t in choose_tasks("extra")] == ["flickr30k_entities", "esnli_ve", "daquar"]
    assert [t.name for t in choose_tasks("all,daquar")] == [*paper_tasks(), "daquar"]


def test_task_tokens_are_of_data_sets_of_heads_or_none():
    tasks = choose_tasks("all")
    of_heads = task_tokens(tasks, "head")
    assert len(set(of_heads.values())) == 6
    assert of_heads["vqa"] == of_heads["vgqa"] != of_heads["gqa"]
    assert len({of_heads[name] for name in ("refcoco", "refcoco+", "refcocog", "visual7w", "guesswhat")}) == 1
    assert task_tokens(tasks, "dataset") == {task.name: task.token for task in tasks}
    assert task_tokens(tasks, "none") == {}


@pytest.mark.parametrize("kind", ["head", "none"])
def test_tokens_are_kept_for_what_goes_on(mt, tmp_path, run_command, world, kind):
    run_command("finetune.mt", *mt("--tasks", "g4,refcoco+,visual7w", "--iterations", 2, "--task_token", kind))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["task_tokens"] == (0 if kind == "none" else 20)
    before = json.loads((tmp_path / "run" / "result.json").read_text())["tasks"]["refcoco+"]["score"]
    flags = ("--task", "refcoco+", "--data", world, "--init", tmp_path / "run", "--workers", 0, "--lr", 1e-12)
    run_command("finetune.st", *flags, "--epochs", 1, "--out", tmp_path / "st")
    assert json.loads((tmp_path / "st" / "result.json").read_text())["validation"]["score"] == before


MISTAKES = [
    (["--one_step", "true", "--balance", "dwa"], "--one_step true: former name of --balance, which is also given"),
    (["--tasks", "refcoc"], "--tasks refcoc: should be one of all, g1, g2, g3, g4, extra, vqa"),
    (["--tasks", "g4,,g1"], "--tasks : should be one of all"),
    (["--regime", "dgs"], "--regime dgs: should be one of dsg, round_robin"),
    (["--tasks", "g4,g1", "--regime", "curriculum"], "trains G3 first, and none of the tasks is of that group"),
    (["--first_phase", 1.5], "--first_phase 1.5: should be 1 or less"),
    (["--gap", 0], "--gap 0: should be 1 or more"),
    (["--data", "nowhere", "--tasks", "g4"], "nowhere/nlvr2: no such folder"),
    (["--init", "nowhere"], "--init nowhere: no such file or directory"),
    (
        ["--tasks", "nlvr2", "--track", "true"],
        "--track true: compares the gradients of tasks, and --tasks nlvr2 is only",
    ),
    (["--tasks", "g4", "--track_every", 5], "--track_every 5: has no effect without --track true"),
    (["--tasks", "g4", "--gqa_answers", "x.json"], "--gqa_answers x.json: none of the tasks uses this answer"),
]


@pytest.mark.parametrize(("flags", "complaint"), MISTAKES)
def test_mistakes_are_one_sentence(mt, run_command, tmp_path, monkeypatch, flags, complaint):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_command("finetune.mt", *mt(*flags))
    assert status == 2 and err.startswith("error: ") and complaint in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_another_regime_is_another_run(mt, run_command, tmp_path, monkeypatch):
    run_command("finetune.mt", *mt("--tasks", "g4", "--iterations", 2))
    status, _, err = run_command("finetune.mt", *mt("--tasks", "g4", "--iterations", 2))
    assert status == 2 and "already contains a run; use --resume to continue it" in err
    resume = ("--out", tmp_path / "run", "--resume")
    status, _, err = run_command("finetune.mt", *resume, "--regime", "round_robin")
    assert status == 2 and "--regime round_robin: the run in" in err and "has dsg" in err
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr("finetune.training.training_data.open_data", None)  # nothing is read again
    status, out, _ = run_command("finetune.mt", *resume)
    assert status == 0 and "this run is already finished" in out and "MT score" in out and "the paper, test" in out
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    shutil.rmtree(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("descriptors", [256, 1024])
def test_many_workers_and_accumulated_parts_need_few_descriptors(world, pretrained, tmp_path, descriptors):
    """Every tensor of a batch that is read ahead took one, and a process that had no more waited for ever."""
    flags = ["--data", world, "--init", pretrained, "--out", tmp_path / "run", "--tasks", "g1,g3,g4"]
    flags += ["--workers", 4, "--accumulate", 24, "--iterations", 3]
    command = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", sys.executable, "-m", "finetune.mt", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
