"""Converts state dicts between the names of the reference implementation (and of BERT) and ours.

The reference implementation has three matrices for queries, keys and values where we have one. It also has unused
parameters, two matrices per co-attention layer (q_dense1, q_dense2) and a head on tokens (linguisic_logit, so
spelled), and a copy of the word embeddings as the decoder of the masked-token head.
"""

import re

import torch
from torch import Tensor

from shards.common.errors import UserError

_PLAIN = {
    "bert.embeddings.word_embeddings": "encoder.text_embedding.word",
    "bert.embeddings.position_embeddings": "encoder.text_embedding.position",
    "bert.embeddings.token_type_embeddings": "encoder.text_embedding.segment",
    "bert.embeddings.task_embeddings": "encoder.text_embedding.task",
    "bert.embeddings.LayerNorm": "encoder.text_embedding.norm",
    "bert.v_embeddings.image_embeddings": "encoder.image_embedding.feature",
    "bert.v_embeddings.image_location_embeddings": "encoder.image_embedding.location",
    "bert.v_embeddings.LayerNorm": "encoder.image_embedding.norm",
    "bert.t_pooler.dense": "encoder.text_pooler.dense",
    "bert.v_pooler.dense": "encoder.image_pooler.dense",
    "cls.predictions": "words",
    "cls.predictions.transform.dense": "words.transform.dense",
    "cls.predictions.transform.LayerNorm": "words.transform.norm",
    "cls.imagePredictions.transform.dense": "regions.transform.dense",
    "cls.imagePredictions.transform.LayerNorm": "regions.transform.norm",
    "cls.imagePredictions.decoder": "regions.decoder",
    "cls.bi_seq_relationship": "alignment",
    "vil_logit": "heads.retrieval",
    "vil_tri_prediction": "heads.entailment",
    "vision_logit": "heads.pointing",
}
_ANSWER_HEADS = {
    "vil_prediction": "heads.vqa",
    "vil_prediction_gqa": "heads.gqa",
    "vil_binary_prediction": "heads.nlvr2",
}
_IN_ANSWER_HEAD = {"logit_fc.0": "dense", "logit_fc.2": "norm", "logit_fc.3": "decoder"}
_LAYERS = {"bert.encoder.layer.#": "encoder.text_layers.#", "bert.encoder.v_layer.#": "encoder.image_layers.#"}
_IN_LAYER = {
    "attention.output.dense": "output",
    "attention.output.LayerNorm": "norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward.norm",
}
_CONNECTIONS = {"bert.encoder.c_layer.#": "encoder.connections.#"}
_IN_CONNECTION = {
    "biOutput.dense1": "image_output",
    "biOutput.dense2": "text_output",
    "biOutput.LayerNorm1": "image_norm",
    "biOutput.LayerNorm2": "text_norm",
    "v_intermediate.dense": "image_feed_forward.up",
    "v_output.dense": "image_feed_forward.down",
    "v_output.LayerNorm": "image_feed_forward.norm",
    "t_intermediate.dense": "text_feed_forward.up",
    "t_output.dense": "text_feed_forward.down",
    "t_output.LayerNorm": "text_feed_forward.norm",
}
_PARTS = ("query", "key", "value")
_NUMBER = re.compile(r"(?<=layer\.)\d+|(?<=layers\.)\d+|(?<=connections\.)\d+")


def _table() -> dict[str, tuple[str, int | None]]:
    """Published module -> (our module, third): 0 to 2 for query, key and value, else None. # is a layer number."""
    table = dict(_PLAIN)
    for outer, inner in ((_ANSWER_HEADS, _IN_ANSWER_HEAD), (_LAYERS, _IN_LAYER), (_CONNECTIONS, _IN_CONNECTION)):
        table |= {f"{a}.{x}": f"{b}.{y}" for a, b in outer.items() for x, y in inner.items()}
    whole = {theirs: (ours, None) for theirs, ours in table.items()}
    for third, part in enumerate(_PARTS):
        for theirs, ours in _LAYERS.items():
            whole[f"{theirs}.attention.self.{part}"] = f"{ours}.query_key_value", third
        for theirs, ours in _CONNECTIONS.items():
            whole[f"{theirs}.biattention.{part}1"] = f"{ours}.image_query_key_value", third
            whole[f"{theirs}.biattention.{part}2"] = f"{ours}.text_query_key_value", third
    return whole


def _reversed(table: dict[str, tuple[str, int | None]]) -> dict[str, list[str]]:
    """Our module -> the published module, or the three modules of query, key and value."""
    theirs: dict[str, list[str]] = {}
    for published, (ours, _) in table.items():
        theirs.setdefault(ours, []).append(published)
    return theirs


_OURS = _table()
_THEIRS = _reversed(_OURS)

DECODER = "cls.predictions.decoder"
_UNUSED = {"biOutput.dense1": "biOutput.q_dense1", "biOutput.dense2": "biOutput.q_dense2"}  # by one of equal shape


def our_name(published: str) -> tuple[str, int | None] | None:
    """(our name, third) of a published parameter, see _table; None for an unexpected key."""
    module, _, kind = published.rpartition(".")
    found = _OURS.get(_NUMBER.sub("#", module))
    if found is None:
        return None
    number = _NUMBER.search(module)
    return (found[0].replace("#", number.group()) if number else found[0]) + f".{kind}", found[1]


def from_published(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Renames a published state dict; returns float32 tensors by our names, and the unexpected keys.

    Accepts published names with or without "module.", and BERT checkpoints with or without "bert.", including old ones
    with LayerNorm.gamma and LayerNorm.beta.

    Raises:
        UserError: a query, key or value matrix is missing.
    """
    ours: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor | None]] = {}
    unexpected = []
    for name, value in weights.items():
        plain = _plain_name(name)
        found = our_name(plain)
        if found is None:
            if not plain.startswith(f"{DECODER}.") and not plain.endswith(".position_ids"):
                unexpected.append(name)
        elif found[1] is None:
            ours[found[0]] = value.float()
        else:
            thirds.setdefault(found[0], [None] * 3)[found[1]] = value.float()
    for name, parts in thirds.items():
        missing = [part for part, value in zip(_PARTS, parts, strict=True) if value is None]
        if missing:
            raise UserError(f"missing keys: no {missing[0]} matrix for {name}; the file is incomplete")
        ours[name] = torch.cat(parts)
    return ours, unexpected


def _plain_name(name: str) -> str:
    """A parameter name in the current form of the reference implementation."""
    name = name.removeprefix("module.")
    if not name.startswith(("bert.", "cls.", "vil_", "vision_logit.", "linguisic_logit.")):
        name = f"bert.{name}"
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))


def to_published(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Renames our state dict; returns tensors by published names, and our names that have no published counterpart.

    The decoder of the masked-token head is a copy of the word embeddings; unused matrices are zeros.
    """
    theirs, unexpected = {}, []
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        number = _NUMBER.search(module)
        published = [
            place.replace("#", number.group() if number else "") for place in _THEIRS.get(_NUMBER.sub("#", module), ())
        ]
        if not published:
            unexpected.append(name)
        for place, part in zip(published, value.chunk(len(published)) if published else (), strict=True):
            theirs[f"{place}.{kind}"] = part.clone()
            for used, unused in _UNUSED.items():
                if place.endswith(used):
                    theirs[f"{place.replace(used, unused)}.{kind}"] = torch.zeros_like(part)
    if "cls.predictions.bias" in theirs:
        theirs[f"{DECODER}.weight"] = theirs["bert.embeddings.word_embeddings.weight"].clone()
    return theirs, unexpected


def missing_modules(theirs: dict[str, Tensor]) -> list[str]:
    """The modules of the reference model, with all its heads, that are missing from a published state dict."""
    modules = {name.rpartition(".")[0] for name in theirs}
    parts = [place for place in _OURS if "#" not in place and place not in modules]
    return list(dict.fromkeys(".".join(place.split(".")[:2]) if place.startswith("cls.") else place for place in parts))
