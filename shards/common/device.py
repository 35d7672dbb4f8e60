"""The device of a rank."""

import torch

from shards.common.dist_info import Ranks
from shards.common.errors import UserError


def choose_device(name: str, ranks: Ranks) -> torch.device:
    """The device of this rank: the CPU, or the GPU with its local rank."""
    found = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cuda" and not found:
        raise UserError("--device cuda: no GPU available to torch; use --device cpu")
    if not found:
        return torch.device("cpu")
    if ranks.local >= found:
        raise UserError(f"this machine has {found} GPUs, fewer than ranks; use --nproc-per-node {found}")
    return torch.device("cuda", ranks.local)
