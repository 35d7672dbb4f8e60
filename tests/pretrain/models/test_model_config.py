"""Model configuration files: published ones are read, those of another model are refused by the key that differs."""

import json

import pytest

from pretrain.models.model_config import ModelConfig, read_model_config
from shards.common.errors import UserError

# The keys of bert_base_6layer_6conect.json, as published.
PUBLISHED = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "v_feature_size": 2048,
    "v_target_size": 1601,
    "v_hidden_size": 1024,
    "v_num_hidden_layers": 6,
    "v_num_attention_heads": 8,
    "v_intermediate_size": 1024,
    "bi_hidden_size": 1024,
    "bi_num_attention_heads": 8,
    "bi_intermediate_size": 1024,
    "bi_attention_type": 1,
    "v_attention_probs_dropout_prob": 0.1,
    "v_hidden_act": "gelu",
    "v_hidden_dropout_prob": 0.1,
    "v_initializer_range": 0.02,
    "v_biattention_id": [0, 1, 2, 3, 4, 5],
    "t_biattention_id": [6, 7, 8, 9, 10, 11],
    "pooling_method": "mul",
}

# What the published code adds when it writes a configuration, with the values that change nothing.
HARMLESS = {
    "model": "bert",
    "with_coattention": True,
    "dynamic_attention": False,
    "in_batch_pairs": False,
    "fixed_t_layer": 0,
    "fixed_v_layer": 0,
    "fusion_method": "mul",
    "fast_mode": False,
    "visual_target": 0,
    "visualization": False,
    "objective": 0,
    "num_negative": 128,
    "task_specific_tokens": True,
}


@pytest.fixture
def write(tmp_path):
    """Writes a configuration file: write(values) -> its path."""

    def written(values: dict) -> str:
        path = tmp_path / "sizes.json"
        path.write_text(json.dumps(values))
        return str(path)

    return written


@pytest.mark.parametrize("values", [PUBLISHED, PUBLISHED | HARMLESS], ids=["published", "harmless"])
def test_the_published_configuration_is_the_default(write, values):
    assert read_model_config(write(values)) == ModelConfig()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dynamic_attention", True),
        ("with_coattention", False),
        ("model", "roberta"),
        ("in_batch_pairs", True),
        ("fixed_t_layer", 2),
        ("fixed_v_layer", 1),
        ("layer_norm_eps", 1e-5),
        ("hidden_act", "relu"),
        ("model_size", "large"),  # an unknown key, though it begins as a known one does
    ],
)
def test_keys_that_change_the_model_are_refused_by_name(write, key, value):
    path = write(PUBLISHED | HARMLESS | {key: value})
    with pytest.raises(UserError, match=rf"^{path}: {key} ") as refused:
        read_model_config(path)
    assert "\n" not in str(refused.value)


def test_the_key_that_changes_the_model_is_named_before_unknown_ones(write):
    """A RoBERTa configuration has keys of Hugging Face's that are in no other published file."""
    with pytest.raises(
        UserError, match=r'model "roberta" \(another text encoder\) is not supported; it must be "bert"'
    ):
        read_model_config(write({"finetuning_task": None, "num_labels": 2} | PUBLISHED | {"model": "roberta"}))


def test_single_stream_models_are_refused(write):
    """Their files have sizes of the regions' features and none of an image stream; base's would take their place."""
    kept = ("v_feature_size", "v_target_size")
    text = {key: value for key, value in PUBLISHED.items() if key in kept or not key.startswith(("v_", "bi_", "t_"))}
    with pytest.raises(UserError, match=r"v_hidden_size, .*bi_hidden_size, .* not found; .*single-stream models are"):
        read_model_config(write(text))
    for key in ("v_num_hidden_layers", "t_biattention_id"):
        with pytest.raises(UserError, match=f": {key} not found"):
            read_model_config(write({name: value for name, value in PUBLISHED.items() if name != key}))


def test_a_command_refuses_them_too(write, dataset_folder, tmp_path, run_command):
    path = write(PUBLISHED | {"dynamic_attention": True})
    flags = ("--data", dataset_folder, "--out", tmp_path / "run", "--workers", 0)
    status, _, err = run_command("pretrain.run", *flags, "--config", path)
    assert status == 2 and f"{path}: dynamic_attention true (" in err and err.count("\n") == 1
