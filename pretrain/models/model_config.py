"""The configuration of the two-stream model, with the keys of the reference implementation's JSON files."""

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any

from shards.common.errors import UserError
from shards.common.files import read_json
from shards.common.untrusted_input import is_number, shown

MOST, MOST_LAYERS = 1_000_000, 1000  # upper bounds on sizes, and on layer counts and numbers


@dataclass(frozen=True)
class ModelConfig:
    """Model sizes; keys without a prefix belong to the text stream, v_ to the image stream, bi_ to co-attention.

    The defaults are those of bert_base_6layer_6conect.json of the reference implementation, which lacks the last four.
    An instance with impossible sizes raises UserError.

    Attributes:
        vocab_size: number of tokens of the tokenizer.
        hidden_size, v_hidden_size: size of the hidden states, a multiple of the number of heads.
        num_hidden_layers, v_num_hidden_layers: self-attention layers of the stream.
        num_attention_heads, v_num_attention_heads: heads of these layers.
        intermediate_size, v_intermediate_size: hidden size of their feed-forward part.
        hidden_dropout_prob, v_hidden_dropout_prob: dropout on the outputs of layers and on embeddings.
        attention_probs_dropout_prob, v_attention_probs_dropout_prob: dropout on attention probabilities.
        max_position_embeddings: maximum number of tokens of a text.
        type_vocab_size: number of segments of a text.
        initializer_range: standard deviation of the initial weights.
        v_feature_size: size of region features.
        v_target_size: number of region classes; of the paper's detector 1,601 with the background.
        bi_hidden_size: size of the co-attention layers and of the pooled vectors.
        bi_num_attention_heads: heads of the co-attention layers.
        t_biattention_id, v_biattention_id: for each co-attention layer, in ascending order, how many layers of the
            text stream and of the image stream come before it.
        fusion_method: "mul" or "sum", how the two pooled vectors are fused.
        fusion_dropout_prob: dropout on the fused vector, a constant in the reference implementation.
        task_tokens: number of task tokens in the text embedding; 0 for a model without them.
        v_feature_dropout: dropout on region features before they are embedded.
        contrastive_size: size of the text and image embeddings (see contrastive.py); 0 for a model without them.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    v_feature_size: int = 2048
    v_target_size: int = 1601
    v_hidden_size: int = 1024
    v_num_hidden_layers: int = 6
    v_num_attention_heads: int = 8
    v_intermediate_size: int = 1024
    v_hidden_dropout_prob: float = 0.1
    v_attention_probs_dropout_prob: float = 0.1
    bi_hidden_size: int = 1024
    bi_num_attention_heads: int = 8
    v_biattention_id: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    t_biattention_id: tuple[int, ...] = (6, 7, 8, 9, 10, 11)
    fusion_method: str = "mul"
    fusion_dropout_prob: float = 0.1
    task_tokens: int = 0
    v_feature_dropout: float = 0.0
    contrastive_size: int = 0

    def __post_init__(self) -> None:
        for size, heads in (
            ("hidden_size", "num_attention_heads"),
            ("v_hidden_size", "v_num_attention_heads"),
            ("bi_hidden_size", "bi_num_attention_heads"),
        ):
            if getattr(self, size) % getattr(self, heads):
                raise UserError(
                    f"model config: {size} {getattr(self, size)} is not a multiple of {heads} {getattr(self, heads)}"
                )
        if len(self.v_biattention_id) != len(self.t_biattention_id):
            raise UserError("model config: v_biattention_id and t_biattention_id must have the same length")
        for ids, layers in (
            ("v_biattention_id", self.v_num_hidden_layers),
            ("t_biattention_id", self.num_hidden_layers),
        ):
            places = getattr(self, ids)
            if list(places) != sorted(places) or any(not 0 <= place <= layers for place in places):
                raise UserError(f"model config: {ids} {list(places)} must be ascending and between 0 and {layers}")
        if self.fusion_method not in ("mul", "sum"):
            raise UserError(f"model config: fusion_method {self.fusion_method} must be mul or sum")

    def with_dropout(self, probability: float) -> "ModelConfig":
        """A copy with all dropout probabilities set to `probability`."""
        names = [field.name for field in dataclasses.fields(self) if field.name.endswith("dropout_prob")]
        return self.replace(**dict.fromkeys(names, probability))

    def to_dict(self) -> dict[str, Any]:
        """The values by name, as JSON has them: tuples are lists."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with other values."""
        return dataclasses.replace(self, **changes)


# Small enough for a laptop CPU, with every component of the base model.
TINY = ModelConfig(
    vocab_size=1000,
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=256,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    v_hidden_dropout_prob=0.0,
    v_attention_probs_dropout_prob=0.0,
    max_position_embeddings=256,
    initializer_range=0.05,
    v_hidden_size=128,
    v_num_hidden_layers=2,
    v_num_attention_heads=4,
    v_intermediate_size=256,
    bi_hidden_size=128,
    bi_num_attention_heads=4,
    v_biattention_id=(0, 1),
    t_biattention_id=(1, 2),
)

CONFIGS = {"base": ModelConfig(), "tiny": TINY}

# Keys of the reference implementation that are ignored: it does not use them either, or they concern speed,
# initialisation or the pretraining objective (which the flags of pretrain.run set).
_IGNORED = {
    *("pooling_method", "bi_attention_type", "bi_intermediate_size", "v_initializer_range"),
    *("fast_mode", "visual_target", "visualization", "objective", "num_negative", "task_specific_tokens"),
}

# Keys of the reference implementation that select another model -> (the supported value, the meaning of other values).
_FIXED = {
    "hidden_act": ("gelu", "another activation function"),
    "v_hidden_act": ("gelu", "another activation function"),
    "layer_norm_eps": (1e-12, "another LayerNorm epsilon"),
    "model": ("bert", "another text encoder"),
    "model_type": ("bert", "another text encoder"),
    "with_coattention": (True, "two streams without co-attention"),
    "dynamic_attention": (False, "image attention gated by the text"),
    "in_batch_pairs": (False, "all captions paired with all images of a batch"),
    "fixed_t_layer": (0, "frozen text layers"),
    "fixed_v_layer": (0, "frozen image layers"),
}

# Required keys: a file without them describes a single-stream model, and the defaults of the reference implementation
# differ from ours.
_REQUIRED = (
    *("v_hidden_size", "v_num_hidden_layers", "v_num_attention_heads", "v_intermediate_size"),
    *("bi_hidden_size", "bi_num_attention_heads", "v_biattention_id", "t_biattention_id"),
)


def read_model_config(name: str) -> ModelConfig:
    """Reads a configuration by name (base, tiny) or from a JSON file."""
    if name in CONFIGS:
        return CONFIGS[name]
    if not os.path.exists(name):
        raise UserError(f"--config {name}: must be {', '.join(CONFIGS)} or an existing JSON file")
    return model_config_from(read_json(name), name)


def _check_size(key: str, value: object, where: str) -> None:
    """Raises UserError for invalid values, such as a probability above 1, 0 heads or millions of layers."""
    least = min(1, getattr(ModelConfig, key)) if isinstance(value, int) else 0  # a default of 0 makes it optional
    most = MOST_LAYERS if key.endswith("num_hidden_layers") else MOST
    if isinstance(value, float) and not is_number(value, 0, 1):
        raise UserError(f"{where}: {key} is {value}; must be between 0 and 1")
    if isinstance(value, int) and not is_number(value, least, most):
        raise UserError(f"{where}: {key} is {shown(value)}; must be between {least} and {most}")
    if isinstance(value, tuple) and not all(type(place) is int and 0 <= place <= MOST_LAYERS for place in value):
        raise UserError(f"{where}: {key} is {shown(list(value))}; must be a list of layer numbers")


def model_config_from(values: dict[str, Any], where: str) -> ModelConfig:
    """Builds a configuration from the content of a JSON file.

    Args:
        values: the keys of a file of the reference implementation, or `model` of a run's config.json.
        where: the file name, for error messages.

    Raises:
        UserError: a key is unknown, has the wrong type or an unsupported value, or the keys of the image stream or of
            co-attention are missing.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be a JSON object of model sizes")
    for key, (supported, meaning) in _FIXED.items():
        if key in values and values[key] != supported:
            found, wanted = json.dumps(values[key]), json.dumps(supported)
            raise UserError(f"{where}: {key} {found} ({meaning}) is not supported; it must be {wanted}")
    if missing := [key for key in _REQUIRED if key not in values]:
        raise UserError(
            f"{where}: {', '.join(missing)} not found; the file must describe a two-stream model, "
            "single-stream models are not supported"
        )
    known = {field.name: field for field in dataclasses.fields(ModelConfig)}
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if key in known:
            kind = type(known[key].default)
            value = tuple(value) if kind is tuple and isinstance(value, list) else value
            value = float(value) if kind is float and type(value) is int else value
            if type(value) is not kind:
                raise UserError(f"{where}: {key} is {shown(value)}; must be of type {kind.__name__}")
            _check_size(key, value, where)
            chosen[key] = value
        elif key not in _IGNORED and key not in _FIXED:
            raise UserError(f"{where}: {key} is not a key of the model configuration")
    return ModelConfig(**chosen)
