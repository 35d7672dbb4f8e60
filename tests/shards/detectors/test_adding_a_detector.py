"""The worked example of docs/adding_a_detector.md: a detector is one new file."""

import re
import shutil
from pathlib import Path

import numpy as np
from launching import python
from PIL import Image

from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader

ROOT = Path(__file__).parents[3]


def test_the_documented_detector_extracts_and_is_trained_on(tmp_path):
    for layer in ("ops", "shards", "pretrain", "finetune"):
        shutil.copytree(ROOT / layer, tmp_path / layer)
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding_a_detector.md").read_text(), re.DOTALL)
    (tmp_path / "shards" / "detectors" / "grid.py").write_text(code)
    (tmp_path / "images").mkdir()
    colours = {
        "red": "a red picture",
        "blue": "a blue picture",
        "white": "a white picture",
        "yellow": "a yellow picture",
    }
    for number in range(20):
        colour, caption = list(colours.items())[number % 4]
        image = Image.new("RGB", (50, 40), colour)
        image.paste("black", (0, 0, 5, 5))
        image.save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text(caption)

    def run(name: str, *flags) -> str:
        done = python(name, *flags, cwd=tmp_path, libraries_only=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("shards.extract", "images", "--detector", "grid", "--out", "data", "--per_shard", 10)
    said = run("shards.inspect", "data")
    assert "detector    grid" in said and "features    6 numbers per region" in said and "36 to 36 per image" in said
    sample = RegionReader(open_dataset(str(tmp_path / "data")))[0]
    assert sample.class_ids[[0, -1], 0].tolist() == [1, 5]  # black, red
    np.testing.assert_allclose(sample.boxes[-1], [5 / 6, 5 / 6, 1, 1], atol=1e-6)
    assert "done in" in run("pretrain.run", "--data", "data", "--epochs", 1, "--batch_size", 8, "--workers", 0)
