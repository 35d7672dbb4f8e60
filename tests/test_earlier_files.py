"""Shards, runs and checkpoints of an earlier version are read, and its runs resumed to the numbers of that version."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from shards import RegionReader, open_dataset, read_captions

EARLIER = Path(__file__).parent / "earlier"


@pytest.fixture
def earlier(tmp_path) -> Path:
    """A copy of the files, whose paths are those of the copy."""
    for name in ("files", "pretrain", "st"):
        shutil.copytree(EARLIER / name, tmp_path / name)
    places = {
        "/earlier/data": tmp_path / "files",
        "/earlier/runs": tmp_path,
        "/earlier/model.json": EARLIER / "model.json",
    }
    for path in (tmp_path / name / "config.json" for name in ("pretrain", "st")):
        text = path.read_text()
        for old, new in places.items():
            text = text.replace(old, str(new))
        path.write_text(text)
    return tmp_path


def unfinished(run: Path, flag: str, value: int) -> None:
    """Makes a finished run one that was interrupted at its last checkpoint, by a larger number of steps or epochs."""
    (run / "result.json").unlink()
    config = json.loads((run / "config.json").read_text())
    config["flags"][flag] = value
    (run / "config.json").write_text(json.dumps(config))


def check_weights(run: Path, expected: Path) -> None:
    """Equal but for rounding. Without its state, the optimizer's steps differ in about their own length."""
    found, expected = load_file(run / "checkpoints/step-00000004/model.safetensors"), load_file(expected)
    before = load_file(run.parent / "before.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        step = np.abs(value - before[name]).max()
        assert np.abs(found[name] - value).max() <= 1e-2 * step + 1e-7, name


def test_shards(earlier):
    dataset = open_dataset(earlier / "files/regions/nlvr2")
    assert (dataset.feature_size, dataset.num_classes) == (342, 4)
    reader = RegionReader(dataset)
    samples = [reader[number] for number in range(8)]
    assert [sample.features.shape for sample in samples] == [(3, 342)] * 8
    assert next(iter(read_captions(dataset))) == ("picture a of h",)


@pytest.mark.parametrize(
    ("name", "command", "flag", "value"),
    [("pretrain", "pretrain.run", "steps", 4), ("st", "finetune.st", "epochs", 2)],
)
def test_a_run_is_resumed_to_the_same_weights(earlier, run_command, name, command, flag, value):
    run = earlier / name
    shutil.copy(run / "checkpoints/step-00000002/model.safetensors", earlier / "before.safetensors")
    unfinished(run, flag, value)
    status, said, err = run_command(command, "--out", run, "--resume", "true")
    assert status == 0 and "step 2" in said, err
    check_weights(run, EARLIER / f"{name}_after.safetensors")


def test_a_run_is_evaluated_and_trained_from(earlier, run_command):
    status, said, err = run_command("finetune.evaluate", "--run", earlier / "st", "--workers", 0)
    score = json.loads((EARLIER / "st/result.json").read_text())["validation"]["score"]
    assert status == 0 and f"NLVR2, dev: accuracy {score:.1%}" in said, err
    flags = ("--task", "nlvr2", "--data", earlier / "files", "--epochs", 1, "--workers", 0)
    for init in ("pretrain", "st"):
        out = earlier / f"from_{init}"
        status, _, err = run_command("finetune.st", *flags, "--init", earlier / init, "--out", out)
        assert status == 0 and (out / "result.json").exists(), err
