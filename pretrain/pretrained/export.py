"""Writes weights as a run, or as a state dict for the reference implementation."""

import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from pretrain.config import ConvertConfig
from pretrain.engine.checkpoint import best_checkpoint, save_weights
from pretrain.engine.run_dir import CONFIG, clear_run, locked_run
from pretrain.models.model_config import ModelConfig
from pretrain.pretrained.find_weights import Weights, listed
from pretrain.pretrained.state_dict_mapping import missing_modules, to_published
from pretrain.tokenizer.tokenizer import FILE as TOKENIZER_FILE
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.common.files import whole_file, write_json


def write_run(config: ConvertConfig, found: Weights, weights: dict[str, torch.Tensor]) -> None:
    out = Path(config.out)
    with locked_run(out, "pretrain.convert", ALONE):
        if best_checkpoint(out) is not None:
            raise UserError(f"{out}: already contains a run; use another --out")
        tokenizer = found.load_tokenizer(config.tokenizer)
        clear_run(out)
        tokenizer.save(out)
        source = {"model": found.sizes.to_dict(), "heads": found.heads, "source": os.path.abspath(config.source)}
        write_json(out / CONFIG, {"flags": {}} | source)
        save_weights(out, weights)
    print(f"{out}: {len(weights)} tensors; initialise a model from it with --init {out}")


def write_published(config: ConvertConfig, found: Weights, weights: dict[str, torch.Tensor]) -> None:
    out = Path(config.out)
    if out.suffix not in (".bin", ".safetensors"):
        raise UserError(f"--out {out}: must end in .bin or .safetensors")
    tokenizer = found.load_tokenizer(config.tokenizer) if config.tokenizer or found.has_tokenizer else None
    if tokenizer and (out.parent / TOKENIZER_FILE).exists() and not tokenizer.is_saved(out.parent):
        raise UserError(f"--out {out}: {out.parent} contains a different {TOKENIZER_FILE}; use another folder")
    theirs, unexpected = to_published(weights)
    with whole_file(out) as file:
        if out.suffix == ".bin":
            torch.save(theirs, file)
        else:
            save_file(theirs, file.name)
    write_json(out.with_suffix(".json"), published_config(found.sizes))
    saved = ""
    if tokenizer:
        tokenizer.save(out.parent)
        saved = f", tokenizer in {out.parent / TOKENIZER_FILE}"
    sizes = out.with_suffix(".json")
    print(f"{out}: {len(theirs)} tensors with published names, model configuration in {sizes}{saved}")
    missing = missing_modules(theirs)
    if unexpected:
        print(f"{out}: skipped parameters that the reference implementation lacks: {listed(unexpected)}")
    if missing:
        print(
            f"{out}: missing parameters, which the reference implementation initialises randomly: {', '.join(missing)}"
        )


def published_config(sizes: ModelConfig) -> dict:
    """The configuration with the keys of the reference implementation's JSON files."""
    ours = ("fusion_dropout_prob", "task_tokens", "v_feature_dropout", "contrastive_size")
    return {key: value for key, value in sizes.to_dict().items() if key not in ours} | {
        "hidden_act": "gelu",
        "v_hidden_act": "gelu",
        "v_initializer_range": sizes.initializer_range,
        "bi_intermediate_size": sizes.bi_hidden_size,
        "bi_attention_type": 1,
    }
