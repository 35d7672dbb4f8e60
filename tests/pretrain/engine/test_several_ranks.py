"""Several processes train as one: the same numbers for every layout, and the same ones after faults."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from data_sets import make_dataset
from launching import finish, lines_of, run_ranks, run_ranks_apart, start_ranks, torchrun, weights_of

from pretrain.engine.checkpoint import checkpoints

FLAGS = ["--batch_size", 8, "--log_every", 1, "--save_every", 1000, "--workers", 0, "--validation_pairs", 9]
NAMES = ("loss", "loss_words", "loss_regions", "loss_alignment", "gradient_norm", "masked_by_overlap", "samples")


def right(results):
    assert all(status == 0 for status, _, _ in results), results
    return results


@pytest.fixture
def small(tmp_path):
    """A data set of 44 pairs, 40 of them to train on: five steps an epoch.

    Of so many classes that a divergence is well above the rounding of its terms, which nearly cancel among few.
    """
    make_dataset(tmp_path / "data", (27, 17), classes=200)
    return ["--data", tmp_path / "data", *FLAGS]


# Name of a run -> (ranks, accumulation steps). Three ranks divide eight pairs unevenly.
BOTH = {"both": (2, 2)}
LAYOUTS = BOTH | {"ranks": (2, 1), "parts": (1, 2), "uneven": (3, 1)}


@pytest.mark.parametrize(
    ("layouts", "precision", "of_losses", "of_weights"),
    [
        (BOTH, "float64", 1e-9, 1e-9),
        pytest.param(LAYOUTS, "float64", 1e-9, 1e-9, marks=pytest.mark.slow),
        pytest.param(LAYOUTS, "float32", 1e-6, None, marks=pytest.mark.slow),
    ],
)
def test_ranks_and_accumulation_change_no_number(small, tmp_path, layouts, precision, of_losses, of_weights):
    """Ten steps with dropout, compared with those of one process."""
    flags = [*small, "--epochs", 2, "--dropout", 0.1, "--precision", precision]
    for name, (ranks, parts) in {"one": (1, 1), **layouts}.items():
        right(run_ranks(ranks, *flags, "--accumulate", parts, "--out", tmp_path / name))
    one = lines_of(tmp_path / "one")
    assert len({line["loss"] for line in one}) == 10
    for name in layouts:
        for mine, other in zip(one, lines_of(tmp_path / name), strict=True):
            assert all(mine[value] == pytest.approx(other[value], rel=of_losses) for value in NAMES)
        held_out = [lines_of(tmp_path / run, "validation")[-1] for run in ("one", name)]
        assert held_out[0] == pytest.approx(held_out[1], rel=10 * of_losses)
        if of_weights:
            weights, others = weights_of(tmp_path / "one", 10), weights_of(tmp_path / name, 10)
            assert all((weights[key] - others[key]).abs().max() < of_weights for key in weights)


@pytest.mark.parametrize("taken", ["all", pytest.param("one", marks=pytest.mark.slow)])
def test_ranks_and_accumulation_change_no_number_of_several_captions(tmp_path, taken):
    """Three captions per image: an epoch of 117 pairs, or of 39 with captions that are drawn anew for the next one."""
    make_dataset(tmp_path / "data", (27, 17), classes=200, per_image=3)
    batch = ["--batch_size", 24 if taken == "all" else 8, "--captions_per_image", taken]
    flags = ["--data", tmp_path / "data", *FLAGS, *batch, "--validation_pairs", 10, "--epochs", 2]
    flags += ["--precision", "float64", "--dropout", 0.1]
    results = right(run_ranks(1, *flags, "--out", tmp_path / "one"))
    pairs = 117 if taken == "all" else 39
    said = f"{pairs} training pairs per epoch (117 captions of 39 images), 15 validation pairs (5 images)"
    assert said in results[0][1]
    right(run_ranks(2, *flags, "--accumulate", 2, "--out", tmp_path / "both"))
    one, both = lines_of(tmp_path / "one"), lines_of(tmp_path / "both")
    assert len(one) == 10 and one[-1]["samples"] == 2 * pairs
    for mine, other in zip(one, both, strict=True):
        assert all(mine[value] == pytest.approx(other[value], rel=1e-9) for value in NAMES)


def test_five_ranks_share_thirteen_pairs(tmp_path):
    """Some ranks have none in the last step; all take every step, and none hangs."""
    make_dataset(tmp_path / "data", (11, 2))
    results = right(
        run_ranks(5, "--data", tmp_path / "data", *FLAGS, "--epochs", 2, "--batch_size", 4, "--out", tmp_path / "run")
    )
    assert [line["samples"] for line in lines_of(tmp_path / "run")] == [3, 6, 9, 13, 16, 19, 22, 26]
    assert "run directory:" in results[0][1]
    assert all(out == err == "" for _, out, err in results[1:])


@pytest.mark.slow  # tests of runs have SIGINT on two ranks, those of several tasks SIGTERM
def test_two_ranks_stop_and_go_on_as_if_they_had_not(small, tmp_path):
    """SIGTERM to one of them alone; with dropout."""
    flags = [*small, "--epochs", 12, "--dropout", 0.1, "--log_every", 1]
    right(run_ranks(2, *flags, "--out", tmp_path / "whole"))
    processes = start_ranks(2, *flags, "--out", tmp_path / "parts")
    metrics = tmp_path / "parts" / "metrics.jsonl"
    until = time.time() + 100
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert time.time() < until and all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    results = finish(processes)
    assert [status for status, _, _ in results] == [143, 143], results
    (saved,) = checkpoints(tmp_path / "parts")
    assert 5 <= int(saved.name[5:]) < 60
    right(run_ranks(2, *flags, "--out", tmp_path / "parts", "--resume"))
    whole, parts = (weights_of(tmp_path / name, 60) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    losses = [[line["loss"] for line in lines_of(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "rank"), [("kill_in_step", 1), ("kill_in_save", 0)])
def test_a_rank_that_is_killed_is_started_again_and_the_run_ends_the_same(small, tmp_path, fault, rank):
    """SIGKILL in the middle of a step, and in the middle of writing a checkpoint, under torchrun."""
    flags = [*small, "--epochs", 3, "--save_every", 4, "--dropout", 0.1]
    right(run_ranks(2, *flags, "--out", tmp_path / "whole"))
    struck = tmp_path / "struck"
    sabotage = {"SABOTAGE": fault, "SABOTAGE_AT": {"kill_in_step": 11, "kill_in_save": 12}[fault]}
    done = torchrun(
        2, 1, *flags, "--out", tmp_path / "run", "--resume", SABOTAGE_RANK=rank, SABOTAGE_ONCE=struck, **sabotage
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert struck.exists() and "resuming after step 8" in done.stdout
    whole, run = (weights_of(tmp_path / name, 15) for name in ("whole", "run"))
    assert all(torch.equal(whole[key], run[key]) for key in whole)
    assert [x["loss"] for x in lines_of(tmp_path / "run")] == [x["loss"] for x in lines_of(tmp_path / "whole")]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_mistake_is_said_once_and_ends_every_rank(small, tmp_path):
    results = run_ranks(3, *small, "--out", tmp_path / "run", "--config", "huge")
    assert [status for status, _, _ in results] == [2, 2, 2]
    assert "error: --config huge" in results[0][2]
    (tmp_path / "empty").mkdir()
    results = run_ranks(3, "--data", tmp_path / "empty", "--out", tmp_path / "run")
    assert [status for status, _, _ in results] == [2, 2, 2]
    assert "contains no .tar files" in results[0][2] and [err for _, _, err in results[1:]] == ["", ""]


@pytest.mark.parametrize("file", ["model.safetensors", "training.safetensors"])
def test_a_damaged_checkpoint_ends_every_rank_with_one_sentence(small, tmp_path, file):
    """The first rank alone reads it: another has no file to complain of."""
    run = tmp_path / "run"
    right(run_ranks(1, *small, "--epochs", 1, "--out", run))
    path = checkpoints(run)[-1] / file
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    (run / "result.json").unlink()  # of a finished run nothing is read
    results = run_ranks(3, *small, "--epochs", 1, "--out", run, "--resume")
    assert [status for status, _, _ in results] == [2, 2, 2], results
    assert f"{file}: SHA-256 differs from checkpoint.json" in results[0][2]
    assert [err for _, _, err in results[1:]] == ["", ""]


def test_a_bad_sample_ends_every_rank_or_is_left_out_on_all(small, tmp_path):
    from shards.storage.index import load_index

    path = tmp_path / "data" / "part-00001.tar"
    index = load_index(path)
    with open(path, "r+b") as file:
        file.seek(int(index.members[4, 0, 0]))
        file.write(b"damaged!" * 4)
    results = run_ranks(2, *small, "--epochs", 2, "--out", tmp_path / "stop")
    assert [status for status, _, _ in results] == [2, 2]
    said = [err for _, _, err in results if err]
    assert len(said) == 1 and "part-00001.tar: k1_00004.features.npy" in said[0] and "Traceback" not in said[0]
    results = right(run_ranks(2, *small, "--epochs", 2, "--on_bad_shard", "skip", "--out", tmp_path / "skip"))
    assert json.loads((tmp_path / "skip" / "result.json").read_text())["bad_samples"] == 2
    assert sum(out.count("skipped: ") for _, out, _ in results) in (1, 2)  # once on every rank that met it
    assert [line["bad_samples"] for line in lines_of(tmp_path / "skip")][-1] == 2


def test_ranks_that_read_other_shards_under_the_same_names_are_refused(tmp_path):
    """Of the same sizes and captions, without checksums."""
    for rank in (0, 1):
        folder = tmp_path / f"rank{rank}" / "data"
        make_dataset(folder, (27, 17))
        for path in (folder / "dataset.json", *folder.glob("*.npz")):
            path.unlink()
    flags = ("--data", "data", *FLAGS, "--epochs", 1, "--out", tmp_path / "run")
    other = tmp_path / "rank1" / "data" / "part-00001.tar"
    content = bytearray(other.read_bytes())
    content[512 + 130] ^= 1  # of the features of the first sample, behind the header of the tar and of the array
    other.write_bytes(content)
    results = run_ranks_apart("pretrain.run", tmp_path / "rank", *flags)
    assert [status for status, _, _ in results] == [2, 2], results
    assert [err for _, _, err in results] == [
        "",
        "error on rank 1: data: differs from the data set on the first rank; all ranks must read the same files\n",
    ]
    shutil.copy(tmp_path / "rank0" / "data" / "part-00001.tar", other)
    results = run_ranks_apart("pretrain.run", tmp_path / "rank", *flags)
    assert [status for status, _, _ in results] == [0, 0], results


def test_what_is_begun_on_two_ranks_goes_on_with_one_and_with_three(small, tmp_path):
    """On local shards the very same batches: the layout changes nothing but the last bits."""
    flags = [*small, "--dropout", 0.1, "--precision", "float64", "--epochs", 3]
    right(run_ranks(1, *flags, "--out", tmp_path / "whole"))
    for stop, ranks in ((4, 2), (9, 1), (None, 3)):
        environment = {} if stop is None else {"SABOTAGE_AT": stop, "SABOTAGE": "stop_after", "SABOTAGE_RANK": 0}
        script = (
            ("-m", "pretrain.run") if stop is None else (os.path.join(os.path.dirname(__file__), "../../sabotage.py"),)
        )
        results = run_ranks(
            ranks, *flags, "--out", tmp_path / "run", "--resume", script=script, SABOTAGE_ONCE="none", **environment
        )
        assert {status for status, _, _ in results} == {130 if stop else 0}, results
    whole, run = (lines_of(tmp_path / name) for name in ("whole", "run"))
    for mine, other in zip(whole, run, strict=True):
        assert all(mine[name] == pytest.approx(other[name], rel=1e-9) for name in NAMES)


@pytest.mark.slow
def test_a_scheduler_stops_torchrun_and_the_run_has_a_checkpoint(small, tmp_path):
    """SIGTERM to torchrun, which hands it on to its ranks."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        "-m",
        "pretrain.run",
    ]
    process = subprocess.Popen(
        [str(part) for part in [*command, *small, "--epochs", 100000, "--out", run]],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, until = run / "metrics.jsonl", time.time() + 100
    try:
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
            assert time.time() < until and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=100)
    finally:
        process.kill()
    (saved,) = checkpoints(run)
    step = int(saved.name[5:])
    assert process.returncode == 1 and f"stopped at step {step} of 500000; use --resume to continue" in out
    assert lines_of(run)[-1]["step"] == step
