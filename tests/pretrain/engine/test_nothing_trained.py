"""A run that has trained nothing fails, and says why."""

import json

import pytest
import torch
from data_sets import make_dataset

from pretrain.engine.checkpoint import CheckpointWriter, checkpoints
from shards.common.errors import UserError

SMALL = ("--epochs", 1, "--batch_size", 8, "--workers", 0, "--validation_pairs", 0)


def test_a_run_whose_steps_were_all_skipped_fails(tmp_path, run_command, monkeypatch):
    make_dataset(tmp_path / "data", (40,))
    flags = ("pretrain.run", "--data", tmp_path / "data", *SMALL, "--out", tmp_path / "run")
    monkeypatch.setattr("torch.nn.utils.get_total_norm", lambda *_: torch.tensor(float("nan")))
    status, _, err = run_command(*flags)
    assert status == 2 and "none of the 5 optimizer steps changed the weights: their gradients were not finite" in err
    assert not (tmp_path / "run" / "result.json").exists()
    status, _, err = run_command(*flags, "--resume")
    assert status == 2 and "none of the 5 optimizer steps" in err
    monkeypatch.undo()
    assert run_command(*flags, "--resume")[0] == 0


def test_a_run_whose_samples_were_all_skipped_fails(tmp_path, run_command):
    make_dataset(tmp_path / "data", (40,))
    path = tmp_path / "data" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_classes": 1}))
    flags = ("pretrain.run", "--data", tmp_path / "data", *SMALL, "--on_bad_shard", "skip", "--out", tmp_path / "run")
    status, _, err = run_command(*flags)
    assert status == 2 and "all samples were skipped; see the printed errors" in err


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_whose_weights_diverge_in_its_last_steps_fails(tmp_path, run_command, precision):
    """Fewer steps than the ten skipped ones that end a run: it printed a loss of NaN and ended with status 0."""
    make_dataset(tmp_path / "data", (60,))
    flags = ("--data", tmp_path / "data", "--batch_size", 8, "--workers", 0, "--warmup", 0, "--precision", precision)
    status, _, err = run_command("pretrain.run", *flags, "--steps", 4, "--lr", 1e30, "--out", tmp_path / "run")
    assert status == 2 and "the validation loss after 4 steps is nan: the weights have diverged" in err
    assert not list((tmp_path / "run").glob("checkpoints/step*")) and not (tmp_path / "run" / "result.json").exists()


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path):
    model = torch.nn.Linear(4, 3)
    optimizer, writer = torch.optim.AdamW(model.parameters()), CheckpointWriter(tmp_path)
    model(torch.rand(5, 4)).sum().backward()
    optimizer.step()
    writer.save(1, model, optimizer, {}, None)
    with torch.no_grad():
        model.bias[1] = float("nan")
    writer.save(2, model, optimizer, {}, None)
    with pytest.raises(UserError, match=r"after step 2 are not finite \(NaN or infinity in bias\).*step-00000001"):
        writer.wait()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]


def test_blank_captions_are_none(tmp_path, run_command):
    make_dataset(tmp_path / "data", (5,))
    (tmp_path / "data" / "captions.txt").write_text("\n" * 5)
    status, _, err = run_command("pretrain.run", "--data", tmp_path / "data", *SMALL, "--out", tmp_path / "run")
    assert status == 2 and "all captions are empty" in err
