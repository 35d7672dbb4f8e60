"""python -m pretrain.convert SOURCE --out RUN: converts published weights to a run, or (--to published) the reverse."""

import torch

from pretrain.config import ConvertConfig
from pretrain.models.vilbert import TwoStream
from pretrain.pretrained.export import write_published, write_run
from pretrain.pretrained.find_weights import BERT, RUN, describe_keys, find_weights, take_weights
from shards.common.cli import command
from shards.common.errors import UserError


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
        print(f"{config.source}: {describe_keys([], unexpected)}")
    (write_run if config.to == "run" else write_published)(config, found, weights)


EXAMPLES = (
    "python -m pretrain.convert multi_task_model.bin --out runs/published",
    "python -m pretrain.convert runs/pretrain --to published --out pretrained.safetensors",
)


if __name__ == "__main__":
    command(
        ConvertConfig, run, "pretrain.convert", "Convert published weights to a run, or the reverse.", examples=EXAMPLES
    )
