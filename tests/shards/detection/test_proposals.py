"""The built-in detector's proposals: recall of annotated boxes, and their parts against slow obvious ones."""

import importlib
import io
import math
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.common.box_iou import iou
from shards.common.errors import UserError
from shards.detection import handcrafted
from shards.world.creation import REGIONS
from shards.world.scenes import KINDS


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/proposals.py, which writes sys.path[0]."""
    before = list(sys.path)
    sys.path[:0] = ["", str(Path(__file__).parents[3])]
    yield importlib.import_module("benchmarks.proposals")
    sys.path[:] = before


@pytest.fixture(scope="module")
def world(benchmark):
    return benchmark.world_images(120)


def slow_iou(a, b) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def in_pixels(one):
    height, width = one.image.shape[:2]
    return one.boxes * [width, height, width, height]


def test_the_benchmark_finds_each_boxs_best_region(benchmark, world):
    fast = benchmark.best_overlaps(world[:8], benchmark.detected, 20)
    slow = [
        max(slow_iou(box, region) for region in handcrafted.detect(one.image, 20)[0])
        for one in world[:8]
        for box in in_pixels(one)
    ]
    np.testing.assert_allclose(fast, slow, atol=1e-6)
    assert (benchmark.best_overlaps(world[:8], benchmark.grid_boxes, 20) < fast).mean() > 0.9


@pytest.mark.parametrize("limit", [REGIONS, 36])
def test_objects_of_every_kind_have_a_region(benchmark, world, limit):
    overlaps = benchmark.best_overlaps(world, benchmark.detected, limit)
    kinds = np.array([kind for one in world for kind in one.kinds])
    for kind in KINDS:
        assert (overlaps[kinds == kind] >= 0.5).mean() >= 0.98, kind
    assert overlaps.mean() > 0.9


@pytest.mark.parametrize("limit", [REGIONS, 36, 100])
def test_an_object_has_few_regions_that_repeat_each_other(world, limit):
    near, most = [], 0
    for one in world[:60]:
        regions = handcrafted.detect(one.image, limit)[0]
        near += [sum(slow_iou(box, region) >= 0.7 for region in regions) for box in in_pixels(one)]
        most = max(most, *(slow_iou(a, b) for n, a in enumerate(regions) for b in regions[:n]))
    assert most < handcrafted.OVERLAP + 1e-3 and max(near) <= 2 and np.mean(near) < 1.1


def test_photographs(benchmark, real_data):
    """The detector that placed boxes around connected areas recalled 0.31 of these boxes."""
    images = benchmark.read_photographs(real_data / "photos", "dev", 100)
    assert (benchmark.best_overlaps(images, benchmark.detected, 36) >= 0.5).mean() > 0.5
    overlapping = []
    for one in images[:50]:
        regions = handcrafted.detect(one.image)[0]
        overlapping.append((iou(regions, regions) >= 0.4).sum(1).mean() - 1)
    assert 1 < np.mean(overlapping) < 1.5


def test_boxes_are_chosen_that_cover_most_of_what_is_left():
    rng = np.random.default_rng(0)
    candidates = handcrafted._candidates()
    rates = rng.gamma(0.05, size=len(candidates.boxes))
    chosen, gains = handcrafted._choose(candidates, rates, 12)
    low, high = handcrafted.COVERED
    covers = ((iou(candidates.boxes, candidates.boxes) - low) / (high - low)).clip(0, 1)
    left, possible = rates.copy(), np.ones(len(rates), bool)
    for number, gain in zip(chosen, gains, strict=True):
        values = np.where(possible, covers @ left, -1)
        assert number == values.argmax() and math.isclose(gain, values.max(), rel_tol=1e-9)
        left *= 1 - covers[number]
        possible &= covers[number] < 1


def test_measurements_of_candidates():
    """On an image of one pixel a cell for colours; edges are measured at twice as many."""
    rng = np.random.default_rng(0)
    side = 2 * handcrafted.CELLS
    image = np.kron(rng.integers(0, 256, (16, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    values = image.astype(float)
    right, down = np.zeros((2, side, side))
    right[:, :-1] = abs(values[:, 1:] - values[:, :-1]).max(2)
    down[:-1] = abs(values[1:] - values[:-1]).max(2)
    right, down = (np.minimum(x, handcrafted.STRONG_EDGE) / handcrafted.STRONG_EDGE for x in (right, down))
    measured = handcrafted.candidate_features(image)
    assert measured.shape == (len(handcrafted.candidate_boxes()), len(handcrafted.WEIGHTS))
    for number in rng.choice(len(measured), 40, replace=False):
        x1, y1, x2, y2 = cells = np.rint(handcrafted.candidate_boxes()[number] * handcrafted.CELLS).astype(int)
        margin = np.maximum(1, np.rint([(x2 - x1) * handcrafted.FRAME, (y2 - y1) * handcrafted.FRAME])).astype(int)
        frame = np.concatenate([cells[:2] - margin, cells[2:] + margin]).clip(0, handcrafted.CELLS)

        def mask(box):
            grid = np.zeros((side, side), bool)
            left, top, far, bottom = (2 * np.clip(v, 0, handcrafted.CELLS) for v in box)
            grid[top:bottom, left:far] = True
            return grid

        box, around = mask(cells), mask(frame) & ~mask(cells)
        expected = [0.0] * 5
        expected[1] = (right + down)[box].mean() ** 0.5
        if around.any():
            expected[0] = abs(values[box].mean(0) - values[around].mean(0)).max() / 255
            expected[2] = (right + down)[around].mean() ** 0.5
        sides = (
            (x1, (x1 - 1, y1, x1 + 1, y2), right, down),
            (x2, (x2 - 1, y1, x2 + 1, y2), right, down),
            (y1, (x1, y1 - 1, x2, y1 + 1), down, right),
            (y2, (x1, y2 - 1, x2, y2 + 1), down, right),
        )
        for place, band, along, across in sides:
            if 0 < place < handcrafted.CELLS:
                expected[3] += along[mask(band)].mean() ** 0.5
                expected[4] += across[mask(band)].mean() ** 0.5
        x, y = (x1 + x2) / 2 / handcrafted.CELLS - 0.5, (y1 + y2) / 2 / handcrafted.CELLS - 0.5
        w, h = math.log((x2 - x1) / handcrafted.CELLS), math.log((y2 - y1) / handcrafted.CELLS)
        np.testing.assert_allclose(measured[number], [*expected, x * x, y, w, h, w * w, h * h, w * h], atol=1e-6)


def test_specks_are_dropped_without_changing_the_outlines(world, monkeypatch):
    rng = np.random.default_rng(0)
    images = [(one.image // 2 + rng.integers(0, 40, one.image.shape)).astype(np.uint8) for one in world[:10]]
    images += [one.image for one in world[:10]]
    quick = [handcrafted._outlines(image, 12) for image in images]
    monkeypatch.setattr(handcrafted, "_without_specks", lambda labels, least: labels)
    assert sum(map(len, quick)) > 20
    for image, outlines in zip(images, quick, strict=True):
        assert np.array_equal(outlines, handcrafted._outlines(image, 12))


BOX = "<object><name>{}</name><bndbox><xmin>10</xmin><ymin>0</ymin><xmax>{}</xmax><ymax>20</ymax></bndbox></object>"
ENTITIES = (
    "<annotation><size><width>200</width><height>40</height></size>"
    + BOX.format(1, 100)
    + BOX.format(2, 100)
    + BOX.format(2, 50)
    + "<object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>"
)


def test_entities_are_distinct_boxes_as_shares_of_the_image(benchmark, tmp_path):
    path = tmp_path / "entities.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("Annotations/17.xml")
        entry.size = len(ENTITIES)
        tar.addfile(entry, io.BytesIO(ENTITIES.encode()))
    boxes = benchmark.read_entities(path)
    assert list(boxes) == ["17"]
    np.testing.assert_allclose(boxes["17"], [[0.05, 0, 0.25, 0.5], [0.05, 0, 0.5, 0.5]])
    path.write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"entities\.tar\.gz: should be a \.tar\.gz of Flickr30k Entities"):
        benchmark.read_entities(path)
