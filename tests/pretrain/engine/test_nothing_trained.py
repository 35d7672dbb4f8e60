"""A run that has trained nothing fails, and says why."""

import json

import torch
from data_sets import make_dataset

SMALL = ("--epochs", 1, "--batch_size", 8, "--workers", 0, "--validation_pairs", 0)


def test_a_run_whose_steps_were_all_skipped_fails(tmp_path, run_command, monkeypatch):
    make_dataset(tmp_path / "data", (40,))
    flags = ("pretrain.run", "--data", tmp_path / "data", *SMALL, "--out", tmp_path / "run")
    monkeypatch.setattr("torch.nn.utils.get_total_norm", lambda *_: torch.tensor(float("nan")))
    status, _, err = run_command(*flags)
    assert status == 2 and "none of the 5 steps changed the weights: their gradients were not finite" in err
    assert not (tmp_path / "run" / "result.json").exists()
    status, _, err = run_command(*flags, "--resume")
    assert status == 2 and "none of the 5 steps" in err
    monkeypatch.undo()
    assert run_command(*flags, "--resume")[0] == 0


def test_a_run_whose_samples_were_all_skipped_fails(tmp_path, run_command):
    make_dataset(tmp_path / "data", (40,))
    path = tmp_path / "data" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_classes": 1}))
    flags = ("pretrain.run", "--data", tmp_path / "data", *SMALL, "--on_bad_shard", "skip", "--out", tmp_path / "run")
    status, _, err = run_command(*flags)
    assert status == 2 and "all samples were skipped; see the printed errors" in err


def test_blank_captions_are_none(tmp_path, run_command):
    make_dataset(tmp_path / "data", (5,))
    (tmp_path / "data" / "captions.txt").write_text("\n" * 5)
    status, _, err = run_command("pretrain.run", "--data", tmp_path / "data", *SMALL, "--out", tmp_path / "run")
    assert status == 2 and "all captions are empty" in err
