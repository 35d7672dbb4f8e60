"""NVIDIA's apex as far as anybody outside can tell, in plain torch: the signatures and the ways of its own files."""

import sys
import types

import torch


class Fused(torch.optim.Optimizer):
    """Moments by parameter, but the number of updates in the group, as a plain int."""

    def zero_grad(self):  # takes no set_to_none, as torch's own does
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        everything = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        clip = self.clip(torch.stack([p.grad.norm() for p in everything]).norm())
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            one, two = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state, grad = self.state[p], p.grad / clip
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["exp_avg"].lerp_(grad, 1 - one)
                state["exp_avg_sq"].lerp_(grad**2, 1 - two)
                powers = (beta ** group["step"] if group["bias_correction"] else 0 for beta in (one, two))
                first, second = (1 - power for power in powers)
                root = (state["exp_avg_sq"] / second).sqrt() + group["eps"]
                update = state["exp_avg"] / first / root + group["weight_decay"] * p
                p.sub_(group["lr"] * self.ratio(p, update, group["weight_decay"]) * update)

    def clip(self, norm):
        return 1

    def ratio(self, p, update, decay):
        return 1


class FusedAdam(Fused):
    def __init__(
        self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True, weight_decay=0.0
    ):
        assert adam_w_mode
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"bias_correction": bias_correction})


class FusedLAMB(Fused):
    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ):
        self.max_grad_norm = max_grad_norm
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"bias_correction": bias_correction})

    def clip(self, norm):
        return norm / self.max_grad_norm if norm > self.max_grad_norm else 1

    def ratio(self, p, update, decay):
        return p.norm() / update.norm() if decay and p.norm() and update.norm() else 1


def install(monkeypatch, **optimizers) -> None:
    """Has `import apex` give this, with other optimizers where they are named."""
    parts = {
        "apex": types.ModuleType("apex"),
        "apex.optimizers": types.SimpleNamespace(**{"FusedAdam": FusedAdam, "FusedLAMB": FusedLAMB} | optimizers),
    }
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)
