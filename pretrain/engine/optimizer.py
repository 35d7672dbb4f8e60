"""Optimizers, parameter groups and the learning-rate schedule."""

import torch
from torch import Tensor, nn

from pretrain.engine import nvidia_apex

OPTIMIZERS = ("adamw", "apex", "apex_lamb")
MANY_UPDATES = 1_000_000  # 0.999 ** 1e6 is 0, and float32 counts exactly from here up to 16 million


def parameter_groups(model: nn.Module, weight_decay: float, scale=lambda name: 1.0) -> list[dict]:
    """Groups with and without weight decay (biases, LayerNorm), split by `scale(name)`, a learning-rate factor.

    Frozen parameters are skipped.
    """
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if name in norms or name.endswith("bias") else weight_decay
        key = decay, scale(name)
        group = groups.setdefault(key, {"params": [], "weight_decay": decay, "scale": key[1]})
        group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(
    model: nn.Module, lr: float, betas, eps: float, weight_decay: float, scale=lambda name: 1.0, kind: str = "adamw"
) -> torch.optim.Optimizer:
    """torch's fused AdamW on the parameter groups of `model`, or an optimizer of NVIDIA apex; kind: OPTIMIZERS."""
    groups = parameter_groups(model, weight_decay, scale)
    if kind != "adamw":
        return nvidia_apex.fused(kind, groups, lr, betas, eps)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The first and second moments of every updated parameter, by name, and the number of updates."""
    state = {}
    for name, parameter in model.named_parameters():
        if "exp_avg" in optimizer.state.get(parameter, {}):
            kept = optimizer.state[parameter]
            updates = kept.get("step", optimizer.param_groups[0].get("step", 0))  # apex counts per group
            state[f"moment1.{name}"] = kept["exp_avg"].contiguous()
            state[f"moment2.{name}"] = kept["exp_avg_sq"].contiguous()
            state["updates"] = torch.as_tensor(updates, dtype=torch.float32).reshape(()).clone()
    return state


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Restores the state returned by optimizer_state."""
    for name, parameter in model.named_parameters():
        if f"moment1.{name}" in state:
            moments = (state[f"{moment}.{name}"].to(parameter.device) for moment in ("moment1", "moment2"))
            optimizer.state[parameter] = dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))
            if isinstance(optimizer, torch.optim.AdamW):
                optimizer.state[parameter]["step"] = state["updates"].to(parameter.device).clone()
    if "updates" in state and not isinstance(optimizer, torch.optim.AdamW):
        for group in optimizer.param_groups:
            group["step"] = int(state["updates"])


def lr_factor(step: int, total: int, warmup: float) -> float:
    """Learning-rate factor of `step` (from 0): linear warm-up over a share `warmup` of the steps, linear decay to 0."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return max(0.0, (total - step) / max(1, total - rise))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def without_bias_correction(optimizer: torch.optim.AdamW) -> None:
    """Disables the bias correction of a new optimizer's moments, as in the reference implementation.

    torch divides the moments by 1 - beta^updates, which is 1 if updates are counted from a large number.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.tensor(MANY_UPDATES, dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


class ZeroGradients:
    """Fills in zero gradients for parameters that a step does not use and that an earlier step used.

    With them AdamW applies momentum and weight decay to those parameters in every step. The reference implementation
    does so because its zero_grad keeps gradients as zeros; torch's sets them to None, and AdamW skips the parameter.
    Parameters that no step has used yet are skipped either way.
    """

    def __init__(self, model: nn.Module):
        self.unused = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.used: list[nn.Parameter] = []

    def fill(self) -> None:
        """Fills in zeros; to be called between the backward pass and the optimizer step."""
        for parameter in self.used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if first_used := [name for name, parameter in self.unused.items() if parameter.grad is not None]:
            self.used += [self.unused.pop(name) for name in first_used]

    def state(self) -> list[str]:
        """The names of the parameters that no step has used yet."""
        return list(self.unused)

    def restore(self, unused: list[str]) -> None:
        """Restores the state returned by `state`."""
        self.used += [self.unused.pop(name) for name in list(self.unused) if name not in unused]
