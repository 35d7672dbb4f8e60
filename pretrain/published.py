"""Names of weights: the published implementation's (and BERT's) on one side, ours on the other.

The published code keeps queries, keys and values as three matrices where we keep one, and has two matrices
per connection (q_dense1, q_dense2) that nothing uses.
"""

import re

import torch
from torch import Tensor

from shards.errors import UserError

_RULES = [
    (r"bert\.embeddings\.(word|position)_embeddings\.", r"encoder.text_embedding.\1."),
    (r"bert\.embeddings\.token_type_embeddings\.", "encoder.text_embedding.segment."),
    (r"bert\.embeddings\.task_embeddings\.", "encoder.text_embedding.task."),
    (r"bert\.embeddings\.LayerNorm\.", "encoder.text_embedding.norm."),
    (r"bert\.v_embeddings\.image_embeddings\.", "encoder.image_embedding.feature."),
    (r"bert\.v_embeddings\.image_location_embeddings\.", "encoder.image_embedding.location."),
    (r"bert\.v_embeddings\.LayerNorm\.", "encoder.image_embedding.norm."),
    (r"bert\.encoder\.layer\.(\d+)\.", r"encoder.text_layers.\1."),
    (r"bert\.encoder\.v_layer\.(\d+)\.", r"encoder.image_layers.\1."),
    (r"bert\.encoder\.c_layer\.(\d+)\.", r"encoder.connections.\1."),
    (r"bert\.t_pooler\.", "encoder.text_pooler."),
    (r"bert\.v_pooler\.", "encoder.image_pooler."),
    (r"cls\.predictions\.transform\.LayerNorm\.", "words.transform.norm."),
    (r"cls\.predictions\.transform\.dense\.", "words.transform.dense."),
    (r"cls\.predictions\.bias$", "words.bias"),
    (r"cls\.imagePredictions\.transform\.LayerNorm\.", "regions.transform.norm."),
    (r"cls\.imagePredictions\.transform\.dense\.", "regions.transform.dense."),
    (r"cls\.imagePredictions\.decoder\.", "regions.decoder."),
    (r"cls\.bi_seq_relationship\.", "alignment."),
]
_INSIDE_LAYERS = [
    (r"\.attention\.self\.(query|key|value)\.", r".query_key_value.\1."),
    (r"\.attention\.output\.dense\.", ".output."),
    (r"\.attention\.output\.LayerNorm\.", ".norm."),
    (r"(layers\.\d+)\.intermediate\.dense\.", r"\1.feed_forward.up."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.feed_forward.down."),
    (r"(layers\.\d+)\.output\.LayerNorm\.", r"\1.feed_forward.norm."),
    (r"\.biattention\.(query|key|value)1\.", r".image_query_key_value.\1."),
    (r"\.biattention\.(query|key|value)2\.", r".text_query_key_value.\1."),
    (r"\.biOutput\.dense1\.", ".image_output."),
    (r"\.biOutput\.dense2\.", ".text_output."),
    (r"\.biOutput\.LayerNorm1\.", ".image_norm."),
    (r"\.biOutput\.LayerNorm2\.", ".text_norm."),
    (r"\.v_intermediate\.dense\.", ".image_feed_forward.up."),
    (r"\.v_output\.dense\.", ".image_feed_forward.down."),
    (r"\.v_output\.LayerNorm\.", ".image_feed_forward.norm."),
    (r"\.t_intermediate\.dense\.", ".text_feed_forward.up."),
    (r"\.t_output\.dense\.", ".text_feed_forward.down."),
    (r"\.t_output\.LayerNorm\.", ".text_feed_forward.norm."),
]
# Used by nothing, or (the decoder) the word embeddings under a second name.
_UNUSED = re.compile(r"\.biOutput\.q_dense[12]\.|^cls\.predictions\.decoder\.|\.position_ids$")
_PARTS = ("query", "key", "value")


def our_name(published: str) -> tuple[str, int | None] | None:
    """Our name of a published weight and, for a query, key or value, which third of ours it is; None: unknown."""
    for pattern, replacement in _RULES:
        name, count = re.subn("^" + pattern, replacement, published)
        if count:
            break
    else:
        return None
    for pattern, replacement in _INSIDE_LAYERS:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    for number, part in enumerate(_PARTS):
        if f"query_key_value.{part}." in name:
            return name.replace(f".{part}.", "."), number
    return name, None


def from_published(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under our names, and the published names that have no place here.

    Takes the published names with or without "module.", BERT's own checkpoints (with or without "bert.", old
    ones with gamma and beta in LayerNorm), in float32.
    """
    ours: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor | None]] = {}
    unknown = []
    for name, value in weights.items():
        plain = name.removeprefix("module.")
        if not plain.startswith(("bert.", "cls.")):
            plain = f"bert.{plain}"
        plain = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", plain)
        plain = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", plain)
        if _UNUSED.search(plain):
            continue
        found = our_name(plain)
        if found is None:
            unknown.append(name)
        elif found[1] is None:
            ours[found[0]] = value.float()
        else:
            thirds.setdefault(found[0], [None] * 3)[found[1]] = value.float()
    for name, parts in thirds.items():
        missing = [part for part, value in zip(_PARTS, parts, strict=True) if value is None]
        if missing:
            raise UserError(f"the weights have no {missing[0]} matrix for {name}; the file is not whole")
        ours[name] = torch.cat(parts)
    return ours, unknown
