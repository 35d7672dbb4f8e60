"""Loads a backbone: a model of transformers (directory or hub name), or a state dict of torchvision or timm."""

import hashlib
import inspect
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from shards.common.errors import UserError
from shards.common.files import read_json, split_paths
from shards.common.model_hub import load_failure, only_local
from shards.detection.backbone.convnets import KNOWN, build_convnet
from shards.detection.backbone.preprocessing import SHORT_SIDE, Preprocessing, of_processor, settings_of
from shards.parsing.tensor_files import read_state_dict

EXPECTED = f"a vision model of transformers (directory or name), or the file of a state dict: {KNOWN}"
PROCESSOR = "preprocessor_config.json"
STATE_DICTS = ("model.safetensors", "pytorch_model.bin")  # in a timm directory
TENSORFLOW = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
CONVNET_STRIDE = 32
PROBED_SIDE = 224  # pixels, a multiple of all strides and of most patch sizes
SAME_LOGITS = 1e-3  # tolerance, relative to the largest logit


@dataclass
class Backbone:
    """A network in evaluation mode.

    Attributes:
        network: images (B, 3, H, W), with sides that are multiples of `stride` -> feature map (B, C, H / stride,
            W / stride).
        classify: pooled features (N, C) -> logits (N, classes); None without a classifier that is applied to the mean
            of the feature map.
        class_names: in the order of the logits, or None.
    """

    network: nn.Module
    stride: int
    preprocessing: Preprocessing
    classify: nn.Module | None = None
    classes: int = 0
    class_names: list[str] | None = None

    def to(self, device: torch.device) -> "Backbone":
        return replace(self, network=self.network.to(device), classify=self.classify and self.classify.to(device))

    def fingerprint(self) -> str:
        """SHA-256 of the names, dtypes, shapes and values of all weights and of the preprocessing."""
        digest = hashlib.sha256(repr(self.preprocessing).encode())
        for module in (self.network, self.classify or nn.Identity()):
            for name, value in sorted(module.state_dict().items()):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def load_backbones(weights: str) -> list[Backbone]:
    """Loads the backbones given by --weights, with commas between them if there are several.

    The message of a UserError lists the supported ones.
    """
    return [_load_backbone(name) for name in split_paths(weights)]


def _load_backbone(weights: str) -> Backbone:
    path = Path(weights)
    if path.is_file():
        return _of_state_dict(path)
    if (path / "config.json").exists() and "architecture" in read_json(path / "config.json"):
        for name in STATE_DICTS:
            if (path / name).exists():
                return _of_state_dict(path / name)
    return _of_transformers(weights)


def _of_state_dict(path: Path) -> Backbone:
    timm = read_json(path.parent / "config.json") if (path.parent / "config.json").exists() else {}
    ported = str(timm.get("architecture", "")).startswith("tf_")
    network, classifier, tensorflow = build_convnet(read_state_dict(path), str(path), ported)
    preprocessing = Preprocessing(**(TENSORFLOW if tensorflow else {}))
    trained = timm.get("pretrained_cfg", {})
    if trained.get("mean") and trained.get("std"):
        preprocessing = replace(preprocessing, mean=tuple(trained["mean"]), std=tuple(trained["std"]))
    if (path.parent / PROCESSOR).exists():
        preprocessing = of_processor(read_json(path.parent / PROCESSOR), preprocessing)
    classes = classifier.out_features if classifier else 0
    return Backbone(network, CONVNET_STRIDE, preprocessing, classifier, classes)


def _of_transformers(name: str) -> Backbone:
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification  # take seconds to import

    local = {"local_files_only": only_local(name)}
    try:
        config = AutoConfig.from_pretrained(name, **local)
        classifies = (config.architectures or [""])[0].endswith("ForImageClassification")
        kind = AutoModelForImageClassification if classifies else AutoModel
        model, loaded = kind.from_pretrained(name, output_loading_info=True, **local)
        preprocessing = _preprocessing_of(name, config)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"--weights {name}: should be {EXPECTED} ({load_failure(error, name)})") from None
    missing = [key for key in loaded["missing_keys"] if "pooler" not in key]
    if missing:
        raise UserError(f"--weights {name}: missing keys {', '.join(sorted(missing)[:3])}; should be {EXPECTED}")
    model = model.eval().requires_grad_(False)
    return of_model(model, preprocessing, name)


def of_model(model: nn.Module, preprocessing: Preprocessing, where: str) -> Backbone:
    """The backbone of a model of transformers. where: for messages.

    The classifier can be applied to regions if the logits of an image are those of the mean of its feature map, which
    is tested by a forward pass.
    """
    if model.main_input_name != "pixel_values" and not hasattr(model, "vision_model"):
        raise UserError(f"--weights {where}: {type(model).__name__} has no image input; should be {EXPECTED}")
    tower = _tower(model)
    network = FeatureMap(tower, where)
    image = torch.randn(1, 3, PROBED_SIDE, PROBED_SIDE, generator=torch.Generator().manual_seed(0))
    side = network.stride * max(1, PROBED_SIDE // network.stride)
    image = image[..., :side, :side]
    with torch.no_grad():
        pooled = network(image).mean((2, 3))
        classifier = getattr(model, "classifier", None)
        classify = _classifier(tower, classifier, pooled) if classifier is not None else None
        if classify is not None:
            logits = model(image, **network.arguments).logits
            if (classify(pooled) - logits).abs().max() > SAME_LOGITS * logits.abs().max():
                classify = None
    if classify is None:
        return Backbone(network, network.stride, preprocessing)
    labels = model.config.id2label
    names = [str(labels[number]) for number in sorted(labels)]
    return Backbone(network, network.stride, preprocessing, classify, len(names), names)


def _preprocessing_of(name: str, config) -> Preprocessing:
    """The preprocessing in preprocessor_config.json, or that of ImageNet with the size in the model's configuration."""
    from transformers import AutoImageProcessor
    from transformers.image_processing_utils import BaseImageProcessor

    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    default = Preprocessing(short_side=size if isinstance(size, int) else SHORT_SIDE)
    local = {"local_files_only": only_local(name)}
    try:
        values = settings_of(AutoImageProcessor.from_pretrained(name, **local))
    except ImportError:  # some processors need torchvision; their file has the settings
        values, _ = BaseImageProcessor.get_image_processor_dict(name, **local)
    except (OSError, ValueError):
        if (Path(name) / PROCESSOR).exists():
            raise
        return default
    return of_processor(values, default)


def _tower(model: nn.Module) -> nn.Module:
    """The part of a model with the feature map: the vision tower (CLIP and similar), or the model without its head."""
    from transformers import PreTrainedModel

    if hasattr(model, "text_model"):
        return model.vision_model
    if hasattr(model, "classifier") or type(model).__name__.endswith("ForImageClassification"):
        return next(child for child in model.children() if isinstance(child, PreTrainedModel))
    return model


class FeatureMap(nn.Module):
    """A model of transformers as a network from images to its last feature map.

    For a vision transformer, these are the last hidden states of the patches, which follow those of other tokens.
    Position embeddings are interpolated to the image size.
    """

    def __init__(self, model: nn.Module, where: str):
        super().__init__()
        self.model, self.where = model, where
        parameters = inspect.signature(model.forward).parameters
        self.arguments = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        self.stride = self._stride()

    def _stride(self) -> int:
        """Pixels per cell: the patch size, doubled by each later stage; measured for convolutional networks."""
        config = self.model.config
        patch = getattr(config, "patch_size", None)
        patch = patch[0] if isinstance(patch, (list, tuple)) else patch
        with torch.no_grad():
            states = self._states(torch.zeros(1, 3, PROBED_SIDE, PROBED_SIDE))
        if states.ndim == 4:
            return 2 ** round(math.log2(PROBED_SIDE / states.shape[-1]))
        if not isinstance(patch, int):
            raise UserError(
                f"--weights {self.where}: {type(self.model).__name__} has no feature map; should be {EXPECTED}"
            )
        return patch * 2 ** (len(getattr(config, "depths", [0])) - 1)

    def _states(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels, **self.arguments).last_hidden_state

    def forward(self, pixels: Tensor) -> Tensor:
        states = self._states(pixels)
        height, width = (side // self.stride for side in pixels.shape[-2:])
        if states.ndim == 4 and states.shape[-2:] == (height, width):
            return states
        if states.ndim != 3 or states.shape[1] < height * width:
            raise UserError(
                f"--weights {self.where}: {type(self.model).__name__} has hidden states of shape "
                f"{tuple(states.shape)}, not a map of {height} x {width} cells; should be {EXPECTED}"
            )
        return states[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


def _classifier(tower: nn.Module, classifier: nn.Module, pooled: Tensor) -> nn.Module | None:
    """The classifier for pooled features, preceded by LayerNorm for ConvNeXt; None if the sizes do not match."""
    linear = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[0].in_features != pooled.shape[1]:
        return None
    norm = getattr(tower, "layernorm", None)
    with_norm = isinstance(norm, nn.LayerNorm) and "convnext" in tower.config.model_type
    return nn.Sequential(norm, classifier) if with_norm else classifier
