"""Initialises the text stream and the masked-token head from a Hugging Face BERT."""

import os
from pathlib import Path

from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.pretrained.find_weights import BERT_FILES, check_bert_config, read_published, take_weights
from shards.common.errors import UserError
from shards.common.model_hub import only_local

MISSING_IN_BERT = (  # prefixes of parameters that may be missing from a BERT checkpoint
    *("encoder.text_embedding.task.", "encoder.text_pooler.", "encoder.image_", "encoder.connections."),
    "encoder.contrast.",
    *("words.", "regions.", "alignment."),
)


def may_be_from_bert(name: str) -> bool:
    """Whether the parameter of this name can be initialised from a BERT checkpoint."""
    return name.startswith(("encoder.text_embedding.", "encoder.text_layers.", "words.")) and ".task." not in name


def load_bert(model: PretrainingModel, name: str) -> tuple[list[str], int]:
    """Copies the weights of a BERT into the text stream and, if it has one, the masked-token head.

    Unexpected keys of the BERT (its pooler, its next-sentence head, and layers that the model lacks) are ignored.

    Args:
        name: a directory, or a name on the hub or in its cache.

    Returns:
        The names of the parameters that were set, and the number of layers of the BERT.

    Raises:
        UserError: a shape or the number of attention heads differs from that of the model.
    """
    file = Path(_file(name))
    check_bert_config(file.parent, model.encoder.config)
    weights, _ = read_published(file)
    own = model.state_dict()
    taken = {key: value for key, value in weights.items() if may_be_from_bert(key) and key in own}
    take_weights(model, taken, f"--bert {name}", MISSING_IN_BERT)
    layers = {key.split(".")[2] for key in weights if key.startswith("encoder.text_layers.")}
    return sorted(taken), len(layers)


def bert_folder(name: str) -> str:
    """The local directory of a BERT, given by a path or by a name on the hub or in its cache."""
    if os.path.isdir(name):
        return name
    for file in ("config.json", "tokenizer.json", "vocab.txt"):  # downloaded to the directory of the weights
        _from_hub(name, file)
    return os.path.dirname(_file(name))


def _file(name: str) -> str:
    """The path of the state dict of a BERT, in its directory or in the cache of the hub."""
    for file in BERT_FILES:
        path = os.path.join(name, file) if os.path.isdir(name) else _from_hub(name, file)
        if path and os.path.exists(path):
            return path
    raise UserError(f"--bert {name}: neither {' nor '.join(BERT_FILES)} found")


def _from_hub(name: str, file: str) -> str | None:
    from transformers.utils import cached_file  # takes seconds to import

    try:
        return cached_file(name, file, local_files_only=only_local(name))
    except OSError:
        return None
