"""Every method against a slow version on two quadratics, its equivalence for one task, and its state."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from slow_balancing import COMBINED, TOLERANCES, slow_method

from finetune.balancing import METHODS, STEPS, balance_names, make_balance
from finetune.balancing.base import GradientCombination, LossWeighting, TaskSteps
from shards.common.errors import UserError

CENTRES = torch.tensor([[1.0, 0.2, -0.4], [-0.7, 0.9, 0.5]], dtype=torch.float64)
CURVES = torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.3, 1.0]], dtype=torch.float64)
COMBINATIONS = [name for name, method in METHODS.items() if issubclass(method, GradientCombination)]
WEIGHTINGS = [name for name, method in METHODS.items() if issubclass(method, LossWeighting)]


def losses(x: torch.Tensor) -> torch.Tensor:
    """The two quadratics, which disagree between their centres."""
    return (CURVES * (x - CENTRES) ** 2).sum(1) / 2 + 0.1


def gradients(x: torch.Tensor) -> torch.Tensor:
    return CURVES * (x - CENTRES)


def torchjd():
    return pytest.importorskip("torchjd", reason="TorchJD, an extra, is not installed")


def steps(x: torch.Tensor, number: int = 0, names=("a", "b")) -> TaskSteps:
    rows = gradients(x)[: len(names)]
    return TaskSteps(number, names, losses(x)[: len(names)].tolist(), rows @ rows.T)


OF_TORCHJD = set(COMBINED) - {"nash"}


@pytest.mark.parametrize("name", COMBINED)
@pytest.mark.parametrize("place", [(0.1, 0.4, 0.0), (2.0, 1.0, 1.0)], ids=["in conflict", "not in conflict"])
def test_combined_gradients_are_those_of_a_slow_version(name, place):
    if name in OF_TORCHJD:
        torchjd()
    x = torch.tensor(place, dtype=torch.float64)
    rows = gradients(x)
    assert (rows[0] @ rows[1] < 0) == (place[0] < 1)
    tolerance = TOLERANCES.get(name, 1e-6)
    weights = make_balance(name, seed=0).weights(steps(x))
    np.testing.assert_allclose(weights @ rows, COMBINED[name](rows.numpy()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_descent_is_that_of_a_slow_version(name):
    """The weights of dynamic weight average change after 40 iterations; by then combined gradients nearly cancel."""
    if name in OF_TORCHJD:
        torchjd()
    slow, x, weighted = slow_method(name, 2), torch.zeros(3, dtype=torch.float64), False
    tolerance = TOLERANCES.get(name, 1e-6)
    for weights in descend(name, 20 if name in COMBINED else 61):
        direction, _ = slow.direction(losses(x), gradients(x))
        ours = torch.tensor(weights, dtype=torch.float64) @ gradients(x)
        np.testing.assert_allclose(ours, direction, rtol=tolerance, atol=tolerance)
        weighted = weighted or not torch.allclose(ours, gradients(x).sum(0))
        before, x = x, x - 0.1 * ours
        slow.after(losses(before), losses(x))
    assert weighted == (name != "sum")


def test_nash_mtl_is_solved_for_twelve_tasks_and_for_gradients_that_cancel():
    rows = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100  # of rank 3
    method = make_balance("nash", seed=0)
    method.LARGEST_NORM = math.inf
    for gramian in (rows @ rows.T, torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)):
        weights = method.weights(TaskSteps(0, "abcdefghijkl"[: len(gramian)], (), gramian))
        ridge = method.RIDGE * gramian.diagonal().mean() * torch.eye(len(gramian), dtype=torch.float64)
        assert (weights > 0).all()
        torch.testing.assert_close((gramian + ridge) @ weights, 1 / weights, rtol=1e-6, atol=0)


def test_the_order_of_pcgrad_is_a_function_of_seed_and_iteration():
    torchjd()
    rows = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))  # many conflicts

    def weights(seed: int, number: int) -> list[float]:
        return make_balance("pcgrad", seed).weights(TaskSteps(number, "abcde", (), rows @ rows.T)).tolist()

    before = torch.random.get_rng_state()
    assert weights(0, 3) == weights(0, 3)
    assert weights(0, 3) != weights(0, 4) and weights(0, 3) != weights(1, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def descend(name: str, count: int) -> list[list[float]]:
    """The weights of `count` iterations of gradient descent by a method on the losses."""
    method, x, found = make_balance(name, seed=0), torch.zeros(3, dtype=torch.float64), []
    for number in range(count):
        now = steps(x, number)
        weights = torch.as_tensor(method.weights(now), dtype=torch.float64)
        x = x - 0.1 * weights @ gradients(x)
        if isinstance(method, LossWeighting):
            method.observe(now, losses(x).tolist())
        found.append(weights.tolist())
    return found


def test_uncertainty_weighting_is_that_of_torchjd_with_adam():
    torchjd()
    from torchjd.scalarization import UW

    theirs, x = UW(2).double(), torch.zeros(3, dtype=torch.float64)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.025)
    for weights in descend("uncertainty", 30):
        values = losses(x).requires_grad_()
        optimizer.zero_grad()
        theirs(values).backward()
        np.testing.assert_allclose(weights, values.grad, rtol=1e-12)
        optimizer.step()
        x = x - 0.1 * values.grad @ gradients(x)


def test_famo_is_that_of_torchjd():
    torchjd()
    from torchjd.scalarization import FAMO

    theirs, x = FAMO(2).double(), torch.zeros(3, dtype=torch.float64)
    for weights in descend("famo", 30):
        values = losses(x).requires_grad_()
        theirs(values).backward()
        np.testing.assert_allclose(weights, values.grad, rtol=1e-8)
        x = x - 0.1 * values.grad @ gradients(x)
        theirs.update(losses(x))


def test_dynamic_weight_average_is_that_of_torchjd():
    torchjd()
    from torchjd.scalarization import DWA

    theirs, x = DWA(), torch.zeros(3, dtype=torch.float64)
    found = descend("dwa", 61)
    for number, weights in enumerate(found):
        values = losses(x).requires_grad_()
        theirs(values).backward()
        np.testing.assert_allclose(weights, values.grad, rtol=1e-12)
        x = x - 0.1 * values.grad @ gradients(x)
        if number % 20 == 19:
            theirs.step()
    assert found[39] == [1, 1] and found[40] != [1, 1] and found[60] != found[40]


ONE_TASK = {  # name -> weight of a single task with a gradient of this norm
    "sum": lambda norm: 1,
    "dwa": lambda norm: 1,
    "famo": lambda norm: 1,
    "gradnorm": lambda norm: 1,
    "pcgrad": lambda norm: 1,
    "aligned": lambda norm: 1,
    "upgrad": lambda norm: 1,
    "config": lambda norm: 1,
    "uncertainty": lambda norm: 0.5,
    "cagrad": lambda norm: 1 + 0.4,
    "nash": lambda norm: 1 / norm,
}
EXACT = {"sum", "dwa", "gradnorm", "pcgrad"}  # methods that add no arithmetic for one task


@pytest.mark.parametrize("name", METHODS)
def test_the_weight_of_a_single_task(name):
    if name in OF_TORCHJD:
        torchjd()
    x = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    norm = gradients(x)[0].norm().item()
    method = make_balance(name, seed=0)
    [weight] = torch.as_tensor(method.weights(steps(x, names=("a",)))).tolist()
    expected = ONE_TASK[name](norm)
    assert weight == expected if name in EXACT else weight == pytest.approx(expected, rel=1e-6)


def test_uncertainty_weighting_of_one_task_tends_to_half_of_the_inverse_loss():
    method = make_balance("uncertainty", seed=0)
    for number in range(2000):
        method.observe(TaskSteps(number, ("a",), (0.25,)), ())
    assert method.weights(TaskSteps(0, ("a",)))[0] == pytest.approx(1 / (2 * 0.25), rel=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_continues_from_its_state_as_json(name):
    if name in OF_TORCHJD:
        torchjd()
    whole, parts, x = make_balance(name, seed=5), make_balance(name, seed=5), torch.zeros(3, dtype=torch.float64)
    for number in range(45):
        if number == 43:
            state = json.loads(json.dumps(parts.state()))
            parts = make_balance(name, seed=5)
            parts.restore(state)
        names = ("a", "b") if number % 3 else ("b",)  # a task may be paused
        now = steps(x, number, names)
        weights = [torch.as_tensor(method.weights(now), dtype=torch.float64) for method in (whole, parts)]
        assert weights[0].tolist() == weights[1].tolist()
        x = x - 0.01 * weights[0] @ gradients(x)[: len(names)]
        for method in (whole, parts):
            if isinstance(method, LossWeighting):
                method.observe(now, losses(x)[: len(names)].tolist())


def test_a_paused_task_keeps_its_numbers():
    method = make_balance("uncertainty", seed=0)
    method.observe(TaskSteps(0, ("a", "b"), (3.0, 0.5)), ())
    before = method.weights(TaskSteps(1, ("a", "b")))
    method.observe(TaskSteps(1, ("a",), (3.0,)), ())
    after = method.weights(TaskSteps(2, ("a", "b")))
    assert before[0] != after[0] and before[1] == after[1]


def test_a_task_with_several_steps_in_an_iteration_counts_once():
    twice, once = make_balance("famo", seed=0), make_balance("famo", seed=0)
    assert sum(twice.weights(TaskSteps(0, ("a", "b", "a"), (1.0, 2.0, 1.0)))) == pytest.approx(1)
    twice.observe(TaskSteps(0, ("a", "b", "a"), (1.0, 2.0, 1.0)), (0.5, 1.9, 0.5))
    once.observe(TaskSteps(0, ("a", "b"), (1.0, 2.0)), (0.5, 1.9))
    assert twice.state() == once.state()


def test_a_missing_torchjd_is_an_error_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(UserError, match=r"pip install 'twelve-in-one\[balance\]'"):
        make_balance("pcgrad", seed=0)
    assert make_balance("gradnorm", seed=0) and make_balance(STEPS, seed=0) is None


@pytest.mark.parametrize("command", ["mt", "ablate"])
def test_a_missing_torchjd_is_reported_before_anything_is_read(tmp_path, monkeypatch, run_command, command):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setattr("finetune.training.multi_task_run.build_multi_task", None)
    monkeypatch.setattr("finetune.reporting.complete_runs._train", None)
    flags = ("--suite", "interference", "--rows", "pcgrad", "--seeds", 1) if command == "ablate" else ()
    flags = flags or ("--balance", "pcgrad", "--device", "cpu")
    data = ("--data", tmp_path, "--init", "scratch", "--out", tmp_path / "run")
    status, _, err = run_command(f"finetune.{command}", *data, *flags)
    assert status == 2 and "pip install 'twelve-in-one[balance]'" in err


def test_every_method_is_a_value_of_the_flag():
    assert set(balance_names()) == {STEPS, *WEIGHTINGS, *COMBINATIONS}
    assert all(math.isfinite(sum(descend(name, 2)[1])) for name in WEIGHTINGS)
