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

from shards.dataset import open_dataset
from shards.reader import RegionReader

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
    status, said, err = run_command(*flags, "--regions", 5, "--out", tmp_path / "out")
    assert status == 0 and "3 images, 0 with captions, in 1 shards" in said, err
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


def test_given_boxes_have_the_nearest_query(model, images, tmp_path, run_command):
    flags = ("shards.extract", images / "1.png", "--detector", model, "--device", "cpu", "--processes", 1)
    assert run_command(*flags, "--out", tmp_path / "own")[0] == 0
    own = RegionReader(open_dataset(str(tmp_path / "own")))[0]
    box = (own.boxes[4] * [30, 50, 30, 50]).tolist()
    (tmp_path / "boxes.jsonl").write_text(f'{{"image_id": "1", "boxes": [{box}], "box_ids": ["a"]}}\n')
    assert run_command(*flags, "--boxes", tmp_path / "boxes.jsonl", "--out", tmp_path / "given")[0] == 0
    given = RegionReader(open_dataset(str(tmp_path / "given")))[0]
    distance = np.abs(given.features[0].astype(float) - own.features.astype(float)).max(1)
    assert distance.min() < 1e-2
