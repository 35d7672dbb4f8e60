"""The worked example of docs/adding_a_loss.md: a term of the pretraining loss is one new file and its flag."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from data_sets import make_dataset
from safetensors.torch import load_file

from pretrain.engine.checkpoint import newest_checkpoint

ROOT = Path(__file__).parents[3]
FLAGS = ("--data", "data", "--batch_size", 8, "--workers", 0, "--log_every", 1, "--steps", 6)


def test_the_documented_term_is_trained_logged_and_resumed(tmp_path):
    for layer in ("ops", "shards", "pretrain", "finetune"):
        shutil.copytree(ROOT / layer, tmp_path / layer)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding_a_loss.md").read_text(), re.DOTALL)
    term, its_flag, its_lines = blocks
    (tmp_path / "pretrain" / "objective" / "regression_term.py").write_text(term)
    config = tmp_path / "pretrain" / "config.py"
    text = "from pretrain.objective.regression_term import RegressionTerm\n" + config.read_text()
    for anchor, lines in (("    contrastive: float = flag(\n", its_flag), ("    return tuple(terms)\n", its_lines)):
        assert text.count(anchor) == 1
        text = text.replace(anchor, lines + anchor)
    config.write_text(text)
    (tmp_path / "data").mkdir()
    make_dataset(tmp_path / "data", counts=(60,))

    def pretrain(out, *flags) -> tuple[str, list[dict]]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pretrain.run", *FLAGS, "--out", out, *flags]
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]

    said, lines = pretrain("with", "--regression", 0.5)
    assert "regression" in said and "feature regression" in said
    for line in lines:
        parts = [line["loss_words"], line["loss_regions"], line["loss_alignment"], 0.5 * line["loss_regression"]]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-5)
    weights = load_file(newest_checkpoint(tmp_path / "with") / "model.safetensors")
    assert weights["extra.regression.bias"].abs().min() > 0  # it begins at zero
    assert "nothing to do" in pretrain("with", "--regression", 0.5, "--resume")[0]
    assert all("loss_regression" not in line for line in pretrain("without")[1])
