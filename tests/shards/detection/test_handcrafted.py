"""The built-in detector: it finds what is drawn, and describes a crop the same wherever it lies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards.common.errors import UserError
from shards.detection import handcrafted
from shards.detection.visual_words import fit_words, load_words
from shards.world.scenes import draw_scene, make_scene


def iou(a, b) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod((high - low).clip(0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def test_drawn_objects_are_among_the_best_regions():
    found = wanted = 0
    for number in range(40):
        rng = np.random.default_rng(number)
        things = make_scene(rng)
        boxes, _ = handcrafted.detect(np.asarray(draw_scene(things, rng)))
        for thing in things:
            if thing.kind in ("circle", "ring", "square", "cross"):
                around = np.array([thing.x, thing.y, thing.x, thing.y]) + thing.radius * np.array([-1, -1, 1, 1])
                found += max(iou(around, box) for box in boxes[:18]) > 0.6
                wanted += 1
    assert wanted > 30 and found / wanted > 0.9


def test_proposals_overlap_as_a_detectors_do():
    """As in photographs, one or two others have an IoU of 0.4 or more with a region, and none repeats it."""
    overlapping = []
    for number in range(20):
        rng = np.random.default_rng(number)
        boxes, scores = handcrafted.detect(np.asarray(draw_scene(make_scene(rng), rng)))
        overlaps = np.array([[iou(a, b) for b in boxes] for a in boxes]) - np.eye(len(boxes))
        overlapping.append((overlaps >= 0.4).sum(1).mean())
        assert overlaps.max() < 0.71  # suppressed in float64, given in float32
        assert (np.diff(scores) <= 0).all()
    assert 0.8 < np.mean(overlapping) < 1.8


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3))),
    st.integers(1, 40),
)
def test_any_image_has_regions_inside_it(image, limit):
    boxes, scores = handcrafted.detect(image, limit)
    height, width = image.shape[:2]
    assert 1 <= len(boxes) <= limit and len(scores) == len(boxes)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width, height]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    features = handcrafted.crop_features(image, boxes)
    assert features.shape == (len(boxes), handcrafted.FEATURES) and np.isfinite(features).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (50, 70)])
def test_a_uniform_image_has_regions(shape):
    boxes, _ = handcrafted.detect(np.full((*shape, 3), 90, np.uint8))
    assert len(boxes) == 36 or min(shape) == 1
    assert len(boxes) > 0 and (boxes >= 0).all() and (boxes[:, 2:] <= shape[::-1]).all()
    assert np.isfinite(handcrafted.crop_features(np.full((*shape, 3), 90, np.uint8), boxes)).all()


def test_the_same_image_gives_the_same_regions():
    rng = np.random.default_rng(1)
    image = np.asarray(draw_scene(make_scene(rng), rng))
    one, two = (handcrafted.detect(image) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])


def test_a_descriptor_does_not_know_where_the_crop_lies():
    image = np.full((60, 80, 3), 128, np.uint8)
    image[10:20, 10:22] = image[35:45, 50:62] = (200, 30, 30)
    features = handcrafted.crop_features(image, np.array([[8, 8, 24, 22], [48, 33, 64, 47]]))
    np.testing.assert_allclose(features[0], features[1], atol=1e-5)


def test_colour_shape_and_size_tell_crops_apart():
    image = np.full((60, 200, 3), 128, np.uint8)
    image[20:40, 20:40] = (200, 30, 30)
    image[20:40, 80:100] = (30, 30, 200)
    image[20:40, 140:160] = (200, 30, 30)
    image[20:30, 140:150] = 128
    boxes = np.array([[15, 15, 45, 45], [75, 15, 105, 45], [135, 15, 165, 45]])
    red, blue, bitten = handcrafted.crop_features(image, boxes)
    assert np.linalg.norm(red - blue) > 1 and np.linalg.norm(red - bitten) > 1


def test_crops_average_areas_exactly():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 96, 3)).astype(np.uint8)
    whole = handcrafted._crop(image, np.array([[0.0, 0, 96, 64]]))[0]
    expected = image.reshape(32, 2, 32, 3, 3).astype(float).mean((1, 3))
    np.testing.assert_allclose(whole, expected, atol=1e-9)
    enlarged = handcrafted._crop(image, np.array([[3.0, 5, 5, 7]]))[0]
    np.testing.assert_allclose(enlarged[:16, :16], np.broadcast_to(image[5, 3], (16, 16, 3)), atol=1e-9)


@pytest.fixture(scope="module")
def words_and_features():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 40)) * 3
    features = (centres[rng.integers(0, 20, 3000)] + rng.normal(size=(3000, 40))).astype(np.float32)
    return fit_words(features, 20, seed=0), features


def test_the_listed_words_hold_99_percent_of_the_mass(words_and_features):
    words, features = words_and_features
    ids, probs = words.classify(features)
    assert ids.shape == probs.shape == (3000, 8) and ids.max() < len(words)
    assert 0.985 <= probs.astype(float).sum(1).mean() <= 0.9999
    assert (np.diff(probs.astype(float), axis=1) <= 0).all()
    assert len(np.unique(ids[:, 0])) > 15


def test_words_survive_saving_and_are_the_same_every_time(words_and_features, tmp_path):
    words, features = words_and_features
    words.save(tmp_path / "w.npz")
    again = fit_words(features, 20, seed=0)
    for other in (load_words(tmp_path / "w.npz"), again):
        assert all(
            np.array_equal(a, b) for a, b in zip(words.classify(features), other.classify(features), strict=True)
        )


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:200], lambda data: b"no words"])
def test_what_is_no_file_of_words_is_said_in_a_sentence(words_and_features, tmp_path, damage):
    path = tmp_path / "w.npz"
    words_and_features[0].save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"w\.npz: cannot be read"):
        load_words(path)
    np.save(tmp_path / "w.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"w\.npy: cannot be read"):
        load_words(tmp_path / "w.npy")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_words_from_very_few_regions(count):
    words = fit_words(np.random.default_rng(0).normal(size=(count, 12)), 256, seed=0)
    ids, probs = words.classify(np.zeros((3, 12)))
    assert len(words) == max(1, count // 4) and ids.shape == (3, words.per_region)
    assert np.isfinite(probs.astype(float)).all()
