"""Similarities and look-ahead losses on a tiny model in float64, against slow versions and finite differences."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_tasks import tiny_tasks

from finetune.gradients.interference_measurement import FixedBatches, clustered_order, mean_and_margin, measure
from finetune.gradients.task_gradients import ALL_PARTS, part_of, shared_parameters

STEP = 1e-6


@pytest.fixture(scope="module")
def tasks():
    return [
        FixedBatches(task_pass, [task_pass.batch(seed) for seed in range(3)]) for task_pass in tiny_tasks(dropout=0.1)
    ]


@pytest.fixture(scope="module")
def weights(tasks):
    return {name: p.detach().clone() for name, p in tasks[0].task_pass.model.named_parameters()}


@pytest.fixture(scope="module")
def measured(tasks, weights):
    return measure(tasks, look_ahead=2, step=STEP)


def loss_of(task: FixedBatches, number: int) -> torch.Tensor:
    return task.task_pass(task.batches[number], [4])[0]


def gradients(tasks, number: int, part: str) -> np.ndarray:
    """The gradients of a batch of every task, as vectors of the parameters of one part."""
    shared = {n: p for n, p in shared_parameters(tasks[0].task_pass.model).items() if part in (ALL_PARTS, part_of(n))}
    rows = []
    for task in tasks:
        found = torch.autograd.grad(loss_of(task, number), list(shared.values()), allow_unused=True)
        zeros = [torch.zeros_like(p) if g is None else g for g, p in zip(found, shared.values(), strict=True)]
        rows.append(torch.cat([gradient.flatten() for gradient in zeros]).numpy())
    return np.array(rows)


@pytest.mark.parametrize("part", [ALL_PARTS, "text", "image", "co-attention"])
def test_similarities_are_those_of_whole_vectors(tasks, measured, part):
    vectors = [gradients(tasks, number, part) for number in range(3)]
    for number, rows in enumerate(vectors):
        found = measured.similarities(part)[number]
        for i in range(3):
            for j in range(3):
                other = rows[j] if i != j else vectors[number + 1][i] if number < 2 else np.full(len(rows[i]), np.nan)
                slow = rows[i] @ other / np.linalg.norm(rows[i]) / np.linalg.norm(other)
                np.testing.assert_allclose(found[i, j], slow, rtol=1e-9)
        np.testing.assert_allclose(measured.norms(part)[number], np.linalg.norm(rows, axis=1), rtol=1e-9)
    mean = np.mean([rows @ rows.T for rows in vectors], 0)
    squared = np.mean([(a * b).sum(1) for a, b in itertools.pairwise(vectors)], 0)
    expected = measured.expected_similarity(part)
    for i in range(3):
        for j in range(3):
            if i != j and squared[i] > 0 and squared[j] > 0:
                np.testing.assert_allclose(expected[i, j], mean[i, j] / np.sqrt(squared[i] * squared[j]), rtol=1e-9)
            elif i != j:
                assert np.isnan(expected[i, j])


def test_similarities_are_finite_differences_of_the_losses(tasks, measured):
    """The derivative of the loss of one task along the normalised gradient of another."""
    shared = list(shared_parameters(tasks[0].task_pass.model).values())
    rows, sizes = gradients(tasks, 0, ALL_PARTS), [p.numel() for p in shared]
    for i in range(3):
        direction = torch.from_numpy(rows[i] / np.linalg.norm(rows[i])).split(sizes)
        for j in range(3):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    for p, part in zip(shared, direction, strict=True):
                        p.add_(part.view_as(p), alpha=sign * 1e-5)
                    ends.append(loss_of(tasks[j], 0).item())
                    for p, part in zip(shared, direction, strict=True):
                        p.sub_(part.view_as(p), alpha=sign * 1e-5)
            slope = (ends[0] - ends[1]) / 2e-5
            if i != j:
                similarity = slope / measured.norms(ALL_PARTS)[0, j]
                np.testing.assert_allclose(measured.similarities(ALL_PARTS)[0, i, j], similarity, rtol=1e-5, atol=1e-7)
            else:
                np.testing.assert_allclose(measured.norms(ALL_PARTS)[0, i], slope, rtol=1e-5)


def test_a_small_step_changes_the_losses_of_the_next_batch_by_their_slope(tasks, measured, weights):
    length = STEP * torch.cat([p.flatten() for p in shared_parameters(tasks[0].task_pass.model).values()]).norm().item()
    for number in range(2):
        own, following = gradients(tasks, number, ALL_PARTS), gradients(tasks, number + 1, ALL_PARTS)
        units = own / np.linalg.norm(own, axis=1, keepdims=True)
        before = np.array([loss_of(task, number + 1).item() for task in tasks])
        np.testing.assert_allclose(measured.before[number], before, rtol=1e-12)
        change = length * units @ following.T
        np.testing.assert_allclose(measured.before[number] - measured.after[number], change, rtol=1e-3, atol=1e-11)
        np.testing.assert_allclose(measured.affinities()[number], change / before, rtol=1e-3, atol=1e-11)


def test_the_weights_are_the_same_afterwards(tasks, measured, weights):
    now = dict(tasks[0].task_pass.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in weights.items())


def test_intervals_are_those_of_student():
    values = np.random.default_rng(0).normal(size=(6, 2))
    values[4, 1] = np.nan
    mean, margin = mean_and_margin(values)
    for column in range(2):
        known = values[np.isfinite(values[:, column]), column]
        low, high = stats.t.interval(0.95, len(known) - 1, known.mean(), stats.sem(known))
        np.testing.assert_allclose([mean[column] - margin[column], mean[column] + margin[column]], [low, high])
    mean, margin = mean_and_margin(np.array([[1.0, np.nan]]))
    assert mean[0] == 1 and np.isnan([margin[0], mean[1], margin[1]]).all()


def test_similar_tasks_are_neighbours_in_the_clustered_order():
    similarity = np.full((6, 6), -0.5)
    for pair in ((0, 4), (1, 3), (2, 5)):
        similarity[pair, pair[::-1]] = 0.9
    np.fill_diagonal(similarity, np.nan)
    order = clustered_order(similarity)
    assert sorted(order) == list(range(6))
    assert {frozenset(order[n : n + 2]) for n in (0, 2, 4)} == {frozenset(p) for p in ((0, 4), (1, 3), (2, 5))}
    assert clustered_order(np.eye(2)) == [0, 1]
