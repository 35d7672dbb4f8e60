"""The worked examples of docs/adding_a_task.md and docs/adding_a_head.md: a thirteenth task, a new kind of head."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


# page -> the files that it shows, in order
PAGES = {
    "adding_a_task.md": ["finetune/tasks/tallyqa.py"],
    "adding_a_head.md": ["finetune/heads/counting_head.py", "finetune/tasks/tallyqa.py"],
}


@pytest.mark.parametrize("page", PAGES)
def test_the_documented_task_is_trained_alone_and_with_others(world, pretrained, tmp_path, page):
    for floor in ("ops", "shards", "pretrain", "finetune"):
        shutil.copytree(ROOT / floor, tmp_path / floor)
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    for file, code in zip(PAGES[page], shown, strict=True):
        assert not (tmp_path / file).exists()
        (tmp_path / file).write_text(code)
    data = tmp_path / "data"
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

    def run(name: str, *flags) -> str:
        command = [sys.executable, "-m", name, "--data", data, *flags]
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
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
