"""A user's own typed code is checked against the annotations of the public interface."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

USER = '''
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from finetune import Embedder, Example, Head, Prediction, Predictor, Task, TaskScore, find_task, score_task
from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.example import Box
from finetune.heads.base import Scene
from pretrain import ModelConfig, TwoStream, load
from shards import RegionReader, Sample, open_dataset


def answers(run: Path, image: npt.NDArray[np.uint8]) -> list[str]:
    predictor = Predictor(run, device="cpu")
    found: Prediction = predictor("vqa", "What color is the star?", image, top=3)
    boxes: list[Box] = predictor("refcoco", "the red star", "photo.jpg", Path("photo.jpg"), b"").boxes
    return found.choices + [str(box) for box in boxes]


def similarities(run: str, texts: list[str], folder: Path) -> npt.NDArray[np.float32]:
    embedder = Embedder.from_pretrained(run, batch_size=8)
    reader = RegionReader(open_dataset(folder))
    samples: list[Sample] = [reader[number] for number in range(len(reader))]
    return embedder.texts(texts).pooled @ embedder.regions(samples).pooled.T


def encoder(path: Path) -> TwoStream:
    return load(path).to(torch.device("cpu"))


class Count(Head):
    """Numbers from 0 to 9."""

    def layer(self, sizes: ModelConfig, answers: int) -> nn.Module:
        return nn.Linear(sizes.bi_hidden_size, 10)

    def targets(
        self, examples: Sequence[Example], samples: Sequence[Sample], rows: int, vocabulary: AnswerVocabulary | None
    ) -> Tensor:
        return torch.tensor([example.target for example in examples])

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets, reduction="none")

    def training_scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.argmax(1) == targets).float()

    def choices(self, scene: Scene, vocabulary: AnswerVocabulary | None) -> tuple[list[str], Sequence[Box]]:
        return [str(number) for number in range(10)], ()

    def expected(self, example: Example) -> tuple[str, None]:
        return str(example.target), None


@dataclass(frozen=True)
class Counting(Task):
    """How many objects an image shows."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        return [Example(0, "How many stars?", ("1",), 3, facts={"type": "star"})]

    def scores(self, examples: Sequence[Example], predictions: Sequence[int]) -> dict[str, npt.NDArray[np.float64]]:
        return {"accuracy": np.array([float(p == e.target) for e, p in zip(examples, predictions, strict=True)])}

    def submission(self, examples: Sequence[Example], predictions: Sequence[int]) -> str:
        return str(list(predictions))


TASK = Counting("counting", "Counting", "own", 19, Count("count"), 30, 64, 2e-5, "pairs", ("train", "val"))
SCORE: TaskScore = score_task(find_task("vqa"), TASK.read("data", "val"), [3])
'''
MISTAKES = """
from finetune import Embedder, Predictor
from pretrain import load

Predictor("runs/mt")("vqa", "What color is the star?", 7)
Embedder("runs/mt").texts("one text").pooled.no_such_method()
load("weights").no_such_method()
number: int = Predictor.from_pretrained("runs/mt")("vqa", "What color is the star?", "photo.jpg")
"""


@pytest.mark.slow  # `make lint`, part of `make test`, checks the annotations themselves
def test_a_users_typed_code_passes_and_its_mistakes_are_found(tmp_path):
    """mypy --strict for both files in an environment where the packages are installed in editable mode."""
    pytest.importorskip("mypy")
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(environment)})
    Path(packages, "installed.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    options = ("--strict", "--python-executable", environment / "bin/python")
    command = (sys.executable, "-m", "mypy", *options, "user.py", "mistakes.py")
    clean = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=clean)
    places = [line.split(":")[:2] for line in done.stdout.splitlines() if ": error:" in line]
    assert places == [["mistakes.py", str(number)] for number in (5, 6, 7, 8)], done.stdout + done.stderr
    assert "checked 2 source files" in done.stdout
