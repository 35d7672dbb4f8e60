"""Weights of a Hugging Face BERT for the text stream and the word head."""

import os
from pathlib import Path

from pretrain.heads import PretrainingModel
from pretrain.weights import BERT_FILES, read_published, take_weights
from shards.errors import UserError
from shards.hub import only_local

NOT_BERTS = (  # what a model has and a BERT has not, or (the word head) need not have
    *("encoder.text_embedding.task.", "encoder.text_pooler.", "encoder.image_", "encoder.connections."),
    "encoder.contrast.",
    *("words.", "regions.", "alignment."),
)


def may_be_from_bert(name: str) -> bool:
    """Whether a parameter (by our name) is one that a BERT checkpoint may give."""
    return name.startswith(("encoder.text_embedding.", "encoder.text_layers.", "words.")) and ".task." not in name


def load_bert(model: PretrainingModel, name: str) -> list[str]:
    """Copies a BERT's weights into the text stream (and the word head, where it has one).

    name: a directory, or a name that the hub or its cache knows. Returns the names that were set. Sizes that do
    not fit are a UserError that names both. What BERT has and this model has not (its own pooler and
    next-sentence head) is left out.
    """
    weights, _ = read_published(Path(_file(name)))
    taken = {key: value for key, value in weights.items() if may_be_from_bert(key)}
    take_weights(model, taken, f"--bert {name}", NOT_BERTS)
    return sorted(taken)


def bert_folder(name: str) -> str:
    """The directory of a BERT, which may be given by a name that the hub or its cache knows."""
    if os.path.isdir(name):
        return name
    for file in ("config.json", "tokenizer.json", "vocab.txt"):  # into the directory of the weights
        _from_hub(name, file)
    return os.path.dirname(_file(name))


def _file(name: str) -> str:
    """The state dict of a BERT, wherever transformers keeps it."""
    for file in BERT_FILES:
        path = os.path.join(name, file) if os.path.isdir(name) else _from_hub(name, file)
        if path and os.path.exists(path):
            return path
    raise UserError(f"--bert {name}: has neither {' nor '.join(BERT_FILES)}")


def _from_hub(name: str, file: str) -> str | None:
    from transformers.utils import cached_file  # takes seconds to import

    try:
        return cached_file(name, file, local_files_only=only_local(name))
    except OSError:
        return None
