"""The worked examples of docs/extending_training.md: a term of the loss, an optimizer, a logged value, a regime."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from data_sets import make_dataset
from launching import lines_of, python
from safetensors.torch import load_file

from pretrain.engine.checkpoint import newest_checkpoint

ROOT = Path(__file__).parents[2]
FLAGS = ("--data", "data", "--batch_size", 8, "--workers", 0, "--log_every", 1, "--steps", 6)


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending_training.md").read_text(), re.DOTALL)


def insert(file: Path, **before: str) -> None:
    """Inserts lines before the anchors, each of which occurs once. before: number of the example -> anchor."""
    text = file.read_text()
    for number, anchor in before.items():
        assert text.count(anchor) == 1, anchor
        text = text.replace(anchor, EXAMPLES[int(number.removeprefix("example"))] + anchor)
    file.write_text(text)


@pytest.fixture
def code(tmp_path):
    """A copy of the packages."""
    for layer in ("ops", "shards", "pretrain", "finetune"):
        shutil.copytree(ROOT / layer, tmp_path / layer)
    return tmp_path


def run(code: Path, *command) -> str:
    done = python(*command, cwd=code, libraries_only=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pretrain(code: Path, out: str, *flags) -> tuple[str, list[dict]]:
    """(what a run printed, the lines of its log)"""
    said = run(code, "pretrain.run", *FLAGS, "--out", out, *flags)
    return said, [json.loads(line) for line in (code / out / "metrics.jsonl").read_text().splitlines()]


def test_a_term_of_the_loss_and_an_optimizer_are_used_logged_and_resumed(code):
    (code / "pretrain" / "objective" / "regression_term.py").write_text(EXAMPLES[0])
    config = code / "pretrain" / "config.py"
    config.write_text("from pretrain.objective.regression_term import RegressionTerm\n" + config.read_text())
    insert(config, example1="    contrastive: float = flag(\n", example2="    return tuple(terms)\n")
    optimizers = code / "pretrain" / "engine" / "optimizer.py"
    anchors = "# Name -> function of (parameter groups", '    "apex": nvidia_apex.fused_adam,\n'
    insert(optimizers, example3=anchors[0], example4=anchors[1])
    (code / "data").mkdir()
    make_dataset(code / "data", counts=(60,))
    flags = ("--regression", 0.5, "--optimizer", "nadamw")
    said, lines = pretrain(code, "with", *flags)
    assert "feature regression" in said
    for line in lines:
        parts = [line["loss_words"], line["loss_regions"], line["loss_alignment"], 0.5 * line["loss_regression"]]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-5)
    weights = load_file(newest_checkpoint(code / "with") / "model.safetensors")
    assert weights["extra.regression.bias"].abs().min() > 0  # it begins at zero
    state = load_file(newest_checkpoint(code / "with") / "training.safetensors")
    assert torch.is_nonzero(state["mu_product/words.bias"])
    assert "nothing to do" in pretrain(code, "with", *flags, "--resume")[0]
    assert all("loss_regression" not in line for line in pretrain(code, "without")[1])


def test_a_value_is_logged(code, tmp_path, world):
    insert(code / "finetune" / "objective" / "task_pass.py", example5='            "examples": len(batch),\n')
    flags = ("--task", "refcoco", "--data", world, "--init", "none", "--epochs", 1, "--workers", 0)
    run(code, "finetune.st", *flags, "--out", tmp_path / "st", "--log_every", 1)
    lines = lines_of(tmp_path / "st")
    assert len(lines) > 1 and all(line["logits"] > 0 for line in lines)


def test_a_regime_is_found_by_name(code, world, tmp_path):
    anchors = "REGIMES = {\n", '    "by_sqrt_size": BySquareRoot,\n'
    insert(code / "finetune" / "training" / "task_schedulers.py", example6=anchors[0], example7=anchors[1])
    flags = ("--data", world, "--init", "none", "--tasks", "nlvr2,refcoco", "--iterations", 4, "--validate_on", 8)
    names = ("--regime", "one_by_one", "--out", tmp_path / "mt")
    run(code, "finetune.mt", *flags, *names, "--workers", 0, "--log_every", 1)
    trained = [[task for task in ("nlvr2", "refcoco") if f"{task}/loss" in line] for line in lines_of(tmp_path / "mt")]
    assert trained == [["refcoco"], ["nlvr2"]] * 2
