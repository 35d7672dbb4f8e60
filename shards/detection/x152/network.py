"""Backbone, feature pyramid (FPN) and heads of the detector, and loading of the published weights.

Frozen batch norm (scale = weight / sqrt(running_var), no epsilon) is folded into the preceding convolution when weights
are loaded, so that a block consists of three convolutions.
"""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.common.errors import UserError

BODIES = {"R-50-FPN": (3, 4, 6, 3), "R-101-FPN": (3, 4, 23, 3), "R-152-FPN": (3, 8, 36, 3)}  # blocks per stage
STAGES = 4
ANCHORS_PER_PLACE = 3
POOLED = 7  # RoIAlign output is POOLED x POOLED


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes of the detector; the defaults are those of the published weights.

    Attributes:
        blocks: blocks of the four stages; 3, 4, 6, 3 in a ResNet-50 or ResNeXt-50, 3, 4, 23, 3 in a ResNet-101 or
            ResNeXt-101.
        stride_in_1x1: whether the stride of a stage is in the first 1x1 convolution of its first block (ResNets of
            maskrcnn-benchmark) or in the 3x3 convolution (its ResNeXts).
        groups, width_per_group: of the 3x3 convolutions; 1 and 64 in a ResNet.
        min_size, max_size: short and (at most) long side of the resized image in pixels.
        max_regions: maximum number of regions per image.
        pre_nms_top_n, post_nms_top_n: maximum number of proposals of a level before suppression, and of an image after.
    """

    blocks: tuple[int, int, int, int] = BODIES["R-152-FPN"]
    stride_in_1x1: bool = False
    stem_channels: int = 64
    res2_channels: int = 256
    groups: int = 32
    width_per_group: int = 8
    fpn_channels: int = 512
    head_dim: int = 2048
    classes: int = 1601
    min_size: int = 800
    max_size: int = 1333
    max_regions: int = 100
    pre_nms_top_n: int = 1000
    post_nms_top_n: int = 1000

    @classmethod
    def of(cls, values: dict, where: str) -> "DetectorConfig":
        """From the content of a JSON file, with fields of this class, and conv_body, a name for `blocks`.

        `regions`, the former name of `max_regions`, is accepted, too.
        """
        if not isinstance(values, dict):
            raise UserError(f"{where}: should be a JSON object with sizes of the detector")
        sizes, found = dict(values), {}
        if "regions" in sizes:
            if "max_regions" in sizes:
                raise UserError(f"{where}: has max_regions and its former name, regions; remove one of them")
            sizes["max_regions"] = sizes.pop("regions")
        if "conv_body" in sizes:
            body = sizes.pop("conv_body")
            if body not in BODIES:
                raise UserError(f"{where}: conv_body {body} should be one of {', '.join(BODIES)}")
            found["blocks"] = BODIES[body]
        if "blocks" in sizes:
            blocks = sizes.pop("blocks")
            if not (isinstance(blocks, list) and len(blocks) == STAGES and all(map(_is_size, blocks))):
                raise UserError(f"{where}: blocks {blocks!r} should be four integers, one per stage")
            found["blocks"] = tuple(blocks)
        if "stride_in_1x1" in sizes:
            found["stride_in_1x1"] = sizes.pop("stride_in_1x1")
            if not isinstance(found["stride_in_1x1"], bool):
                raise UserError(f"{where}: stride_in_1x1 {found['stride_in_1x1']!r} should be true or false")
        known = sorted({field.name for field in dataclasses.fields(cls)} - {"blocks", "stride_in_1x1"})
        for key, value in sizes.items():
            if key not in known or not _is_size(value):
                raise UserError(f"{where}: {key} {value!r} should be an integer, and the key one of {', '.join(known)}")
        return cls(**found, **sizes)


def _is_size(value) -> bool:
    return type(value) is int and value >= 1


class Block(nn.Module):
    """A bottleneck block: 1x1, grouped 3x3 and 1x1 convolutions with residual. strides: of the first two."""

    def __init__(self, into: int, inside: int, out: int, strides: tuple[int, int], groups: int):
        super().__init__()
        stride = max(strides)
        self.conv1 = nn.Conv2d(into, inside, 1, strides[0])
        self.conv2 = nn.Conv2d(inside, inside, 3, strides[1], 1, groups=groups)
        self.conv3 = nn.Conv2d(inside, out, 1)
        self.downsample = nn.Conv2d(into, out, 1, stride) if stride > 1 or into != out else None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.conv1(x), inplace=True)
        x = F.relu(self.conv2(x), inplace=True)
        return F.relu(self.conv3(x).add_(residual), inplace=True)


class PyramidBackbone(nn.Module):
    """Images (B, 3, H, W), H and W multiples of 32 -> five maps (B, C, H / s, W / s), s = 4, 8, 16, 32, 64."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.stem = nn.Conv2d(3, config.stem_channels, 7, 2, 3)
        into, stages = config.stem_channels, []
        for number, count in enumerate(config.blocks):
            inside = config.groups * config.width_per_group << number
            out = config.res2_channels << number
            blocks = []
            for block in range(count):
                stride = 2 if number and not block else 1
                strides = (stride, 1) if config.stride_in_1x1 else (1, stride)
                blocks.append(Block(into, inside, out, strides, config.groups))
                into = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        widths = [config.res2_channels << number for number in range(STAGES)]
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
    """The head of the region proposal network (objectness and box deltas), shared by all levels."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        channels = config.fpn_channels
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)
        self.objectness = nn.Conv2d(channels, ANCHORS_PER_PLACE, 1)
        self.deltas = nn.Conv2d(channels, 4 * ANCHORS_PER_PLACE, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A map (B, C, H, W) -> objectness logits (B, H W A), deltas (B, H W A, 4); row by row, anchors innermost."""
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
    """Backbone, proposal head and box head."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.backbone, self.proposals, self.box = PyramidBackbone(config), ProposalHead(config), BoxHead(config)


def folded(weights: dict[str, Tensor], config: DetectorConfig, where: str) -> dict[str, Tensor]:
    """The published weights by our names, with batch norms folded into convolutions."""
    weights = {name.removeprefix("module."): value.float() for name, value in weights.items()}
    ours: dict[str, Tensor] = {}

    def take(name: str) -> Tensor:
        if name not in weights:
            raise UserError(f"{where}: missing key {name}; expected the weights of the region detector")
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
    for stage, count in enumerate(config.blocks):
        if any(name.startswith(f"{body}.layer{stage + 1}.{count}.") for name in weights):
            raise UserError(
                f"{where}: layer{stage + 1} has more than the {count} blocks of the configuration; set conv_body or "
                "blocks in --detector_config"
            )
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
    """Builds the network with the published weights, in evaluation mode."""
    with torch.device("meta"):
        network = Network(config)
    ours = folded(weights, config, where)
    for name, value in network.state_dict().items():
        if ours[name].shape != value.shape:
            raise UserError(
                f"{where}: {name} has the shape {tuple(ours[name].shape)}, but {tuple(value.shape)} by the "
                "configuration; set the sizes in --detector_config"
            )
    network.load_state_dict(ours, assign=True)
    return network.eval().requires_grad_(False)
