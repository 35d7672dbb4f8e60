"""The detector of the paper against the published implementation's outputs, and its parts against slow obvious ones."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PARITY
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import run_ranks
from PIL import Image
from safetensors.torch import load_file, save_file

from shards.common.errors import UserError
from shards.detection.x152 import DetectorConfig, RegionDetector
from shards.detection.x152.box_operations import (
    RATIOS,
    SIZES,
    STRIDES,
    cell_anchor,
    levels_of,
    moved,
    roi_align_fpn,
    suppress,
)
from shards.detection.x152.detector import resized
from shards.detection.x152.network import Network, build
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader

FILES = PARITY / "detector"


@pytest.fixture(scope="module")
def theirs():
    return load_file(FILES / "outputs.safetensors")


@pytest.fixture(scope="module")
def weights():
    return load_file(FILES / "weights.safetensors")


@pytest.fixture(scope="module")
def detector(weights):
    config = DetectorConfig.of(json.loads((FILES / "config.json").read_text()), "config.json")
    return RegionDetector(build(weights, config, "weights"), config)


@pytest.fixture(scope="module")
def images():
    return [np.array(Image.open(FILES / f"image{n}.png").convert("RGB")) for n in (0, 1)]


@pytest.fixture(scope="module")
def prepared(detector, images):
    return [detector.prepared(image) for image in images]


@pytest.fixture(scope="module")
def maps(detector, prepared):
    return detector.network.backbone(detector.batch([x for x, _ in prepared]))


def relative(ours, published) -> float:
    assert ours.shape == published.shape
    return ((ours - published).abs().max() / published.abs().max()).item()


def test_the_image_transform(detector, prepared, theirs):
    batch = detector.batch([x for x, _ in prepared])
    assert relative(batch, theirs["input"]) < 1e-6


def test_the_feature_maps(maps, theirs):
    for level, x in enumerate(maps):
        assert relative(x, theirs[f"fpn{level}"]) < 1e-5


def test_the_anchors(weights):
    for level, (size, stride) in enumerate(zip(SIZES, STRIDES, strict=True)):
        ours = torch.tensor([cell_anchor(stride, size, ratio) for ratio in RATIOS])
        assert torch.equal(ours, weights[f"rpn.anchor_generator.cell_anchors.{level}"])


def test_proposals(detector, prepared, maps, theirs):
    """The published outputs were cut to the padded batch.

    Neighbours in the order of objectness differ by 1e-8 here and there, less than float32 resolves: which of two
    overlapping boxes then suppresses the other is nobody's, and one in twenty may be the other.
    """
    padded = (maps[0].shape[2] * STRIDES[0], maps[0].shape[3] * STRIDES[0])
    for n, ours in enumerate(detector.proposals(maps, [padded] * 2)):
        distance = (ours[:, None] / prepared[n][1] - theirs[f"{n}.proposals"]).abs().max(-1).values
        assert len(ours) == len(theirs[f"{n}.proposals"]) == 120
        for side in (0, 1):
            assert (distance.min(side).values < 1e-3).float().mean() >= 0.95


def test_what_is_kept(detector, prepared, maps, theirs):
    """From the published proposals on, whose order decides between equal ones."""
    proposals = [theirs[f"{n}.proposals"] for n in (0, 1)]
    scaled = [boxes * scale for boxes, (_, scale) in zip(proposals, prepared, strict=True)]
    features, probabilities = detector.run_box_head(maps, scaled)
    for n, boxes in enumerate(proposals):
        kept, scores = detector.selected(boxes, probabilities[n])
        assert relative(boxes[kept], theirs[f"{n}.boxes"]) < 1e-4
        assert relative(features[n][kept], theirs[f"{n}.features"]) < 1e-4
        assert relative(probabilities[n][kept], theirs[f"{n}.class_probabilities"]) < 1e-4
        assert len(kept) == 20 and (scores > 0).sum() == theirs[f"{n}.num_boxes"]
        best = theirs[f"{n}.best"].sort(descending=True).values[: len(scores)]
        assert relative(scores, best) < 1e-4


def test_regions_lie_inside_their_image(detector, images):
    for image, found in zip(images, detector.detect_batch(images), strict=True):
        height, width = image.shape[:2]
        assert (found.boxes >= 0).all() and (found.boxes[:, 2] <= width).all() and (found.boxes[:, 3] <= height).all()
        assert len(found.boxes) == 20


def test_given_boxes_have_the_features_of_the_same_proposals(detector, images, theirs):
    """The detector's own boxes, given back to it."""
    found = detector.describe_batch(images, [theirs[f"{n}.boxes"].numpy() for n in (0, 1)])
    for n, one in enumerate(found):
        assert relative(one.features, theirs[f"{n}.features"]) < 1e-4
        assert relative(one.distribution, theirs[f"{n}.class_probabilities"]) < 1e-4


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)], ids=["bf16", "fp16"])
def test_half_precision_stays_near(detector, images, dtype, bound):
    """fp16 is left to GPUs for its speed; what it rounds can be seen on a CPU."""
    boxes = [np.array([[10, 20, 90, 100], [0, 0, 140, 150], [50, 3, 60, 140]], np.float32)] * 2
    exact = detector.describe_batch(images, boxes)
    with torch.autocast("cpu", dtype):
        rough = detector.describe_batch(images, boxes)
    for one, other in zip(exact, rough, strict=True):
        assert 0 < relative(other.features.float(), one.features) < bound
        assert 0 < (other.distribution.float() - one.distribution).abs().max() < bound


def slowly(boxes, scores, threshold):
    """Suppression as it is defined, class by class and box by box."""
    stays = torch.zeros_like(scores, dtype=torch.bool)
    for c in range(len(scores)):
        kept = []
        for n in sorted(range(len(boxes)), key=lambda n: (-scores[c, n].item(), n)):
            if all(overlap(boxes[n].tolist(), boxes[m].tolist()) <= threshold for m in kept):
                kept.append(n)
        stays[c, kept] = True
    return stays


def overlap(a, b) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return width * height / (sum(area) - width * height)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 25), st.integers(1, 4), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_equals_the_obvious_one(seed, count, classes, threshold):
    """Whole numbers make equal boxes, equal scores and long chains frequent."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 8, (count, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(2, 8, (count, 2), generator=generator)], 1)
    scores = torch.randint(0, 6, (classes, count), generator=generator).float()
    assert torch.equal(suppress(boxes, scores, threshold), slowly(boxes, scores, threshold))


def slow_pool(level, box, stride, cells) -> torch.Tensor:
    """RoIAlign, one sample after another."""
    x1, y1, x2, y2 = (box / stride).tolist()
    height, width = level.shape[1:]
    out = torch.zeros(len(level), cells, cells)
    steps = [max(high - low, 1) / cells for low, high in ((y1, y2), (x1, x2))]
    for row in range(cells):
        for column in range(cells):
            for a in (0.25, 0.75):
                for b in (0.25, 0.75):
                    y, x = y1 + (row + a) * steps[0], x1 + (column + b) * steps[1]
                    if not (-1 <= y <= height and -1 <= x <= width):
                        continue
                    y, x = (min(max(v, 0), size - 1) for v, size in ((y, height), (x, width)))
                    top, left = int(y), int(x)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    v, u = y - top, x - left
                    upper = level[:, top, left] * (1 - u) + level[:, top, right] * u
                    lower = level[:, bottom, left] * (1 - u) + level[:, bottom, right] * u
                    out[:, row, column] += (upper * (1 - v) + lower * v) / 4
    return out


def test_pooling_equals_the_obvious_one():
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 128 // s, 160 // s) for s in STRIDES[:4]]
    corner = torch.rand(40, 2) * 100
    boxes = torch.cat([corner, corner + torch.rand(40, 2) * 200], 1)
    boxes[:3] = torch.tensor([[0, 0, 640, 512], [600, 500, 602, 501], [-20, -30, 40, 900]])
    images = torch.arange(40) % 2
    found = roi_align_fpn(maps, boxes, images, 7).view(40, 3, 7, 7)
    assert len(set(levels_of(boxes).tolist())) > 1
    for n, level in enumerate(levels_of(boxes).tolist()):
        slow = slow_pool(maps[level][images[n]], boxes[n], STRIDES[level], 7)
        torch.testing.assert_close(found[n], slow, atol=1e-4, rtol=1e-4)


def test_boxes_move_as_they_did_of_old():
    box = torch.tensor([[10.0, 20, 29, 59]])  # 20 x 40 pixels
    assert moved(box, torch.zeros(1, 4)).tolist() == [[10, 20, 29, 59]]
    assert moved(box, torch.tensor([[0.5, 0, 0, 0.0]])).tolist() == [[20, 20, 39, 59]]
    assert moved(box, torch.tensor([[0, 0, 99.0, 0.0]]))[0, 2] == pytest.approx(20 + 10 * 1000 / 16 - 1)


@pytest.mark.parametrize("scale", [0.5, 2.0, 1.7])
def test_a_flat_image_stays_flat_when_resized(scale):
    x = resized(torch.full((3, 7, 5), 4.0), scale)
    assert x.shape == (3, round(7 * scale), round(5 * scale)) and torch.allclose(x, torch.tensor(4.0))


def test_a_one_pixel_image_has_regions(detector):
    (found,) = detector.detect_batch([np.full((1, 1, 3), 200, np.uint8)])
    assert len(found.boxes) and torch.isfinite(found.features).all() and torch.isfinite(found.boxes).all()


def test_weights_and_sizes_that_do_not_fit(weights, detector, tmp_path):
    with pytest.raises(UserError, match=r"w: missing key rpn\.head\.conv\.weight"):
        build({name: v for name, v in weights.items() if name != "rpn.head.conv.weight"}, detector.config, "w")
    with pytest.raises(UserError, match=r"w: backbone\.stem\.weight has the shape \(8, 3, 7, 7\), but \(64, 3, 7, 7\)"):
        build(weights, DetectorConfig(), "w")
    for values, complaint in (
        ({"groups": "many"}, "groups 'many'"),
        ({"conv_body": "R-50"}, "conv_body R-50 should be one of R-50-FPN, R-101-FPN, R-152-FPN"),
        ({"blocks": [3, 4, 6]}, r"blocks \[3, 4, 6\] should be four integers"),
        ({"stride_in_1x1": 1}, "stride_in_1x1 1 should be true or false"),
        ([1], "should be a JSON object"),
        ({"regions": 5, "max_regions": 5}, "x.json: has max_regions and its former name, regions"),
    ):
        with pytest.raises(UserError, match=complaint):
            DetectorConfig.of(values, "x.json")
    with pytest.raises(UserError, match="w: layer2 has more than the 4 blocks of the configuration"):
        build(weights, DetectorConfig.of(small_sizes() | {"conv_body": "R-50-FPN"}, "x.json"), "w")


@pytest.mark.parametrize("key", ["max_regions", "regions"])
def test_the_number_of_regions_and_its_former_name(key):
    assert DetectorConfig.of({key: 7}, "x.json").max_regions == 7


def small_sizes() -> dict:
    return json.loads((FILES / "config.json").read_text())


def published_weights(network: Network) -> dict[str, torch.Tensor]:
    """Random weights of a network under the published names, its batch norms apart from its convolutions."""
    names = {"proposals.conv": "rpn.head.conv", "proposals.objectness": "rpn.head.cls_logits"}
    names |= {"proposals.deltas": "rpn.head.bbox_pred", "box.scores": "roi_heads.box.predictor.cls_score"}
    names |= {f"box.{name}": f"roi_heads.box.feature_extractor.{name}" for name in ("fc6", "fc7")}
    for n in range(4):
        names |= {f"backbone.inner.{n}": f"backbone.fpn.fpn_inner{n + 1}"}
        names |= {f"backbone.outer.{n}": f"backbone.fpn.fpn_layer{n + 1}"}
    weights = {}
    for name, part in network.named_modules():
        if not isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)):
            continue
        weight = torch.randn(part.weight.shape) * part.weight[0].numel() ** -0.5
        if name in names:
            weights |= {f"{names[name]}.weight": weight, f"{names[name]}.bias": 0.1 * torch.randn(len(weight))}
            continue
        convolution, norm = "backbone.body.stem.conv1", "backbone.body.stem.bn1"
        if name != "backbone.stem":
            _, _, stage, block, kind = name.split(".")
            at = f"backbone.body.layer{int(stage) + 1}.{block}"
            parts = ("downsample.0", "downsample.1") if kind == "downsample" else (kind, f"bn{kind[-1]}")
            convolution, norm = (f"{at}.{part}" for part in parts)
        weights[f"{convolution}.weight"] = weight
        for label, value in (("weight", torch.rand), ("bias", torch.randn), ("running_mean", torch.randn)):
            weights[f"{norm}.{label}"] = 0.5 * value(len(weight))
        weights[f"{norm}.running_var"] = 0.5 + torch.rand(len(weight))
    return weights


def body_by_definition(weights, x, blocks, groups, stride_in_1x1):
    """The four stages' outputs, with frozen batch norm as it is defined, without epsilon."""

    def layer(x, convolution, norm, **how):
        x = F.conv2d(x, weights[f"{convolution}.weight"], **how)
        mean, variance, weight, bias = (
            weights[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / variance.sqrt() * weight + bias

    body, maps = "backbone.body", []
    x = layer(x, f"{body}.stem.conv1", f"{body}.stem.bn1", stride=2, padding=3).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            at, stride = f"{body}.layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = layer(x, f"{at}.conv1", f"{at}.bn1", stride=stride if stride_in_1x1 else 1).relu()
            y = layer(y, f"{at}.conv2", f"{at}.bn2", stride=1 if stride_in_1x1 else stride, padding=1, groups=groups)
            y = layer(y.relu(), f"{at}.conv3", f"{at}.bn3")
            if block == 0:
                x = layer(x, f"{at}.downsample.0", f"{at}.downsample.1", stride=stride)
            x = (x + y).relu()
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    ("body", "blocks", "groups", "stride_in_1x1"),
    [
        ({"conv_body": "R-101-FPN"}, (3, 4, 23, 3), 1, True),
        ({"conv_body": "R-50-FPN"}, (3, 4, 6, 3), 1, False),
        ({"blocks": [3, 4, 23, 3]}, (3, 4, 23, 3), 4, False),
    ],
    ids=["R-101", "R-50", "X-101"],
)
def test_other_bodies(body, blocks, groups, stride_in_1x1, images, tmp_path, run_command):
    """Thin networks with the blocks of their namesakes: feature maps by definition, and an extraction with them."""
    torch.manual_seed(0)
    sizes = {key: value for key, value in small_sizes().items() if key != "conv_body"} | body
    sizes |= {"groups": groups, "width_per_group": 8 // groups, "stride_in_1x1": stride_in_1x1}
    config = DetectorConfig.of(sizes, "x.json")
    weights = published_weights(Network(config))
    network = build(weights, config, "w")
    x = torch.randn(1, 3, 64, 96)
    expected = body_by_definition(weights, x, blocks, groups, stride_in_1x1)
    above = F.conv2d(expected[3], weights["backbone.fpn.fpn_inner4.weight"], weights["backbone.fpn.fpn_inner4.bias"])
    layer4 = {part: weights[f"backbone.fpn.fpn_layer4.{part}"] for part in ("weight", "bias")}
    assert relative(network.backbone(x)[3], F.conv2d(above, padding=1, **layer4)) < 1e-4
    save_file(weights, tmp_path / "w.safetensors")
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    where = ("--weights", tmp_path / "w.safetensors", "--detector_config", tmp_path / "sizes.json")
    more = ("--detector", "x152", *where, "--device", "cpu", "--processes", 1, "--out", tmp_path / "out")
    status, _, err = run_command("shards.extract", tmp_path / "image.png", *more)
    assert status == 0, err
    assert read(tmp_path / "out")[0].features.shape == (20, 32)


@pytest.fixture
def flags(tmp_path, images):
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(5):
        Image.fromarray(images[n % 2][n:]).save(folder / f"{n}.png")
    (folder / "broken.png").write_text("no image")
    where = ("--weights", FILES / "weights.safetensors", "--detector_config", FILES / "config.json")
    return ("shards.extract", folder, "--detector", "x152", *where, "--device", "cpu", "--processes", 1, "--out")


def read(folder) -> RegionReader:
    return RegionReader(open_dataset(str(folder)))


def test_extraction(flags, tmp_path, run_command, detector, images):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing{n}" for n in range(20)))
    more = ("--batch_size", 2, "--per_shard", 4, "--class_names", names)
    status, said, err = run_command(*flags, tmp_path / "out", *more)
    assert status == 0, err
    assert "5 images, 0 with captions, in 2 shards; 1 skipped" in said and "broken.png" in said
    reader = read(tmp_path / "out")
    assert (reader.dataset.detector, reader.dataset.num_classes) == ("x152", 21)
    assert [reader[n].info["id"] for n in range(5)] == ["0", "1", "2", "3", "4"]
    sample = reader[4]
    (alone,) = detector.detect_batch([images[0][4:]])
    height, width = images[0][4:].shape[:2]
    size = torch.tensor([width, height] * 2)
    near = ((alone.boxes / size)[:, None] - torch.from_numpy(sample.boxes.copy())).abs().max(-1).values.min(0).values
    assert (near < 0.01).float().mean() > 0.5  # beside another image in the batch, borders are not padded alike
    assert sample.class_ids.shape[1] == reader.dataset.classes_per_region < 21
    status, said, _ = run_command("shards.inspect", tmp_path / "out", "--image", "4")
    assert status == 0 and "x152" in said
    assert reader.dataset.extra["class_names"][:2] == ["background", "thing0"]


def test_given_boxes(flags, tmp_path, run_command, detector, images):
    lines = tmp_path / "boxes.jsonl"
    boxes = [[10, 20, 90, 100], [0, 0, 50, 60]]
    lines.write_text(json.dumps({"image_id": "0", "boxes": boxes, "box_ids": ["a", "b"]}) + "\n")
    assert run_command(*flags, tmp_path / "out", "--boxes", lines)[0] == 0
    sample = read(tmp_path / "out")[0]
    (found,) = detector.describe_batch([images[0]], [np.array(boxes, np.float32)])
    np.testing.assert_array_equal(sample.features, found.features.numpy().astype(np.float16))
    assert sample.info["box_ids"] == ["a", "b"]


def test_two_ranks_share_the_shards(flags, tmp_path, run_command):
    more = ("--per_shard", 2, "--batch_size", 1)
    assert run_command(*flags, tmp_path / "one", *more)[0] == 0
    for status, _, err in run_ranks(2, *flags[1:], tmp_path / "two", *more, script=("-m", flags[0])):
        assert status == 0, err
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert [s.sha256 for s in one.dataset.shards] == [s.sha256 for s in two.dataset.shards] and len(one) == 5


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--weights", "nowhere.pth"), "nowhere.pth: no such file"),
        (("--precision", "fp16"), "--precision fp16: needs a GPU"),
        (("--detector", "pixels"), "not supported by --detector pixels"),
        (
            ("--detector", "no/such-model"),
            "should be pixels, x152, backbone, or an object-detection model of transformers",
        ),
        (("--visual_words_file", "x.npz"), "only for --detector pixels"),
    ],
)
def test_mistakes(flags, tmp_path, run_command, more, complaint):
    flags = [str(value) for value in flags]
    for name, value in zip(more[::2], more[1::2], strict=True):
        if name in flags:
            del flags[flags.index(name) : flags.index(name) + 2]
        flags[-1:-1] = [name, value]
    if more[0] == "--detector" and more[1] != "pixels":
        for name in ("--weights", "--detector_config"):
            del flags[flags.index(name) : flags.index(name) + 2]
    status, _, err = run_command(*flags, tmp_path / "out")
    assert status == 2 and complaint in err and "Traceback" not in err


def test_a_mistake_leaves_no_mark_behind(flags, tmp_path, run_command):
    assert run_command(*flags[:-1], "--weights", "nowhere.pth", "--out", tmp_path / "out")[0] == 2
    assert not (tmp_path / "out").exists()


def test_the_published_file_has_its_weights_under_a_key(weights, tmp_path, flags, run_command):
    torch.save({"model": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "d.pth")
    save_file(weights, tmp_path / "d.safetensors")
    flags = [value if value != FILES / "weights.safetensors" else tmp_path / "d.pth" for value in flags]
    assert run_command(*flags, tmp_path / "out")[0] == 0
    assert len(read(tmp_path / "out")) == 5
