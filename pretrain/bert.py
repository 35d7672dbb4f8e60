"""Weights of a Hugging Face BERT for the text stream and the word head."""

import os

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain.heads import PretrainingModel
from pretrain.published import from_published
from shards.errors import UserError

FILES = ("model.safetensors", "pytorch_model.bin")


def from_bert(name: str) -> bool:
    """Whether a parameter (by our name) is one that a BERT checkpoint gives."""
    return name.startswith(("encoder.text_embedding.", "encoder.text_layers.", "words.")) and ".task." not in name


def load_bert(model: PretrainingModel, name: str) -> list[str]:
    """Copies a BERT's weights into the text stream (and the word head, where it has one).

    name: a directory, or a name that the hub or its cache knows. Returns the names that were set. Sizes that do
    not fit are a UserError that names both. What BERT has and this model has not (its own pooler and
    next-sentence head) is left out.
    """
    weights, _ = from_published(_read(name))
    own = dict(model.named_parameters())
    taken = {key: value for key, value in weights.items() if key in own and from_bert(key)}
    missing = [
        key
        for key in own
        if key.startswith(("encoder.text_embedding.", "encoder.text_layers.")) and from_bert(key) and key not in taken
    ]
    if missing:
        raise UserError(f"--bert {name}: has no weights for {missing[0]}; is it a BERT with {_layers(model)} layers?")
    for key, value in taken.items():
        if own[key].shape != value.shape:
            raise UserError(
                f"--bert {name}: {key} is {tuple(value.shape)} there and {tuple(own[key].shape)} in the model; "
                "choose a --config of the same sizes"
            )
    with torch.no_grad():
        for key, value in taken.items():
            own[key].copy_(value)
    return sorted(taken)


def _layers(model: PretrainingModel) -> int:
    return model.encoder.config.num_hidden_layers


def _read(name: str) -> dict[str, Tensor]:
    """The state dict of a BERT, wherever transformers keeps it; pickles are read with weights_only."""
    path = None
    for file in FILES:
        path = os.path.join(name, file) if os.path.isdir(name) else _from_hub(name, file)
        if path and os.path.exists(path):
            break
    else:
        raise UserError(f"--bert {name}: has neither {' nor '.join(FILES)}")
    try:
        return load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _from_hub(name: str, file: str) -> str | None:
    from transformers.utils import cached_file  # takes seconds to import

    try:
        return cached_file(name, file)
    except OSError:
        return None
