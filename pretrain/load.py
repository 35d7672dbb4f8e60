"""Models from weights that there are, ready for use or for other heads."""

import warnings

from torch import nn

from pretrain.bert import NOT_BERTS
from pretrain.heads import PretrainingModel
from pretrain.model import TwoStream
from pretrain.weights import BERT, describe, find_weights, take_weights


def load(path, config: str | None = None) -> TwoStream:
    """The two-stream model of a run's directory (its best checkpoint), of published weights, or of a BERT.

    config: the JSON file of the sizes, where it does not lie beside the weights. In evaluation mode, on the CPU. What
    the weights lack (all but the text stream, where it is a BERT) is drawn at random, and a warning says what.
    """
    return _load(path, config, lambda sizes, weights: nn.ModuleDict({"encoder": TwoStream(sizes)})).encoder


def load_pretraining(path, config: str | None = None) -> PretrainingModel:
    """The same with its pretraining heads."""

    def build(sizes, weights):
        bias = weights.get("regions.decoder.bias")
        return PretrainingModel(sizes, len(bias) if bias is not None else None)

    return _load(path, config, build)


def _load(path, config: str | None, build) -> nn.Module:
    found = find_weights(str(path), config)
    weights, left_over = found.read()
    model = build(found.sizes, weights)
    missing = take_weights(model, weights, str(path), NOT_BERTS if found.kind == BERT else ())
    sentence = describe(missing, left_over)
    if sentence:
        warnings.warn(f"{path}: {sentence}", stacklevel=3)
    return model.eval()
