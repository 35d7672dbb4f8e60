"""Detectors, formats of features, regimes and balancing methods of another package (tasks: test_adding_a_task.py)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from image_tars import picture
from launching import python

from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader

ROOT = Path(__file__).parents[2]
CODE = '''
import json

import numpy as np

from finetune.balancing.base import LossWeighting
from finetune.training.task_schedulers import Regime
from shards import DetectedRegions, Detector
from shards.importing.base import ListedSource, Record
from shards.importing.image_features import Features


class Halves(Detector):
    """The left and the right half of an image, described by their mean colours."""

    name, num_classes, per_image, sample = "halves", 0, True, 0

    def __init__(self, config):
        pass

    def fit(self, images, folder):
        pass

    def load(self, folder):
        return True

    def detect(self, images):
        shapes = [image.shape for image in images]
        return self.describe(images, [np.float32([[0, 0, w / 2, h], [w / 2, 0, w, h]]) for h, w, _ in shapes])

    def describe(self, images, boxes):
        crops = [[image[int(b):int(d), int(a):int(c)] for a, b, c, d in of] for image, of in zip(images, boxes)]
        means = [np.float32([crop.reshape(-1, 3).mean(0) / 255 for crop in of]) for of in crops]
        return [DetectedRegions(of, mean, None, None) for of, mean in zip(boxes, means)]


class Lines(ListedSource):
    """A JSON object per line."""

    holds, detector = "a .lines file", "lines"

    def __init__(self, path):
        super().__init__(path)
        self.items = path.read_text().splitlines()
        self.total = len(self.items)

    @staticmethod
    def recognises(path):
        return path.suffix == ".lines"

    def records(self, part):
        for line in part:
            yield Record("a line", 1, line)

    def parse(self, raw):
        value = json.loads(raw)
        return Features(value["id"], 100, 80, np.float32(value["features"]), np.float32(value["boxes"]))


class OneByOne(Regime):
    """A task per iteration, in turn."""

    def training_tasks(self, iteration):
        return [self.names[iteration % len(self.names)]]


class Half(LossWeighting):
    def weights(self, steps):
        return [0.5] * len(steps.names)
'''
POINTS = {"detectors": "Halves", "importers": "Lines", "regimes": "OneByOne", "balances": "Half"}


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder with the module and the entry points of an installed package."""
    folder = tmp_path / "site"
    described = folder / "own_plugins-1.0.dist-info"
    described.mkdir(parents=True)
    (folder / "own_plugins.py").write_text(CODE)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: own-plugins\nVersion: 1.0\n")
    groups = (f"[twelve_in_one.{group}]\n{name.lower()} = own_plugins:{name}\n" for group, name in POINTS.items())
    (described / "entry_points.txt").write_text("\n".join(groups))
    return folder


def run(site: Path, *arguments) -> str:
    done = python(*arguments, cwd=site.parent, libraries_only=True, PYTHONPATH=f"{site}{os.pathsep}{ROOT}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_detector(site, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        picture(number).save(tmp_path / "images" / f"{number}.png")
    run(site, "shards.extract", "images", "--detector", "halves", "--out", "regions", "--processes", 1)
    dataset = open_dataset(tmp_path / "regions")
    assert (dataset.detector, dataset.feature_size, dataset.num_classes) == ("halves", 3, 0)
    found = RegionReader(dataset)[1]
    assert found.boxes.tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    pixels = np.asarray(picture(1), np.float32) / 255
    means = [half.mean((0, 1)) for half in (pixels[:, :90], pixels[:, 90:])]
    np.testing.assert_allclose(found.features, means, atol=2e-3)


def test_a_format_of_features(site, tmp_path):
    lines = [{"id": f"i{n}", "features": [[n, 1, 2]], "boxes": [[10, 8, 50, 40]]} for n in range(4)]
    (tmp_path / "own.lines").write_text("\n".join(map(json.dumps, lines)))
    run(site, "shards.convert", "own.lines", "--out", "regions", "--processes", 1)
    dataset = open_dataset(tmp_path / "regions")
    assert dataset.detector == "lines"
    assert [sample.features[0, 0] for sample in map(RegionReader(dataset).__getitem__, range(4))] == [0, 1, 2, 3]


def test_a_regime_and_a_balancing_method(site, world, narrow):
    flags = ("--data", world, "--init", narrow, "--tasks", "nlvr2,refcoco", "--iterations", 4, "--validate_on", 8)
    run(site, "finetune.mt", *flags, "--regime", "onebyone", "--balance", "half", "--workers", 0, "--log_every", 1)
    lines = [json.loads(line) for line in (site.parent / "runs/mt/metrics.jsonl").read_text().splitlines()]
    weights = [{key: line[key] for key in line if key.endswith("/weight")} for line in lines if line["kind"] == "train"]
    assert weights == [{"refcoco/weight": 0.5}, {"nlvr2/weight": 0.5}] * 2
