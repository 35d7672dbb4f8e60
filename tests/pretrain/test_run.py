"""Whole runs: what resumes is what went on, a fixed batch can be learned, files are whole or not there."""

import fcntl
import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time

import fork_server
import numpy as np
import pytest
import torch
from data_sets import make_dataset
from safetensors.torch import load_file

from pretrain import load
from pretrain.config import PretrainConfig
from pretrain.data.collate import Limits, stack
from pretrain.data.random_choices import sample_keys
from pretrain.engine.checkpoint import METADATA, MODEL, TRAINING, best_checkpoint, checkpoints, read_tensors
from pretrain.engine.optimizer import lr_factor, make_optimizer, parameter_groups
from pretrain.engine.run_dir import read_flags
from pretrain.engine.stop_signals import StopSignals
from pretrain.models.model_config import TINY
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.objective.pretraining_loss import Objective
from pretrain.pretrained.load_model import load_pretraining
from shards.common.errors import UserError

SMALL = [
    "--epochs",
    3,
    "--batch_size",
    8,
    "--log_every",
    1,
    "--save_every",
    100,
    "--workers",
    0,
    "--validation_pairs",
    9,
]


def losses_of(run) -> dict:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "loss_words", "loss_regions", "loss_alignment", "gradient_norm")
    return {line["step"]: [line[name] for name in names] for line in lines if line["kind"] == "train"}


def test_a_run_leaves_all_that_it_should(dataset_folder, tmp_path, run_command):
    run = tmp_path / "run"
    status, out, err = run_command("pretrain.run", "--data", dataset_folder, "--out", run, *SMALL)
    assert (status, err) == (0, "")
    assert "87 training pairs, 10 validation pairs" in out and f"run directory: {run}" in out
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 33 and result["validation"]["pairs"] == 10
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "validation" and 0 < last["validation_seconds"] < result["seconds"]
    assert {"config.json", "metrics.jsonl", "result.json", "tokenizer.json", "checkpoints"} <= set(os.listdir(run))
    assert any(name.startswith("events.out.tfevents") for name in os.listdir(run))
    assert sorted(losses_of(run)) == list(range(1, 34))
    model = load(run)
    weights = load_file(best_checkpoint(run) / MODEL)
    modes = {path.stat().st_mode for path in best_checkpoint(run).iterdir()}
    assert modes == {(run / "config.json").stat().st_mode}
    assert all(torch.equal(value, weights[f"encoder.{name}"]) for name, value in model.state_dict().items())
    status, _, err = run_command("pretrain.run", "--data", dataset_folder, "--out", run, *SMALL)
    assert status == 2 and "--resume" in err
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    shutil.rmtree(dataset_folder)  # nothing is read again
    status, out, _ = run_command("pretrain.run", "--out", run, "--resume")
    assert status == 0 and "already finished; nothing to do" in out and "validation: masked tokens" in out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    status, _, err = run_command("pretrain.run", "--out", run, "--resume", "--epochs", 4)
    assert status == 2 and "--epochs 4: the run in" in err


@pytest.mark.parametrize("workers", [0, 2])
def test_stopping_and_resuming_gives_the_same_numbers_to_the_last_bit(
    dataset_folder, tmp_path, run_command, workers, ending
):
    flags = ["--data", dataset_folder, *SMALL, "--workers", workers, "--dropout", 0.1]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_command("pretrain.run", *flags, "--out", whole)[0] == 0
    with ending(after=13):
        status, out, _ = run_command("pretrain.run", *flags, "--out", parts)
    assert status == 130 and "stopped at step 14" in out
    assert run_command("pretrain.run", "--out", parts, "--resume", "--workers", workers)[0] == 0
    assert losses_of(parts) == losses_of(whole)
    one, two = (load_file(run / "checkpoints" / "step-00000033" / MODEL) for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (
        json.loads((whole / "result.json").read_text())["validation"]
        == json.loads((parts / "result.json").read_text())["validation"]
    )


@pytest.mark.parametrize("streamed", [False, True])
def test_steps_in_place_of_epochs(dataset_folder, tmp_path, run_command, ending, http_folder, streamed):
    """Schedule, validation and a resume are those of a run of 17 steps, of which an epoch has 11."""
    data = f"{http_folder(dataset_folder)}/part-{{00000..00001}}.tar" if streamed else dataset_folder
    flags = ["--data", data, "--steps", 17, "--batch_size", 8, "--log_every", 1, "--save_every", 5, "--workers", 0]
    flags += ["--validation_pairs", 9]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_command("pretrain.run", *flags, "--out", whole)[0] == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates == pytest.approx([5e-4, 1e-3] + [1e-3 * (17 - step) / 15 for step in range(2, 17)])
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [5, 10, 15, 17]
    result = json.loads((whole / "result.json").read_text())
    per_epoch = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])["epoch"]
    assert result["steps"] == 17 and result["epochs"] == pytest.approx(17 * per_epoch, abs=1e-3)
    with ending(after=12):
        assert run_command("pretrain.run", *flags, "--out", parts)[0] == 130
    status, _, err = run_command("pretrain.run", "--out", parts, "--resume", "--steps", 18)
    assert status == 2 and "--steps 18: the run in" in err
    assert run_command("pretrain.run", "--out", parts, "--resume")[0] == 0
    assert losses_of(parts) == losses_of(whole)
    one, two = (load_file(run / "checkpoints" / "step-00000017" / MODEL) for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    status, out, _ = run_command("pretrain.run", "--out", parts, "--resume")
    assert status == 0 and "already finished" in out


def test_steps_and_epochs_exclude_each_other(dataset_folder, tmp_path, run_command):
    status, _, err = run_command(
        "pretrain.run", "--data", dataset_folder, "--out", tmp_path, "--steps", 2, "--epochs", 3
    )
    assert status == 2 and err == "error: --steps 2: cannot be combined with --epochs 3; use one of them\n"


def test_a_run_that_validates_on_nothing_says_so(tmp_path, run_command):
    make_dataset(tmp_path / "data", (16,))
    flags = ("--data", tmp_path / "data", "--workers", 0, "--steps", 2)
    status, out, _ = run_command("pretrain.run", *flags, "--out", tmp_path / "a")
    assert status == 0 and "no validation: it needs at least 20 pairs" in out
    assert json.loads((tmp_path / "a" / "result.json").read_text())["validation"] == {}
    _, out, _ = run_command("pretrain.run", *flags, "--out", tmp_path / "b", "--validation_pairs", 0)
    assert "no validation" not in out


def test_a_line_of_the_log_covers_the_steps_before_a_checkpoint_too(dataset_folder, tmp_path, run_command, ending):
    """Lines after steps 5, 10, ...; the process is killed in step 13, and the last checkpoint is that of step 12."""
    flags = ["--data", dataset_folder, *SMALL, "--log_every", 5, "--save_every", 3]
    assert run_command("pretrain.run", *flags, "--out", tmp_path / "whole")[0] == 0
    with ending(before=13):
        assert run_command("pretrain.run", *flags, "--out", tmp_path / "parts")[0] == 130
    assert checkpoints(tmp_path / "parts")[-1].name == "step-00000012"
    assert run_command("pretrain.run", "--out", tmp_path / "parts", "--resume")[0] == 0
    assert sorted(losses_of(tmp_path / "whole")) == [5, 10, 15, 20, 25, 30, 33]
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGHUP, 143)],
)
def test_a_signal_ends_the_process_with_a_checkpoint(dataset_folder, tmp_path, sent, status):
    run = tmp_path / "run"
    flags = ("--data", dataset_folder, "--out", run, "--epochs", 100000, "--workers", 1)
    process = fork_server.start("-m", "pretrain.run", *flags)
    try:
        until = time.time() + 120
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert process.poll() is None and time.time() < until, process.communicate()
            time.sleep(0.1)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (status, "")
    assert "use --resume to continue" in out and len(checkpoints(run)) == 1


@pytest.mark.slow
def test_a_closed_terminal_leaves_a_checkpoint(dataset_folder, tmp_path):
    """The connection to a remote machine broke: all processes get SIGHUP, and nothing can be printed any more."""
    run, (ours, theirs) = tmp_path / "run", pty.openpty()
    flags = ["--data", dataset_folder, "--out", run, "--epochs", 100000, "--workers", 1, "--log_every", 1]
    command = [sys.executable, "-m", "pretrain.run", *map(str, flags)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=_own_terminal)
    os.close(theirs)
    try:
        until = time.time() + 120
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert process.poll() is None and time.time() < until
            os.read(ours, 1 << 16)
        os.close(ours)
        assert process.wait(60) == 143 and len(checkpoints(run)) == 1
    finally:
        process.kill()


def _own_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, tests and what they start would ignore it
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_under_nohup_a_closed_terminal_does_not_stop_a_run():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_flags_that_change_the_run_are_refused_on_resume(dataset_folder, tmp_path, run_command):
    run = tmp_path / "run"
    run_command("pretrain.run", "--data", dataset_folder, "--out", run, *SMALL)
    status, _, err = run_command("pretrain.run", "--out", run, "--resume", "--lr", "0.5")
    assert status == 2 and "--lr 0.5" in err and "0.001" in err


def test_a_run_of_the_previous_release_is_resumed_by_either_name_of_a_flag(dataset_folder, tmp_path, run_command):
    run = tmp_path / "run"
    flags = ["--data", dataset_folder, "--out", run, "--steps", 2, "--workers", 0, "--validation_pairs", 9]
    status, _, err = run_command("pretrain.run", *flags, "--words", 20, "--regions", 30)
    assert status == 0 and "use --max_tokens\n" in err and "use --max_regions\n" in err
    (run / "result.json").unlink()
    config = json.loads((run / "config.json").read_text())
    before = read_flags(run, PretrainConfig)
    former = {"max_tokens": "words", "max_regions": "regions"}
    assert {config["flags"][name] for name in former} == {20, 30}
    config["flags"] = {former.get(name, name): value for name, value in config["flags"].items()}
    (run / "config.json").write_text(json.dumps(config))
    assert read_flags(run, PretrainConfig) == before
    for flag in ("--words", "--max_tokens"):
        status, _, err = run_command("pretrain.run", "--out", run, "--resume", flag, 36)
        assert status == 2 and f"error: --max_tokens 36: the run in {run} has 20" in err
        (status, out, _) = run_command("pretrain.run", "--out", run, "--resume", flag, 20)
        assert status == 0 and "resuming after step 2" in out
        (run / "result.json").unlink()


@pytest.mark.parametrize("file", ["captions.txt", "part-00000.tar"])
def test_a_resume_with_other_data_in_the_same_place_is_refused(dataset_folder, tmp_path, run_command, file):
    """Its description in dataset.json may be unchanged: captions that were edited, shards that were extracted again."""
    run = tmp_path / "run"
    assert run_command("pretrain.run", "--data", dataset_folder, "--out", run, *SMALL)[0] == 0
    (run / "result.json").unlink()
    path = dataset_folder / file
    data = bytearray(path.read_bytes())
    data[-1200 if file.endswith("tar") else 2] ^= 1
    path.write_bytes(data)
    status, _, err = run_command("pretrain.run", "--out", run, "--resume")
    assert status == 2 and "differs from the data set of the run" in err
    config = json.loads((run / "config.json").read_text())
    del config["data"]["content"]  # as in a run of an earlier version, which goes on
    (run / "config.json").write_text(json.dumps(config))
    assert run_command("pretrain.run", "--out", run, "--resume")[0] == 0


def test_a_damaged_checkpoint_is_refused(dataset_folder, tmp_path, run_command):
    run = tmp_path / "run"
    run_command("pretrain.run", "--data", dataset_folder, "--out", run, *SMALL)
    path = checkpoints(run)[-1]
    data = bytearray((path / MODEL).read_bytes())
    data[len(data) // 2] ^= 1
    (path / MODEL).write_bytes(data)
    with pytest.raises(UserError, match="SHA-256"):
        read_tensors(path, MODEL)
    assert read_tensors(path, TRAINING)
    (run / "result.json").unlink()  # of a finished run nothing is read
    status, _, err = run_command("pretrain.run", "--out", run, "--resume")
    assert status == 2 and "SHA-256" in err


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in ("step-00000001", ".step-00000003.77.part"):
        (folder / name).mkdir(parents=True)
        (folder / name / METADATA).write_text('{"score": null}')
    (folder / "step-00000002").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]


def test_the_newest_and_the_best_checkpoint_are_kept(dataset_folder, tmp_path, run_command):
    run = tmp_path / "run"
    flags = [*SMALL, "--save_every", 4]
    run_command("pretrain.run", "--data", dataset_folder, "--out", run, *flags)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["loss"] for line in lines if line["kind"] == "validation"}
    assert len(scores) == 9
    best = min(scores, key=scores.get)
    assert {int(path.name[5:]) for path in checkpoints(run)} == {best, 33}
    assert best_checkpoint(run).name == f"step-{best:08d}"


@pytest.mark.parametrize("count", [1, 2, 13, 41])
def test_small_and_prime_data_sets(tmp_path, run_command, count):
    make_dataset(tmp_path / "data", (count,))
    status, out, err = run_command("pretrain.run", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    if count == 1:
        assert status == 2 and "alignment needs different captions of at least two images" in err
    else:
        assert status == 0 and "run directory:" in out


def test_pretraining_from_a_bert(dataset_folder, tmp_path, run_command, ending):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "green",
        "cat",
        "dog",
        "number",
        "1",
        "0",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    bert = tmp_path / "bert"
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(bert)
    sizes = BertConfig(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=256,
    )
    BertModel(sizes).save_pretrained(bert)
    flags = [
        "--data",
        dataset_folder,
        "--out",
        tmp_path / "run",
        *SMALL,
        "--bert",
        bert,
        "--bert_lr_scale",
        0.1,
    ]
    status, out, err = run_command("pretrain.run", *flags)
    assert status == 0, err
    assert "parameters of the text stream initialised from" in out and f"vocabulary size {len(words)}" in out

    frozen = tmp_path / "frozen"  # stopped before its end and resumed: still without a change
    flags[3], flags[-1] = frozen, 0
    with ending(before=12):
        assert run_command("pretrain.run", *flags, "--save_every", 10)[0] == 130
    status, out, err = run_command("pretrain.run", "--out", frozen, "--resume")
    assert status == 0 and "resuming after step 10" in out, err
    original = BertModel.from_pretrained(bert).state_dict()
    trained = load(frozen).state_dict()
    assert torch.equal(trained["text_embedding.word.weight"], original["embeddings.word_embeddings.weight"])
    of_bert = original["encoder.layer.2.attention.output.dense.weight"]
    assert torch.equal(trained["text_layers.2.output.weight"], of_bert)
    new = load(tmp_path / "run").state_dict()
    assert not torch.equal(new["text_layers.2.output.weight"], trained["text_layers.2.output.weight"])
    torch.manual_seed(0)
    begun = PretrainingModel(load(frozen).config)
    word_head = load_pretraining(frozen).words.transform.dense.weight  # BertModel has none: this one is trained
    assert (word_head - begun.words.transform.dense.weight).abs().max() > 1e-4


@pytest.mark.parametrize("target", ["features", "none"])
def test_regions_without_classes(tmp_path, run_command, target):
    make_dataset(tmp_path / "data", (50,), classes=0)
    flags = ["--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL]
    status, _, err = run_command("pretrain.run", *flags)
    assert status == 2 and "--region_target features" in err and "--region_target none" in err
    assert run_command("pretrain.run", *flags, "--region_target", target)[0] == 0
    assert load(tmp_path / "run")


def test_a_fixed_batch_without_masking_can_be_learned():
    """The words are all there to be copied, so every loss must go to nothing."""
    from data_sets import make_samples

    torch.manual_seed(0)
    sizes = TINY.replace(
        vocab_size=40, v_feature_size=12, v_target_size=9, hidden_dropout_prob=0.0, v_hidden_dropout_prob=0.0
    )
    model = PretrainingModel(sizes).train()
    model.encoder.fusion_dropout.p = 0.0
    rng = np.random.default_rng(0)
    samples = make_samples(16, per_region=1, regions=(4, 8))
    for sample in samples:
        sample.class_probs = np.ones_like(sample.class_probs)
    ids = [[2, *rng.integers(5, 40, 6).tolist(), 3] for _ in samples]
    batch = stack(samples, ids, sample_keys(0, 0, np.arange(16)), np.arange(16) % 2 == 1, Limits(20, 36, 12, 9, 1))
    objective = Objective(mask_id=4, ordinary_ids=torch.arange(5, 40))
    batch.predicted_tokens, batch.predicted_regions = objective.count_predictions(batch)
    inputs = objective.mask(batch)
    unmasked = type(inputs)(**vars(inputs) | {"input_ids": batch.input_ids})
    optimizer = make_optimizer(model, 1e-3, (0.9, 0.98), 1e-8, 0.0)
    for _ in range(150):
        losses = objective.forward_losses(model, batch, unmasked)
        loss = losses.loss(losses.local_counts.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses.local_counts["word_count"] > 3 and losses.local_counts["region_count"] > 3
    assert loss.item() < 0.05


def test_learning_rate_rises_and_falls_in_straight_lines():
    factors = [lr_factor(step, 100, 0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5) and factors[100] == 0
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert lr_factor(0, 1, 0.0) == 1.0


def test_biases_and_layer_norms_do_not_decay():
    model = PretrainingModel(TINY)
    groups = parameter_groups(model, 0.01, lambda name: 0.1 if "text" in name else 1.0)
    of = {id(p): (g["weight_decay"], g["scale"]) for g in groups for p in g["params"]}
    named = dict(model.named_parameters())
    assert len(of) == len(named)
    assert of[id(named["encoder.text_layers.0.norm.weight"])] == (0.0, 0.1)
    assert of[id(named["encoder.text_layers.0.output.bias"])] == (0.0, 0.1)
    assert of[id(named["encoder.image_layers.0.output.weight"])] == (0.01, 1.0)
    assert of[id(named["words.bias"])] == (0.0, 1.0)
    assert of[id(named["encoder.image_embedding.norm.weight"])] == (0.0, 1.0)
