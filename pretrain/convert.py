"""python -m pretrain.convert SOURCE --out RUN: converts published weights to a run, or (--to published) the reverse."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from pretrain.engine.checkpoint import best_checkpoint, save_weights
from pretrain.engine.run_dir import CONFIG, clear_run, locked_run
from pretrain.models.model_config import ModelConfig
from pretrain.models.vilbert import TwoStream
from pretrain.pretrained.find_weights import BERT, RUN, Weights, describe, find_weights, listed, take_weights
from pretrain.pretrained.state_dict_mapping import missing_modules, to_published
from pretrain.tokenizer.tokenizer import FILE as TOKENIZER_FILE
from shards.common.cli import REQUIRED, command, flag
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.common.files import whole_file, write_json

FORMS = ("run", "published")


@dataclass
class ConvertConfig:
    """Flags of pretrain.convert."""

    source: str = flag(REQUIRED, "published weights, or a run directory", first=True)
    out: str = flag(REQUIRED, "new run directory, or (--to published) output file, .bin or .safetensors", written=True)
    to: str = flag("run", "output format", choices=FORMS)
    config: str | None = flag(
        None,
        "model configuration of published weights: a JSON file, base or tiny",
        unset="the JSON file next to the weights, or base",
    )
    tokenizer: str | None = flag(
        None,
        "tokenizer of published weights: directory of a BERT, vocab.txt, or a hub name",
        unset="the tokenizer next to the weights, or bert-base-uncased",
    )


def run(config: ConvertConfig) -> None:
    """Converts the weights, after checking that no key of the encoder is missing."""
    found = find_weights(config.source, config.config)
    if found.kind == BERT:
        raise UserError(
            f"{config.source}: is a BERT, which needs no conversion; use it with --init (finetune) or --bert (pretrain)"
        )
    if found.kind == RUN and config.to == "run":
        raise UserError(
            f"{config.source}: is already a run; use --to published to write weights for the reference implementation"
        )
    weights, unexpected = found.read()
    encoder = {name: value for name, value in weights.items() if name.startswith("encoder.")}
    take_weights(torch.nn.ModuleDict({"encoder": TwoStream(found.sizes)}), encoder, config.source, ())
    if unexpected:
        print(f"{config.source}: {describe([], unexpected)}")
    (_write_run if config.to == "run" else _write_published)(config, found, weights)


def _write_run(config: ConvertConfig, found: Weights, weights: dict[str, torch.Tensor]) -> None:
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


def _write_published(config: ConvertConfig, found: Weights, weights: dict[str, torch.Tensor]) -> None:
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


if __name__ == "__main__":
    command(ConvertConfig, run, "pretrain.convert", "Convert published weights to a run, or the reverse.")
