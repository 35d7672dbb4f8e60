"""Checkpoints are written while training goes on, whole or not at all."""

import json
import math
import threading

import pytest
import torch
from torch import nn

import pretrain.engine.checkpoint
from pretrain.engine.checkpoint import (
    CheckpointWriter,
    best_checkpoint,
    checkpoints,
    newest_checkpoint,
    read_tensors,
    restore,
)
from pretrain.engine.metrics_logger import RunLog
from shards.common.errors import UserError


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    model(torch.rand(5, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def held(monkeypatch):
    """Writing begins when this event is set."""
    gate, plain = threading.Event(), pretrain.engine.checkpoint.save_file

    def save(tensors, path):
        assert gate.wait(10)
        plain(tensors, path)

    monkeypatch.setattr(pretrain.engine.checkpoint, "save_file", save)
    return gate


def test_a_checkpoint_has_the_weights_of_its_step_though_training_went_on(trained, tmp_path, held):
    model, optimizer = trained
    writer = CheckpointWriter(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    writer.save(1, model, optimizer, {}, None)
    step(model, optimizer)
    assert checkpoints(tmp_path) == []
    held.set()
    writer.wait()
    found = read_tensors(newest_checkpoint(tmp_path), "model.safetensors")
    assert all(torch.equal(before[name], value) for name, value in found.items()) and found
    assert not torch.equal(before["weight"], model.weight)
    other = nn.Linear(4, 3)
    metadata = restore(newest_checkpoint(tmp_path), other, torch.optim.AdamW(other.parameters(), fused=True))
    assert metadata["step"] == 1 and torch.equal(other.weight, before["weight"])


def test_a_second_checkpoint_waits_for_the_first(trained, tmp_path, held):
    writer = CheckpointWriter(tmp_path)
    writer.save(1, *trained, {}, 0.5)
    threading.Timer(0.2, held.set).start()
    step(*trained)
    writer.save(2, *trained, {}, None)
    assert next(path.name for path in checkpoints(tmp_path)) == "step-00000001"
    writer.wait()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


def test_why_it_could_not_be_written_is_known_at_once_and_said_once(trained, tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path)
    writer.save(1, *trained, {}, None)
    writer.wait()

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrain.engine.checkpoint, "save_file", full)
    writer.save(2, *trained, {}, None)
    writer._thread.join()
    assert "No space left on device" in str(writer.failure) and "continue from step-00000001" in str(writer.failure)
    with pytest.raises(UserError, match="could not be written"):
        writer.save(3, *trained, {}, None)
    writer.wait()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]


@pytest.mark.parametrize(("minutes", "expected"), [(1e-7, 12), (0, 1)])
def test_checkpoints_are_written_by_the_clock(dataset_folder, tmp_path, run_command, monkeypatch, minutes, expected):
    """With hardly any minutes, after every step; with none, at the end alone."""
    steps, plain = [], CheckpointWriter.save

    def save(writer, number, *rest):
        steps.append(number)
        plain(writer, number, *rest)

    monkeypatch.setattr(CheckpointWriter, "save", save)
    flags = ("--data", dataset_folder, "--batch_size", 16, "--workers", 0, "--epochs", 2, "--validation_pairs", 0)
    status, _, err = run_command("pretrain.run", *flags, "--save_minutes", minutes, "--out", tmp_path / "run")
    assert status == 0, err
    assert len(steps) >= expected if minutes else len(steps) == expected
    assert newest_checkpoint(tmp_path / "run").name == f"step-{steps[-1]:08d}"


def test_a_bad_line_of_the_metrics_does_not_cost_those_behind_it(tmp_path):
    lines = [json.dumps({"step": n, "kind": "train", "loss": n / 7}).encode() for n in range(5)]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines[:2], b"\xff", *lines[2:], b'{"step": 5, "ki']))
    RunLog(tmp_path, 3).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"\n".join([*lines[:4], b""])


@pytest.mark.parametrize(
    ("metadata", "best"),
    [
        ([{"selection_score": 0.2}, {"selection_score": 0.5}, {"selection_score": 0.1}], 2),
        ([{"selection_score": 0.5}, {"selection_score": 0.5}], 1),
        ([{"selection_score": -3.0}, {"selection_score": math.nan}, {"selection_score": None}], 1),
        ([{"score": 2.5}, {"score": 2.0}, {"selection_score": -2.2}], 2),  # of version 0.1: a loss
        ([{"selection_score": None}, {"selection_score": None}], 2),
    ],
)
def test_the_best_checkpoint_has_the_highest_score(tmp_path, metadata, best):
    for number, of_one in enumerate(metadata, 1):
        folder = tmp_path / "checkpoints" / f"step-{number:08d}"
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text(json.dumps({"step": number, "sha256": {}} | of_one))
    assert best_checkpoint(tmp_path).name == f"step-{best:08d}"
