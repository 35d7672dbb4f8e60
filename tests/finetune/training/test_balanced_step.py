"""The optimizer step for all tasks of an iteration, on a tiny model in float64."""

import copy

import pytest
import torch
from slow_balancing import TOLERANCES, slow_method
from tiny_tasks import NAMES, tiny_parts, tiny_pass, tiny_tasks

from finetune.balancing import METHODS, make_balance
from finetune.balancing.base import GradientCombination, TaskSteps
from finetune.config import MtConfig
from finetune.gradients.task_gradients import TaskGradients, shared_parameters
from finetune.training.balanced_step import BalancedStep
from finetune.training.model_setup import make_task_engine
from pretrain.engine.step import MetricSums
from shards.common.dist_info import ALONE

RATE = 0.01  # of gradient descent
OF_TORCHJD = {"pcgrad", "cagrad", "aligned", "upgrad", "config"}


def setup(name: str, count: int = 3, sgd: bool = False):
    """(tasks, engine, balanced step); with `sgd` an update is minus the gradient."""
    if name in OF_TORCHJD:
        pytest.importorskip("torchjd", reason="TorchJD, an extra, is not installed")
    tasks = tiny_tasks(count, dropout=0.1)
    model = tasks[0].model
    engine = make_task_engine(MtConfig(), ALONE, tiny_pass(tasks), 1e-3, 1e-3, None)
    if sgd:
        engine.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    method, gradients = make_balance(name, seed=0), None
    if isinstance(method, GradientCombination):
        gradients = TaskGradients(shared_parameters(model).values(), count)
    return tasks, engine, BalancedStep(method, gradients, 0.0)


def take(balanced, engine, tasks, seed: int, halves: bool = False, sums: MetricSums | None = None) -> None:
    counts = [4] * len(tasks)
    parts = tiny_parts(tasks, seed, halves)
    balanced.step(engine, seed, parts, MetricSums() if sums is None else sums, [*counts, sum(counts)])


def slow_gradients(tasks, seed: int) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    """(gradient of every task's loss with its factor, 0 where there is none; mean losses)."""
    training_pass, named = tiny_pass(tasks), dict(tasks[0].model.named_parameters())
    rows, losses = [], []
    for number, [part] in enumerate(tiny_parts(tasks, seed)):
        loss, numbers = training_pass(part, [4] * len(tasks))
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        rows.append(
            {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}
        )
        losses.append(numbers[f"{NAMES[number]}/loss"].item() / 4)
    return rows, losses


@pytest.mark.parametrize("halves", [False, True], ids=["one part", "accumulation"])
@pytest.mark.parametrize("name", METHODS)
def test_an_update_is_the_weighted_sum_of_whole_gradients(name, halves):
    tasks, engine, balanced = setup(name, sgd=True)
    before = {n: p.detach().clone() for n, p in engine.model.named_parameters()}
    rows, losses = slow_gradients(tasks, seed=7)
    shared = shared_parameters(engine.model)
    vectors = torch.stack([torch.cat([row[n].flatten() for n in shared]) for row in rows])
    method = make_balance(name, seed=0)
    weights = torch.as_tensor(method.weights(TaskSteps(7, NAMES, losses, vectors @ vectors.T)), dtype=torch.float64)
    take(balanced, engine, tasks, 7, halves, sums := MetricSums())
    unweighted = isinstance(method, GradientCombination) and not method.weighs_heads
    for n, p in engine.model.named_parameters():
        factors = torch.ones(3) if unweighted and n not in shared else weights
        expected = sum(factor * row[n] for factor, row in zip(factors, rows, strict=True))
        torch.testing.assert_close(before[n] - p.detach(), expected, rtol=1e-5, atol=1e-9)
    logged = sums.pop_totals(ALONE)
    for n, weight in zip(NAMES, weights.tolist(), strict=True):
        assert logged[f"{n}/weight"] / logged[f"{n}/examples"] == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_updates_are_those_of_a_slow_version_on_whole_vectors(name):
    """Three iterations of gradient descent on two tasks, for which the order of PCGrad does not matter."""
    tasks, engine, balanced = setup(name, count=2, sgd=True)
    reference = tiny_tasks(2, dropout=0.1)
    model, slow = reference[0].model, slow_method(name, 2)
    shared, tolerance = shared_parameters(model), TOLERANCES.get(name, 1e-6)
    for group in engine.optimizer.param_groups:
        group["lr"] = RATE
    for seed in range(3):
        take(balanced, engine, tasks, seed)
        rows, losses = slow_gradients(reference, seed)
        vectors = torch.stack([torch.cat([row[n].flatten() for n in shared]) for row in rows])
        losses = torch.tensor(losses, dtype=torch.float64)
        combined, of_heads = slow.direction(losses, vectors)
        parts = dict(zip(shared, combined.split([p.numel() for p in shared.values()]), strict=True))
        with torch.no_grad():
            for n, p in model.named_parameters():
                step = (
                    parts[n].view_as(p)
                    if n in shared
                    else sum(w * row[n] for w, row in zip(of_heads, rows, strict=True))
                )
                p.sub_(RATE * step)
        slow.after(losses, torch.tensor(slow_gradients(reference, seed)[1], dtype=torch.float64))
    start = dict(tiny_tasks(2)[0].model.named_parameters())
    for n, p in engine.model.named_parameters():
        expected = dict(model.named_parameters())[n] - start[n]
        scale = expected.abs().max().item()
        torch.testing.assert_close(p - start[n], expected, rtol=0, atol=10 * tolerance * scale + 1e-12)


def run(name: str | None, count: int, steps: int = 4):
    """Final weights of some steps with AdamW on one task; without a name a plain step per task."""
    tasks, engine, balanced = setup(name or "sum", count)
    for seed in range(steps):
        if name:
            take(balanced, engine, tasks, seed)
        else:
            for of_step in tiny_parts(tasks, seed):
                engine.step(seed, of_step, MetricSums(), [4] * count)
    return {n: p.detach() for n, p in engine.model.named_parameters()}


@pytest.mark.parametrize("name", ["sum", "dwa", "gradnorm", "pcgrad"])
def test_one_task_is_trained_as_without_a_method_bit_for_bit(name):
    plain, balanced = run(None, 1), run(name, 1)
    assert all(torch.equal(plain[n], value) for n, value in balanced.items())


@pytest.mark.parametrize("name", ["aligned", "upgrad", "config", "famo"])
def test_one_task_is_trained_as_without_a_method_but_for_rounding(name):
    plain, balanced = run(None, 1), run(name, 1)
    for n, value in balanced.items():
        torch.testing.assert_close(value, plain[n], rtol=1e-6, atol=1e-6)


def test_famo_learns_from_the_losses_after_the_step():
    tasks, engine, balanced = setup("famo")
    _, before = slow_gradients(tasks, seed=3)
    take(balanced, engine, tasks, 3)
    _, after = slow_gradients(tasks, seed=3)
    expected = make_balance("famo", seed=0)
    expected.observe(TaskSteps(3, NAMES, before), after)
    found = balanced.method.state()
    assert found["values"] == pytest.approx(expected.state()["values"], rel=1e-6) and len(set(found["values"])) == 3


@pytest.mark.parametrize("name", ["uncertainty", "famo", "gradnorm", "pcgrad"])
def test_a_step_that_is_not_finite_is_skipped_and_changes_no_state(name):
    tasks, engine, balanced = setup(name)
    take(balanced, engine, tasks, 0)
    state = copy.deepcopy(balanced.method.state())
    weights = {n: p.detach().clone() for n, p in engine.model.named_parameters()}
    parts = tiny_parts(tasks, 1)
    parts[1][0].batch.target[0, 0] = torch.inf
    balanced.step(engine, 1, parts, sums := MetricSums(), [4, 4, 4, 12])
    engine.skipped.check(wait=True)
    assert engine.skipped.count == 1 and balanced.method.state() == state
    assert all(torch.equal(p, weights[n]) for n, p in engine.model.named_parameters())
    assert sums.pop_totals(ALONE)["steps"] == 0
