"""Backbone, feature pyramid and heads, with the published names of weights.

Frozen batch norm (scale = weight / sqrt(running_var), no epsilon) is folded into the convolution before it when weights
are loaded, so that a block is three convolutions and nothing else.
"""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.errors import UserError

BLOCKS = (3, 8, 36, 3)  # of the four stages of a ResNet-152
ANCHORS_PER_PLACE = 3
POOLED = 7  # cells of a region, each way


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes of the detector; the defaults are the published ones.

    min_size, max_size: pixels of an image's short and long side; regions: that are kept; pre_nms_top_n and
    post_nms_top_n: proposals of a level before suppression, and of an image after it.
    """

    stem_channels: int = 64
    res2_channels: int = 256
    groups: int = 32
    width_per_group: int = 8
    fpn_channels: int = 512
    head_dim: int = 2048
    classes: int = 1601
    min_size: int = 800
    max_size: int = 1333
    regions: int = 100
    pre_nms_top_n: int = 1000
    post_nms_top_n: int = 1000

    @classmethod
    def of(cls, values: dict, where: str) -> "DetectorConfig":
        """From the keys of a JSON file."""
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {key: value for key, value in values.items() if key != "conv_body"}
        if values.get("conv_body", "R-152-FPN") != "R-152-FPN":
            raise UserError(f"{where}: conv_body {values['conv_body']} should be R-152-FPN")
        for key, value in kept.items():
            if key not in known or type(value) is not int or value < 1:
                raise UserError(
                    f"{where}: {key} {value!r} should be a whole number under one of {', '.join(sorted(known))}"
                )
        return cls(**kept)


class Block(nn.Module):
    """1x1, 3x3 in groups (with the stride), 1x1, and what went in added, through a 1x1 where sizes differ."""

    def __init__(self, into: int, inside: int, out: int, stride: int, groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(into, inside, 1)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, 1, groups=groups)
        self.conv3 = nn.Conv2d(inside, out, 1)
        self.downsample = nn.Conv2d(into, out, 1, stride) if stride > 1 or into != out else None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.conv1(x), inplace=True)
        x = F.relu(self.conv2(x), inplace=True)
        return F.relu(self.conv3(x).add_(residual), inplace=True)


class Backbone(nn.Module):
    """Images (B, 3, H, W), H and W multiples of 32 -> five maps (B, C, H / s, W / s), s = 4, 8, 16, 32, 64."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.stem = nn.Conv2d(3, config.stem_channels, 7, 2, 3)
        into, stages = config.stem_channels, []
        for number, count in enumerate(BLOCKS):
            inside = config.groups * config.width_per_group << number
            out = config.res2_channels << number
            blocks = []
            for block in range(count):
                blocks.append(Block(into, inside, out, 2 if number and not block else 1, config.groups))
                into = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        widths = [config.res2_channels << number for number in range(len(BLOCKS))]
        self.inner = nn.ModuleList(nn.Conv2d(width, config.fpn_channels, 1) for width in widths)
        self.outer = nn.ModuleList(nn.Conv2d(config.fpn_channels, config.fpn_channels, 3, 1, 1) for _ in widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.stem(images), inplace=True), 3, 2, 1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        above, found = None, []
        for x, inner, outer in reversed(list(zip(maps, self.inner, self.outer, strict=True))):
            lateral = inner(x)
            above = lateral if above is None else lateral + F.interpolate(above, scale_factor=2, mode="nearest")
            found.insert(0, outer(above))
        return [*found, F.max_pool2d(found[-1], 1, 2)]


class ProposalHead(nn.Module):
    """What is an object, and how to move its anchor; the same on every level."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        channels = config.fpn_channels
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)
        self.objectness = nn.Conv2d(channels, ANCHORS_PER_PLACE, 1)
        self.deltas = nn.Conv2d(channels, 4 * ANCHORS_PER_PLACE, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A map (B, C, H, W) -> (B, H W A) before the sigmoid, (B, H W A, 4); places row by row, anchors inside."""
        x = F.relu(self.conv(x))
        size, (height, width) = len(x), x.shape[-2:]
        objectness = self.objectness(x).permute(0, 2, 3, 1).reshape(size, -1)
        deltas = self.deltas(x).view(size, -1, 4, height, width).permute(0, 3, 4, 1, 2).reshape(size, -1, 4)
        return objectness, deltas


class BoxHead(nn.Module):
    """Pooled regions (R, C * 7 * 7) -> features (R, D), class probabilities (R, classes)."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.fc6 = nn.Linear(config.fpn_channels * POOLED**2, config.head_dim)
        self.fc7 = nn.Linear(config.head_dim, config.head_dim)
        self.scores = nn.Linear(config.head_dim, config.classes)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        features = F.relu(self.fc6(pooled))
        return features, self.scores(F.relu(self.fc7(features))).float().softmax(1)


class Network(nn.Module):
    """The three of them."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.backbone, self.proposals, self.box = Backbone(config), ProposalHead(config), BoxHead(config)


def folded(weights: dict[str, Tensor], config: DetectorConfig, where: str) -> dict[str, Tensor]:
    """The published weights under our names, batch norms folded into convolutions."""
    weights = {name.removeprefix("module."): value.float() for name, value in weights.items()}
    ours: dict[str, Tensor] = {}

    def take(name: str) -> Tensor:
        if name not in weights:
            raise UserError(f"{where}: has no {name}; it should be the weights of the region detector")
        return weights[name]

    def fold(target: str, convolution: str, norm: str) -> None:
        scale = take(f"{norm}.weight") / take(f"{norm}.running_var").sqrt()
        ours[f"{target}.weight"] = take(f"{convolution}.weight") * scale[:, None, None, None]
        ours[f"{target}.bias"] = take(f"{norm}.bias") - take(f"{norm}.running_mean") * scale

    def copy(target: str, published: str) -> None:
        for part in ("weight", "bias"):
            ours[f"{target}.{part}"] = take(f"{published}.{part}")

    body = "backbone.body"
    fold("backbone.stem", f"{body}.stem.conv1", f"{body}.stem.bn1")
    for stage, count in enumerate(BLOCKS):
        for block in range(count):
            target, published = f"backbone.stages.{stage}.{block}", f"{body}.layer{stage + 1}.{block}"
            for n in (1, 2, 3):
                fold(f"{target}.conv{n}", f"{published}.conv{n}", f"{published}.bn{n}")
            if not block:
                fold(f"{target}.downsample", f"{published}.downsample.0", f"{published}.downsample.1")
        copy(f"backbone.inner.{stage}", f"backbone.fpn.fpn_inner{stage + 1}")
        copy(f"backbone.outer.{stage}", f"backbone.fpn.fpn_layer{stage + 1}")
    for target, published in (
        ("proposals.conv", "rpn.head.conv"),
        ("proposals.objectness", "rpn.head.cls_logits"),
        ("proposals.deltas", "rpn.head.bbox_pred"),
        ("box.fc6", "roi_heads.box.feature_extractor.fc6"),
        ("box.fc7", "roi_heads.box.feature_extractor.fc7"),
        ("box.scores", "roi_heads.box.predictor.cls_score"),
    ):
        copy(target, published)
    return ours


def build(weights: dict[str, Tensor], config: DetectorConfig, where: str) -> Network:
    """The network with the published weights, for evaluation."""
    with torch.device("meta"):
        network = Network(config)
    ours = folded(weights, config, where)
    for name, value in network.state_dict().items():
        if ours[name].shape != value.shape:
            raise UserError(
                f"{where}: {name} is {tuple(ours[name].shape)} there and {tuple(value.shape)} by its configuration"
            )
    network.load_state_dict(ours, assign=True)
    return network.eval().requires_grad_(False)
