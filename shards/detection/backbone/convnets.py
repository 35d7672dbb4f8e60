"""Convolutional networks from state dicts of torchvision and timm: MobileNetV2, EfficientNet-Lite and ResNets.

The architecture is inferred from names and shapes. Batch norm is folded into the preceding convolution.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.common.errors import UserError

KNOWN = "MobileNetV2, an EfficientNet-Lite, a ResNet or a ResNeXt, with the names of torchvision or timm"
STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of both MobileNetV2 and EfficientNet
BLOCKS_OF_STAGES = {  # by their total
    17: (1, 2, 3, 4, 3, 3, 1),  # MobileNetV2
    16: (1, 2, 2, 3, 3, 4, 1),  # EfficientNet-Lite0
    21: (1, 3, 3, 4, 4, 5, 1),  # Lite1 and Lite2
    24: (1, 3, 3, 5, 5, 6, 1),  # Lite3
    30: (1, 4, 4, 6, 6, 8, 1),  # Lite4
}
RESNET_STAGES = 4
TORCH_EPSILON, TENSORFLOW_EPSILON = 1e-5, 1e-3  # of batch norm


class Convolution(nn.Conv2d):
    """A convolution with bias; same: TensorFlow's padding, which puts an odd pixel at the right and bottom."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, groups: int, same: bool):
        out, _, size, _ = weight.shape
        padding = 0 if same else size // 2
        with torch.device("meta"):
            super().__init__(weight.shape[1] * groups, out, size, stride, padding, groups=groups)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        if not self.same:
            return super().forward(x)
        # F.pad would copy the map. Instead, both sides are padded like the right and bottom, and a first row and column
        # of zeros in the kernel make up for a pixel too many at the left and top.
        (size, _), (stride, _) = self.kernel_size, self.stride
        rows, columns = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[-2:])
        weight = F.pad(self.weight, (columns % 2, 0, rows % 2, 0)) if rows % 2 or columns % 2 else self.weight
        return F.conv2d(x, weight, self.bias, self.stride, (-(-rows // 2), -(-columns // 2)), groups=self.groups)


class InvertedResidual(nn.Module):
    """1x1 (optional), depthwise and 1x1 convolutions, with a residual if the shapes agree."""

    def __init__(self, convolutions: list[Convolution]):
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        first, depthwise, last = convolutions[0], convolutions[-2], convolutions[-1]
        self.residual = depthwise.stride == (1, 1) and first.in_channels == last.out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for convolution in self.convolutions[:-1]:
            out = F.relu6(convolution(out), inplace=True)
        out = self.convolutions[-1](out)
        return out + x if self.residual else out


class Residual(nn.Module):
    """A ResNet block with two or three convolutions; downsample: 1x1 convolution of the input, or None."""

    def __init__(self, convolutions: list[Convolution], downsample: Convolution | None):
        super().__init__()
        self.convolutions, self.downsample = nn.ModuleList(convolutions), downsample

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for convolution in self.convolutions[:-1]:
            out = F.relu(convolution(out), inplace=True)
        out = self.convolutions[-1](out)
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


class _StateDict:
    """The tensors of a file, with a check that all are used."""

    def __init__(self, weights: dict[str, Tensor], where: str, epsilon: float, same: bool):
        self.weights = {name: value.float() for name, value in weights.items() if not name.endswith("batches_tracked")}
        self.where, self.epsilon, self.same = where, epsilon, same
        self.unused = set(self.weights)

    def __contains__(self, name: str) -> bool:
        return name in self.weights

    def take(self, name: str) -> Tensor:
        if name not in self.weights:
            raise UserError(f"{self.where}: missing key {name}; --weights should be {KNOWN}")
        self.unused.discard(name)
        return self.weights[name]

    def convolution(self, name: str, norm: str, stride: int = 1, width: int | None = None) -> Convolution:
        """The convolution `name` with the batch norm `norm` folded into it. width: input channels, to infer groups."""
        weight = self.take(f"{name}.weight")
        if weight.ndim != 4:
            raise UserError(f"{self.where}: {name}.weight has {weight.ndim} dimensions; --weights should be {KNOWN}")
        mean, variance = self.take(f"{norm}.running_mean"), self.take(f"{norm}.running_var")
        scale = self.take(f"{norm}.weight") / (variance + self.epsilon).sqrt()
        bias = self.take(f"{norm}.bias") - mean * scale
        groups = (width or weight.shape[1]) // weight.shape[1]
        return Convolution(weight * scale[:, None, None, None], bias, stride, groups, self.same)

    def classifier(self, name: str) -> nn.Linear | None:
        """The linear layer `name`, or None if the file has no classifier."""
        if f"{name}.weight" not in self:
            return None
        weight, bias = self.take(f"{name}.weight"), self.take(f"{name}.bias")
        with torch.device("meta"):
            linear = nn.Linear(*reversed(weight.shape))
        linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        return linear

    def check_all_used(self) -> None:
        if self.unused:
            shown = ", ".join(sorted(self.unused)[:3])
            raise UserError(f"{self.where}: {len(self.unused)} unexpected keys ({shown}); --weights should be {KNOWN}")


def build_convnet(weights: dict[str, Tensor], where: str, tensorflow: bool) -> tuple[nn.Module, nn.Linear | None, bool]:
    """Builds the network of a state dict.

    Args:
        weights: names and tensors.
        where: path of the file, for messages.
        tensorflow: whether it is a timm model ported from TensorFlow (tf_...), which differs in padding and the epsilon
            of batch norm, but not in its names.

    Returns:
        The network, images (B, 3, H, W) -> feature map (B, C, H / 32, W / 32); its classifier, C -> classes, or None;
        and whether it was trained in TensorFlow, with images normalised to -1 to 1.
    """
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if "conv1.weight" in weights and "layer1.0.conv1.weight" in weights:
        tensors = _StateDict(weights, where, TORCH_EPSILON, False)
        network, classifier = _resnet(tensors), tensors.classifier("fc")
    else:
        if "features.1.conv.0.0.weight" in weights:
            names, last = _torchvision_mobilenet(weights), "classifier.1"
        elif "conv_stem.weight" in weights:
            names, last = _timm_mobilenet(weights), "classifier"
        elif "_conv_stem.weight" in weights:  # names of the first PyTorch port of EfficientNet
            names, last, tensorflow = _ported_efficientnet(weights), "_fc", True
        else:
            shown = ", ".join(list(weights)[:3])
            raise UserError(f"{where}: unknown architecture with keys like {shown}; --weights should be {KNOWN}")
        tensors = _StateDict(weights, where, TENSORFLOW_EPSILON if tensorflow else TORCH_EPSILON, tensorflow)
        network, classifier = _mobilenet(tensors, *names), tensors.classifier(last)
    tensors.check_all_used()
    return network.eval(), classifier, tensors.same


Names = tuple[str, str]  # of a convolution and of its batch norm


def _mobilenet(tensors: _StateDict, stem: Names, stages: list[list[list[Names]]], head: Names) -> nn.Module:
    """MobileNetV2 or EfficientNet-Lite. stages: names of the convolutions, by stage and block."""
    if len(stages) != len(STAGE_STRIDES):
        raise UserError(f"{tensors.where}: has {len(stages)} stages, not 7; --weights should be {KNOWN}")
    layers = [tensors.convolution(*stem, stride=2), nn.ReLU6(inplace=True)]
    for stride, blocks in zip(STAGE_STRIDES, stages, strict=True):
        for number, (*expansion, depthwise, projection) in enumerate(blocks):
            convolutions = [tensors.convolution(*names) for names in expansion]
            width = len(tensors.take(f"{depthwise[0]}.weight"))
            convolutions.append(tensors.convolution(*depthwise, stride=1 if number else stride, width=width))
            convolutions.append(tensors.convolution(*projection))
            layers.append(InvertedResidual(convolutions))
    return nn.Sequential(*layers, tensors.convolution(*head), nn.ReLU6(inplace=True))


def _in_stages(blocks: list) -> list[list]:
    """Divides blocks into the stages of the network with this number of blocks; one stage if there is none."""
    rest = iter(blocks)
    return [[next(rest) for _ in range(count)] for count in BLOCKS_OF_STAGES.get(len(blocks), (len(blocks),))]


def _numbers(weights: dict, prefix: str, part: str) -> Iterator[int]:
    """Yields 0, 1, ... as long as there are names that start with prefix, number and part."""
    number = 0
    while any(name.startswith(f"{prefix}{number}{part}") for name in weights):
        yield number
        number += 1


def _torchvision_mobilenet(weights: dict) -> tuple[Names, list[list[list[Names]]], Names]:
    blocks, number = [], 1
    while f"features.{number}.conv.0.0.weight" in weights:
        block = f"features.{number}.conv"
        if f"{block}.1.0.weight" in weights:
            names = [("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")]
        else:
            names = [("0.0", "0.1"), ("1", "2")]
        blocks.append([(f"{block}.{name}", f"{block}.{norm}") for name, norm in names])
        number += 1
    return ("features.0.0", "features.0.1"), _in_stages(blocks), (f"features.{number}.0", f"features.{number}.1")


def _timm_mobilenet(weights: dict) -> tuple[Names, list[list[list[Names]]], Names]:
    stages = []
    for stage in _numbers(weights, "blocks.", "."):
        blocks = []
        for number in _numbers(weights, f"blocks.{stage}.", "."):
            block = f"blocks.{stage}.{number}"
            if f"{block}.conv_pwl.weight" in weights:
                names = ("conv_pw", "conv_dw", "conv_pwl")
            else:
                names = ("conv_dw", "conv_pw")
            blocks.append([(f"{block}.{name}", f"{block}.bn{n}") for n, name in enumerate(names, 1)])
        stages.append(blocks)
    return ("conv_stem", "bn1"), stages, ("conv_head", "bn2")


def _ported_efficientnet(weights: dict) -> tuple[Names, list[list[list[Names]]], Names]:
    blocks = []
    for number in _numbers(weights, "_blocks.", "."):
        block = f"_blocks.{number}"
        names = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if f"{block}._expand_conv.weight" in weights:
            names.insert(0, ("_expand_conv", "_bn0"))
        blocks.append([(f"{block}.{name}", f"{block}.{norm}") for name, norm in names])
    return ("_conv_stem", "_bn0"), _in_stages(blocks), ("_conv_head", "_bn1")


def _resnet(tensors: _StateDict) -> nn.Module:
    """A ResNet or ResNeXt of any depth and width; the stride is in the 3x3 convolution of a block."""
    layers = [tensors.convolution("conv1", "bn1", stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    for stage in range(1, RESNET_STAGES + 1):
        for number in _numbers(tensors.weights, f"layer{stage}.", "."):
            block, stride = f"layer{stage}.{number}", 2 if stage > 1 and not number else 1
            parts = (1, 2, 3) if f"{block}.conv3.weight" in tensors else (1, 2)
            strided = 2 if len(parts) == 3 else 1
            convolutions: list[Convolution] = []
            for part in parts:
                width = convolutions[-1].out_channels if convolutions else None
                step = stride if part == strided else 1
                convolutions.append(tensors.convolution(f"{block}.conv{part}", f"{block}.bn{part}", step, width))
            downsample = None
            if f"{block}.downsample.0.weight" in tensors:
                downsample = tensors.convolution(f"{block}.downsample.0", f"{block}.downsample.1", stride)
            layers.append(Residual(convolutions, downsample))
    return nn.Sequential(*layers)
