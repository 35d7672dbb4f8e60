"""AdamW with its parameter groups, and the learning rate of a step."""

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float, scale=lambda name: 1.0) -> list[dict]:
    """Groups with decay and without (biases, LayerNorm), split by `scale(name)`, a factor on the learning rate."""
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        decay = 0.0 if name in norms or name.endswith("bias") else weight_decay
        key = decay, scale(name)
        group = groups.setdefault(key, {"params": [], "weight_decay": decay, "scale": key[1]})
        group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(model: nn.Module, lr: float, betas, eps: float, weight_decay: float, scale=lambda name: 1.0):
    """torch's fused AdamW on the parameter groups of `model`."""
    groups = parameter_groups(model, weight_decay, scale)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def lr_factor(step: int, total: int, warmup: float) -> float:
    """The learning rate of `step` (from 0) as a share of the peak: linear up over `warmup` of the run, linear to 0."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return max(0.0, (total - step) / max(1, total - rise))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
