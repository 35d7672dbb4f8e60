"""Parameters that a step does not use: skipped, or updated by momentum and weight decay as the reference does."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from pretrain.engine.optimizer import without_bias_correction
from pretrain.engine.step import MetricSums, make_engine
from pretrain.models.precision import Precision
from shards.common.dist_info import ALONE

BETAS, EPSILON, DECAY, LR = (0.9, 0.999), 1e-6, 0.1, 1e-3
TASKS = tuple("abcdefghijkl")


class Heads(nn.Module):
    """A trunk with twelve heads of which a batch uses one, as Engine takes it."""

    def __init__(self, precision="float64"):
        super().__init__()
        torch.manual_seed(0)
        weights = torch.float64 if precision == "float64" else torch.float32
        self.model = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("trunk", *TASKS)}).to(weights)
        self.precision = Precision(precision, torch.device("cpu"))

    def forward(self, part, denominators=()):
        head, x = part
        return self.model[head](self.model["trunk"](x)).square().sum(), {}

    def task_of(self, part) -> str:
        return part[0]


def engine_of(training_pass, update_unused):
    optimizer = torch.optim.AdamW(training_pass.model.parameters(), LR, BETAS, EPSILON, DECAY, fused=True)
    without_bias_correction(optimizer)
    return make_engine(training_pass, optimizer, ALONE, clip=0.0, all_used=False, update_unused=update_unused)


def batches(count, dtype=torch.float64):
    """(task, input) of so many steps, round robin; the fifth task joins in the second round."""
    generator = torch.Generator().manual_seed(1)
    steps = [(TASKS[n % 12], torch.randn(4, 3, generator=generator, dtype=dtype)) for n in range(count)]
    return [step for n, step in enumerate(steps) if n != 4]


def reference(training_pass, steps) -> None:
    """AdamW without bias correction, one parameter at a time; gradients are set to zero and not to None."""
    moments = {parameter: [torch.zeros_like(parameter)] * 2 for parameter in training_pass.model.parameters()}
    for part in steps:
        training_pass(part)[0].backward()
        with torch.no_grad():
            for parameter, (m, v) in moments.items():
                if parameter.grad is None:
                    continue
                m = BETAS[0] * m + (1 - BETAS[0]) * parameter.grad
                v = BETAS[1] * v + (1 - BETAS[1]) * parameter.grad**2
                moments[parameter] = [m, v]
                parameter -= LR * DECAY * parameter
                parameter -= LR * m / (v.sqrt() + EPSILON)
                parameter.grad.zero_()


def test_unused_parameters_move_and_decay_as_in_the_reference_implementation():
    mine, theirs = Heads(), Heads()
    engine, steps = engine_of(mine, update_unused=True), batches(100)
    for number, part in enumerate(steps):
        engine.step(number, [part], MetricSums())
    reference(theirs, steps)
    for name, value in theirs.model.state_dict().items():
        torch.testing.assert_close(mine.model.state_dict()[name], value, rtol=0, atol=1e-10, msg=name)


def test_a_parameter_is_skipped_until_a_step_has_used_it():
    training_pass = Heads()
    engine, before = engine_of(training_pass, update_unused=True), copy.deepcopy(Heads().model.state_dict())
    for number in range(3):
        engine.step(number, [("a", torch.ones(2, 3, dtype=torch.float64))], MetricSums())
    moved = {
        name.split(".")[0] for name, value in training_pass.model.state_dict().items() if not value.equal(before[name])
    }
    assert moved == {"trunk", "a"}
    assert engine.state()["unused_parameters"] == [f"{t}.{part}" for t in TASKS[1:] for part in ("weight", "bias")]


def test_without_the_flag_only_what_a_step_uses_is_updated():
    training_pass = Heads()
    engine = engine_of(training_pass, update_unused=False)
    engine.step(0, [("a", torch.ones(2, 3, dtype=torch.float64))], MetricSums())
    kept = copy.deepcopy(training_pass.model["a"].state_dict())
    engine.step(1, [("b", torch.ones(2, 3, dtype=torch.float64))], MetricSums())
    assert all(kept[name].equal(value) for name, value in training_pass.model["a"].state_dict().items())
    assert "unused_parameters" not in engine.state()


@pytest.mark.parametrize("cut", [3, 14])
def test_a_restored_engine_gives_the_same_numbers(cut):
    """Cut before all tasks have had a step, and after."""
    whole, first, then, steps = Heads(), Heads(), Heads(), batches(30)
    engine = engine_of(whole, update_unused=True)
    for number, part in enumerate(steps):
        engine.step(number, [part], MetricSums())
    engine = engine_of(first, update_unused=True)
    for number, part in enumerate(steps[:cut]):
        engine.step(number, [part], MetricSums())
    then.model.load_state_dict(first.model.state_dict())
    again = engine_of(then, update_unused=True)
    again.optimizer.load_state_dict(engine.optimizer.state_dict())
    again.restore(json.loads(json.dumps(engine.state())))
    for number, part in enumerate(steps[cut:], cut):
        again.step(number, [part], MetricSums())
    assert all(value.equal(whole.model.state_dict()[name]) for name, value in then.model.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_skipped_step_does_not_move_unused_parameters(precision):
    training_pass = Heads(precision)
    engine = engine_of(training_pass, update_unused=True)
    for number, part in enumerate(batches(40, torch.float32)):
        engine.step(number, [part], MetricSums())
    before = copy.deepcopy(training_pass.model.state_dict())
    engine.step(40, [("a", torch.full((2, 3), math.inf))], MetricSums())
    assert all(value.equal(before[name]) for name, value in training_pass.model.state_dict().items())


def test_a_head_of_one_task_in_twelve_moves_further():
    """Momentum carries it on through the eleven other steps: between once and sqrt(12) times as far."""
    moved = {}
    for update_unused in (False, True):
        training_pass = Heads()
        start = training_pass.model["a"].weight.detach().clone()
        engine = engine_of(training_pass, update_unused)
        for number in range(12 * 40):
            x = torch.ones(1, 3, dtype=torch.float64)
            engine.step(number, [(TASKS[number % 12], x)], MetricSums())
        moved[update_unused] = (training_pass.model["a"].weight - start).norm().item()
    assert 1.1 < moved[True] / moved[False] < math.sqrt(12)
