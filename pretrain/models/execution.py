"""How the two streams are computed: the flags that training commands share."""

import torch

from pretrain.models.vilbert import TwoStream


def set_execution(encoder: TwoStream, config) -> None:
    """Applies --activation_checkpointing, --compile and --tf32. config: flags of pretrain.run, finetune.st or mt."""
    encoder.activation_checkpointing = config.activation_checkpointing
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    if config.compile:
        encoder.compile(dynamic=True)
