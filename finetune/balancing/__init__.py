"""Methods that combine the losses or gradients of several tasks into one optimizer step, by the names of --balance."""

from collections.abc import Iterable

from finetune.balancing.base import Balance
from finetune.balancing.gradient_norms import GradNorm
from finetune.balancing.loss_weighting import DynamicWeightAverage, Famo, Sum, Uncertainty
from finetune.balancing.nash_bargaining import NashMtl
from finetune.balancing.torchjd_methods import AlignedMtl, CaGrad, ConFig, PcGrad, UpGrad
from shards.common.plugins import load_plugin, plugins

STEPS = "steps"  # the paper's way: an optimizer step of its own for every task
METHODS: dict[str, type[Balance]] = {
    "sum": Sum,
    "uncertainty": Uncertainty,
    "dwa": DynamicWeightAverage,
    "famo": Famo,
    "gradnorm": GradNorm,
    "nash": NashMtl,
    "pcgrad": PcGrad,
    "cagrad": CaGrad,
    "aligned": AlignedMtl,
    "upgrad": UpGrad,
    "config": ConFig,
}


def balance_names() -> tuple[str, ...]:
    """The values of --balance, those of other packages last."""
    return (STEPS, *METHODS, *(name for name in plugins("balances") if name not in METHODS))


def make_balance(name: str, seed: int) -> Balance | None:
    """A new method of a name in `balance_names`; None for STEPS.

    Raises:
        UserError: the method needs a package that is not installed.
    """
    if name == STEPS:
        return None
    method = METHODS[name] if name in METHODS else load_plugin(plugins("balances")[name])
    return method(seed)


def check_balances(names: Iterable[str]) -> None:
    """Raises UserError if one of the methods needs a package that is not installed, before anything else is read."""
    for name in set(names):
        make_balance(name, seed=0)
