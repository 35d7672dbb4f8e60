"""Loads models from existing weights, for inference or for other heads."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from pretrain.models.model_config import ModelConfig
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.models.vilbert import TwoStream
from pretrain.pretrained.find_weights import BERT, describe_keys, find_weights, take_weights
from pretrain.pretrained.hf_bert import MISSING_IN_BERT
from shards.common.model_hub import local_model

Model = TypeVar("Model", bound=nn.Module)


class _Encoder(nn.Module):
    """The two-stream model under its name in state dicts."""

    def __init__(self, sizes: ModelConfig):
        super().__init__()
        self.encoder = TwoStream(sizes)


def load(path: str | Path, config: str | None = None) -> TwoStream:
    """Loads the two-stream model, on the CPU and in evaluation mode.

    Missing keys (for a BERT, everything except the text stream) are initialised randomly, with a warning that lists
    them.

    Args:
        path: a run directory (its best checkpoint is used), published weights, a BERT, or hf:OWNER/NAME.
        config: JSON file of the model configuration, if it is not next to the weights.

    Returns:
        The model without heads, on the CPU, in evaluation mode, in the dtype of the weights.

    Raises:
        UserError: the path contains no weights, or they are damaged or do not match the configuration.
    """
    return _load(path, config, lambda sizes, weights: _Encoder(sizes)).encoder


def load_pretraining(path: str | Path, config: str | None = None) -> PretrainingModel:
    """Loads the two-stream model with its pretraining heads; see `load`."""

    def build(sizes: ModelConfig, weights: dict[str, Tensor]) -> PretrainingModel:
        bias = weights.get("regions.decoder.bias")
        return PretrainingModel(sizes, len(bias) if bias is not None else None)

    return _load(path, config, build)


def _load(path: str | Path, config: str | None, build: Callable[[ModelConfig, dict[str, Tensor]], Model]) -> Model:
    found = find_weights(local_model(path), config)
    weights, unexpected = found.read()
    model = build(found.sizes, weights)
    missing = take_weights(model, weights, str(path), MISSING_IN_BERT if found.kind == BERT else ())
    sentence = describe_keys(missing, unexpected)
    if sentence:
        warnings.warn(f"{path}: {sentence}", stacklevel=3)
    return model.eval()
