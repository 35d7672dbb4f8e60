"""Optimizers, parameter groups and the learning-rate schedule."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pretrain.engine import nvidia_apex

GROUP_STEP = "group_step"
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


def adamw(groups: list[dict], lr: float, betas, eps: float, bias_correction: bool) -> torch.optim.Optimizer:
    """torch's fused AdamW."""
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    if not bias_correction:
        without_bias_correction(optimizer)
    return optimizer


# Name -> function of (parameter groups, learning rate, betas, epsilon, bias_correction), without bias correction as in
# the reference implementation's fine-tuning. Adding an optimizer takes a function and a line here.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": adamw,
    "apex": nvidia_apex.fused_adam,
    "apex_lamb": nvidia_apex.fused_lamb,
}


def make_optimizer(
    model: nn.Module,
    lr: float,
    betas,
    eps: float,
    weight_decay: float,
    scale=lambda name: 1.0,
    kind: str = "adamw",
    bias_correction: bool = True,
) -> torch.optim.Optimizer:
    """The optimizer of the name `kind` in OPTIMIZERS, on the parameter groups of `model`."""
    return OPTIMIZERS[kind](parameter_groups(model, weight_decay, scale), lr, betas, eps, bias_correction)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """KEY/PARAMETER -> every tensor that the optimizer keeps for a parameter; they are not copied.

    Also group_step/NUMBER, the number of updates of a parameter group, for optimizers that count them there (apex).

    Raises:
        TypeError: the optimizer keeps something other than tensors, which would be lost when a run is resumed.
    """
    state = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                kind = type(optimizer).__name__
                raise TypeError(f"{kind} keeps {key}, a {type(value).__name__}; only tensors can be stored")
            state[f"{key}/{name}"] = value.detach()
    for number, group in enumerate(optimizer.param_groups):
        if "step" in group:
            state[f"{GROUP_STEP}/{number}"] = torch.tensor(int(group["step"]))
    return state


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Restores the state returned by optimizer_state, also that of a checkpoint of version 0.1."""
    kept: dict[str, dict[str, Tensor]] = {}
    for name, value in _of_this_version(state, optimizer).items():
        key, _, owner = name.partition("/")
        kept.setdefault(owner, {})[key] = value
    whole, numbers = optimizer.state_dict(), {}
    for group, own in zip(whole["param_groups"], optimizer.param_groups, strict=True):
        numbers |= dict(zip(map(id, own["params"]), group["params"], strict=True))
    whole["state"] = {
        numbers[id(parameter)]: kept[name]
        for name, parameter in model.named_parameters()
        if name in kept and id(parameter) in numbers
    }
    for number, group in enumerate(whole["param_groups"]):
        if str(number) in kept:
            group["step"] = int(kept[str(number)][GROUP_STEP])
    optimizer.load_state_dict(whole)


def _of_this_version(state: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Version 0.1 stored moment1.PARAMETER, moment2.PARAMETER and `updates`, one number for all parameters."""
    if "updates" not in state:
        return state
    updates, found = state["updates"], {}
    for name, value in state.items():
        for old, key in (("moment1.", "exp_avg"), ("moment2.", "exp_avg_sq")):
            if name.startswith(old):
                found[f"{key}/{name.removeprefix(old)}"] = value
        if name.startswith("moment1.") and isinstance(optimizer, torch.optim.AdamW):
            found[f"step/{name.removeprefix('moment1.')}"] = updates.clone()
    if not isinstance(optimizer, torch.optim.AdamW):
        found |= {f"{GROUP_STEP}/{number}": updates for number in range(len(optimizer.param_groups))}
    return found


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
