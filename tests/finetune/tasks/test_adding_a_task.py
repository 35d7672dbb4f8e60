"""The worked examples of docs/adding_a_task.md and docs/adding_a_head.md: a thirteenth task, a new kind of head."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import python

ROOT = Path(__file__).parents[3]


# page -> the files that it shows, in order
PAGES = {
    "adding_a_task.md": ["finetune/tasks/tallyqa.py"],
    "adding_a_head.md": ["finetune/heads/counting_head.py", "finetune/tasks/tallyqa.py"],
}


def make_data(world: Path, data: Path) -> Path:
    """A data folder with TallyQA's files about Visual Genome's images of the miniature world, and SNLI-VE."""
    (data / "tallyqa").mkdir(parents=True)
    for part in ("regions/tallyqa", "snli_ve", "regions/flickr"):
        (data / part).parent.mkdir(exist_ok=True)
        (data / part).symlink_to(world / part.replace("tallyqa", "genome"))
    images = [image for image in json.loads((world / "vgqa" / "image_data.json").read_text())]
    for split, chosen in (("train", images[:20]), ("test", images[20:30])):
        records = [
            {
                "image": f"VG_100K/{image['image_id']}.jpg",
                "question": "How many are there?",
                "answer": number % 3,
                "question_id": number,
                "issimple": number % 2 == 0,
            }
            for number, image in enumerate(chosen)
        ]
        (data / "tallyqa" / f"{split}.json").write_text(json.dumps(records))
    return data


@pytest.fixture
def installed(tmp_path):
    """The documented package of a task, built and installed by pip; returns the folder that contains it."""
    page = (ROOT / "docs" / "adding_a_task.md").read_text()
    source, folder = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, language in (("tallyqa.py", "python"), ("pyproject.toml", "toml")):
        [text] = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        (source / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", folder, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def command(*arguments, site: Path) -> subprocess.CompletedProcess:
    return python(*arguments, cwd=site.parent, libraries_only=True, PYTHONPATH=f"{site}{os.pathsep}{ROOT}")


def test_a_task_of_another_package_is_trained(world, pretrained, tmp_path, installed):
    data = make_data(world, tmp_path / "data")
    flags = ("--data", data, "--init", pretrained, "--workers", 0, "--epochs", 1)
    done = command("finetune.st", "--task", "tallyqa", *flags, site=installed)
    assert done.returncode == 0 and "TallyQA, ST: accuracy" in done.stdout, done.stderr
    done = command("finetune.evaluate", "--run", "runs/st-tallyqa", "--workers", 0, site=installed)
    assert done.returncode == 0 and "TallyQA, test: accuracy" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name="tallyqa"', 'name="nlvr2"', "package tallyqa-task: there is already a task nlvr2; rename it"),
        ("token=18", "token=12", "package tallyqa-task: token 12 of tallyqa is not free; use one of 3, 5, 6, 18"),
        (
            "import numpy as np",
            "import nimpy as np",
            "package tallyqa-task: its plug-in tallyqa (tallyqa:TASKS) cannot",
        ),
    ],
)
def test_a_package_that_cannot_be_used_is_named(installed, old, new, message):
    file = installed / "tallyqa.py"
    file.write_text(file.read_text().replace(old, new))
    shutil.rmtree(installed / "__pycache__", ignore_errors=True)
    done = command("finetune.st", "--task", "nlvr2", site=installed)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_the_documented_task_is_trained_alone_and_with_others(world, pretrained, tmp_path, page):
    for layer in ("ops", "shards", "pretrain", "finetune"):
        shutil.copytree(ROOT / layer, tmp_path / layer)
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    for file, code in zip(PAGES[page], shown, strict=True):
        assert not (tmp_path / file).exists()
        (tmp_path / file).write_text(code)
    data = make_data(world, tmp_path / "data")

    def run(name: str, *flags) -> str:
        done = python(name, "--data", data, *flags, cwd=tmp_path, libraries_only=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    flags = ("--init", pretrained, "--workers", 0)
    said = run("finetune.st", "--task", "tallyqa", *flags, "--epochs", 1)
    assert "TallyQA, ST: accuracy" in said and "simple" in said and "complex" in said
    run("finetune.evaluate", "--run", "runs/st-tallyqa", "--submission", "counts.json", "--workers", 0)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert len(counts) == 10 and set(counts.values()) <= {0, 1, 2}
    run("finetune.examples", "--run", "runs/st-tallyqa", "--task", "tallyqa", "--split", "test")
    said = run("finetune.mt", "--tasks", "g5,snli_ve", *flags, "--iterations", 2)
    assert "TallyQA" in said and "SNLI-VE" in said and "MT score" in said
