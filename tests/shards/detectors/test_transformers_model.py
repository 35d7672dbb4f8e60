"""Object-detection models of transformers, small and random, saved on disk: one with a softmax, one without."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    ResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from shards.config import ExtractConfig
from shards.detectors import make_detector
from shards.detectors.transformers_model import query_weights
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader

NAMES = {0: "cat", 1: "dog", 2: "tree"}
SIZES = {"shortest_edge": 64, "longest_edge": 96}


def detr(folder) -> None:
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=9,
        id2label=NAMES,
    )
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessor(size=SIZES).save_pretrained(folder)


def yolos(folder) -> None:
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        patch_size=16,
        num_detection_tokens=9,
        id2label=NAMES,
    )
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.fixture(params=[detr, yolos], ids=["detr", "yolos"])
def model(request, tmp_path):
    torch.manual_seed(0)
    request.param(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n, size in enumerate(((40, 60), (50, 30), (41, 61))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    return folder


def test_a_model_by_its_directory(model, images, tmp_path, run_command):
    flags = ("shards.extract", images, "--detector", model, "--device", "cpu", "--processes", 1, "--batch_size", 2)
    status, said, err = run_command(*flags, "--max_regions", 5, "--out", tmp_path / "out")
    assert status == 0 and "3 images, 0 with captions, in 1 shard" in said, err
    dataset = open_dataset(str(tmp_path / "out"))
    assert (dataset.num_classes, dataset.feature_size, dataset.detector) == (4, 16, str(model))
    assert dataset.extra["class_names"] == ["background", "cat", "dog", "tree"]
    reader = RegionReader(dataset)
    for n in range(3):
        sample = reader[n]
        assert len(sample.features) == 5 and (sample.boxes[:, :2] <= sample.boxes[:, 2:]).all()
        assert (sample.class_ids < 4).all() and (sample.class_probs.astype(float).sum(1) <= 1.01).all()
    status, said, _ = run_command("shards.inspect", tmp_path / "out", "--image", "1")
    assert status == 0 and "5 regions, 30 x 50" in said


def test_it_says_what_the_model_says(model, images, tmp_path, run_command):
    """The first region of an image that was alone in its batch, against the model called by hand."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    flags = ("shards.extract", images / "1.png", "--detector", model, "--device", "cpu", "--processes", 1)
    assert run_command(*flags, "--out", tmp_path / "out")[0] == 0
    sample = RegionReader(open_dataset(str(tmp_path / "out")))[0]
    assert len(sample.features) == 9
    network = AutoModelForObjectDetection.from_pretrained(model).eval()
    inputs = AutoImageProcessor.from_pretrained(model)(images=Image.open(images / "1.png"), return_tensors="pt")
    with torch.no_grad():
        out = network(**inputs)
    probs = out.logits[0].softmax(-1)
    best = probs[:, :-1].max(1).values.argmax()
    x, y, width, height = out.pred_boxes[0, best].tolist()
    np.testing.assert_allclose(
        sample.boxes[0],
        np.clip([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 0, 1),
        atol=1e-5,
    )
    features = out.last_hidden_state[0, -9:][best].numpy()
    np.testing.assert_allclose(sample.features[0], features, atol=2e-3, rtol=2e-3)
    shown = dict(zip(sample.class_ids[0].tolist(), sample.class_probs[0].tolist(), strict=True))
    expected = dict(enumerate(probs[best].roll(1).tolist()))
    assert shown == pytest.approx({number: expected[number] for number in shown}, abs=1e-3)


def test_a_given_box_that_is_a_querys_own_has_its_features(model, images, tmp_path, run_command):
    flags = ("shards.extract", images / "1.png", "--detector", model, "--device", "cpu", "--processes", 1)
    assert run_command(*flags, "--out", tmp_path / "own")[0] == 0
    own = RegionReader(open_dataset(str(tmp_path / "own")))[0]
    box = (own.boxes[4] * [30, 50, 30, 50]).tolist()
    (tmp_path / "boxes.jsonl").write_text(f'{{"image_id": "1", "boxes": [{box}], "box_ids": ["a"]}}\n')
    assert run_command(*flags, "--boxes", tmp_path / "boxes.jsonl", "--out", tmp_path / "given")[0] == 0
    given = RegionReader(open_dataset(str(tmp_path / "given")))[0]
    distance = np.abs(given.features[0].astype(float) - own.features.astype(float)).max(1)
    assert distance.min() < 1e-2


def test_two_given_boxes_near_one_query_differ(model):
    """Queries far apart from each other, as those of a trained model are."""
    detector = make_detector(ExtractConfig(images="", out="", detector=str(model), device="cpu"))
    own = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10]])
    features, distribution = torch.eye(2, 16), torch.tensor([[0.1, 0.9, 0, 0], [0.2, 0, 0.8, 0]])
    detector._queries = lambda images: [(own, features, distribution)]
    given = np.float32([[1, 0, 11, 10], [2, 0, 12, 10]])
    (found,) = detector.describe_batch([np.zeros((20, 20, 3), np.uint8)], [given])
    weights = [slow_weights(box, own.numpy(), [0.9, 0.8]) for box in given]
    assert 0.5 < weights[1][0] < weights[0][0] < 1
    np.testing.assert_allclose(found.features[:, :2], weights, atol=1e-5)
    np.testing.assert_allclose(found.distribution, weights @ distribution.numpy(), atol=1e-5)


def slow_weights(box, own, objectness):
    """The shares of queries in one given box, one query after another."""

    def overlap(a, b):
        width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        area = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return width * height / (sum(area) - width * height)

    shares = [
        (overlap(box, other) / (1 - overlap(box, other))) ** 2 * p for other, p in zip(own, objectness, strict=True)
    ]
    return np.array(shares) / sum(shares)


def test_query_weights():
    own = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [0, 4, 12, 12], [50, 50, 60, 60]], float)
    objectness = np.array([0.9, 0.2, 0.5, 1.0])
    given = np.array([[1, 0, 11, 10], [4, 4, 12, 12], [0, 0, 10, 10], [90, 90, 95, 99], [30, 20, 33, 24]], float)
    found = query_weights(given, own, objectness)
    for n in (0, 1):
        np.testing.assert_allclose(found[n], slow_weights(given[n], own, objectness), atol=1e-9)
    np.testing.assert_allclose(found[2], [1, 0, 0, 0], atol=1e-6)
    assert found[3].tolist() == [0, 0, 0, 1] and found[4].tolist() == [0, 1, 0, 0]
