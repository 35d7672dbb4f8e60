"""Slow versions of the methods of --balance on whole vectors, with autograd, torch's Adam and scipy's solvers."""

from collections.abc import Callable

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

LEARNING_RATE = 0.025  # of learned weights


def slow_pcgrad(rows: np.ndarray, order: list[list[int]]) -> np.ndarray:
    """Algorithm 1 of Yu et al. on the vectors themselves."""
    total = np.zeros_like(rows[0])
    for own, others in enumerate(order):
        projected = rows[own].copy()
        for other in others:
            product = projected @ rows[other]
            if product < 0:
                projected -= product / (rows[other] @ rows[other]) * rows[other]
        total += projected
    return total


def in_their_span(method: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A method in an orthonormal basis of the span of the gradients, because solvers need few variables."""

    def combined(rows: np.ndarray) -> np.ndarray:
        basis, _ = np.linalg.qr(rows.T)
        return basis @ method(rows @ basis)

    return combined


@in_their_span
def slow_cagrad(rows: np.ndarray) -> np.ndarray:
    """The direction d with |d - mean| <= c |mean| and the largest smallest product with a gradient; c = 0.4."""
    mean, size, radius = rows.mean(0), rows.shape[1], 0.4
    scale = np.linalg.norm(rows)  # of no influence on the direction; the solver needs well scaled numbers
    within = {"type": "ineq", "fun": lambda z: radius**2 * (mean @ mean) - ((z[:size] - mean) ** 2).sum()}
    above = {"type": "ineq", "fun": lambda z: rows @ z[:size] / scale - z[size]}
    found = optimize.minimize(
        lambda z: -z[size], np.append(mean, 0), constraints=[within, above], options={"ftol": 1e-14, "maxiter": 1000}
    )
    return found.x[:size]


def slow_nash(rows: np.ndarray) -> np.ndarray:
    """alpha with G alpha = 1 / alpha, and the norm of the result clipped to 1."""
    gramian = rows @ rows.T
    alpha = np.exp(optimize.fsolve(lambda z: gramian @ np.exp(z) - np.exp(-z), np.zeros(len(rows)), xtol=1e-14))
    return alpha @ rows / max(1, np.linalg.norm(alpha @ rows))


def slow_aligned(rows: np.ndarray) -> np.ndarray:
    """The matrix of gradients with all its singular values replaced by the smallest one; the mean of its rows."""
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    return (values.min() * left @ right).mean(0)


@in_their_span
def slow_upgrad(rows: np.ndarray) -> np.ndarray:
    """The mean of the projections of the gradients on the cone of directions without conflict."""

    def projection(row: np.ndarray) -> np.ndarray:
        constraint = {"type": "ineq", "fun": lambda d: rows @ d}
        return optimize.minimize(
            lambda d: ((d - row) ** 2).sum(), row, constraints=[constraint], options={"ftol": 1e-15}
        ).x

    return np.mean([projection(row) for row in rows], 0)


def slow_config(rows: np.ndarray) -> np.ndarray:
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    direction = np.linalg.pinv(units) @ np.ones(len(rows))
    direction /= np.linalg.norm(direction)
    return (rows @ direction).sum() * direction


# Name -> direction from the gradients (tasks, parameters) alone.
COMBINED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pcgrad": lambda rows: slow_pcgrad(
        rows, [[other for other in range(len(rows)) if other != n] for n in range(len(rows))]
    ),
    "cagrad": slow_cagrad,
    "nash": slow_nash,
    "aligned": slow_aligned,
    "upgrad": slow_upgrad,
    "config": slow_config,
}
TOLERANCES = {"cagrad": 1e-4, "upgrad": 1e-3}  # their slow versions are approximate, and UPGrad is regularised


class Slow:
    """The sum of the losses, and the interface of the others."""

    def __init__(self, tasks: int):
        self.tasks = tasks

    def direction(self, losses: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(combined gradient, weights of the heads' gradients), from losses (n,) and gradients (n, parameters)."""
        weights = self.weights(losses, rows)
        return weights @ rows, weights

    def weights(self, losses: Tensor, rows: Tensor) -> Tensor:
        return torch.ones(self.tasks, dtype=torch.float64)

    def after(self, losses: Tensor, later: Tensor) -> None:
        """Learns from the losses before and after the step."""


class SlowCombination(Slow):
    """A method that is a function of the gradients; those of heads are summed."""

    def __init__(self, tasks: int, combined: Callable[[np.ndarray], np.ndarray]):
        super().__init__(tasks)
        self.combined = combined

    def direction(self, losses: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.combined(rows.numpy())), torch.ones(self.tasks, dtype=torch.float64)


class SlowUncertainty(Slow):
    """Descends exp(-s) / 2 * loss + s / 2 over the weights and s."""

    def __init__(self, tasks: int):
        super().__init__(tasks)
        self.s = torch.zeros(tasks, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.s], lr=LEARNING_RATE)

    def weights(self, losses: Tensor, rows: Tensor) -> Tensor:
        values = losses.detach().requires_grad_()
        (torch.exp(-self.s) / 2 * values + self.s / 2).sum().backward()  # the gradient of s is that of `after`
        return values.grad

    def after(self, losses: Tensor, later: Tensor) -> None:
        self.adam.step()
        self.adam.zero_grad()


class SlowDynamicWeightAverage(Slow):
    """Equation 7 of Liu et al. 2019; an epoch is 20 iterations."""

    def __init__(self, tasks: int):
        super().__init__(tasks)
        self.history: list[Tensor] = []

    def weights(self, losses: Tensor, rows: Tensor) -> Tensor:
        epochs = len(self.history) // 20
        if epochs < 2:
            return torch.ones(self.tasks, dtype=torch.float64)
        older, newer = (torch.stack(self.history[20 * n : 20 * (n + 1)]).mean(0) for n in (epochs - 2, epochs - 1))
        return self.tasks * torch.softmax(newer / older / 2, 0)

    def after(self, losses: Tensor, later: Tensor) -> None:
        self.history.append(losses.detach())


class SlowFamo(Slow):
    """Algorithm 2 of Liu et al. 2023."""

    def __init__(self, tasks: int):
        super().__init__(tasks)
        self.logits = torch.zeros(tasks, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.logits], lr=LEARNING_RATE, weight_decay=1e-3)

    def weights(self, losses: Tensor, rows: Tensor) -> Tensor:
        shares = torch.softmax(self.logits, 0).detach() / (losses.detach() + 1e-8)
        return shares / shares.sum()

    def after(self, losses: Tensor, later: Tensor) -> None:
        decrease = torch.log(losses.detach() + 1e-8) - torch.log(later.detach() + 1e-8)
        [self.logits.grad] = torch.autograd.grad(torch.softmax(self.logits, 0), self.logits, decrease)
        self.adam.step()


class SlowGradNorm(Slow):
    """Algorithm 1 of Chen et al. 2018, with the norms of all parameters."""

    def __init__(self, tasks: int):
        super().__init__(tasks)
        self.w = torch.ones(tasks, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.w], lr=LEARNING_RATE)
        self.first: Tensor | None = None

    def weights(self, losses: Tensor, rows: Tensor) -> Tensor:
        losses = losses.detach()
        self.first = losses if self.first is None else self.first
        used, norms = self.w.detach().clone(), self.w * rows.norm(dim=1)
        rate = losses / self.first
        target = (norms.mean() * (rate / rate.mean()) ** 1.5).detach()
        self.adam.zero_grad()
        (norms - target).abs().sum().backward()
        self.adam.step()
        with torch.no_grad():
            self.w *= self.tasks / self.w.sum()
        return used


SLOW: dict[str, Callable[[int], Slow]] = {
    "sum": Slow,
    "uncertainty": SlowUncertainty,
    "dwa": SlowDynamicWeightAverage,
    "famo": SlowFamo,
    "gradnorm": SlowGradNorm,
}


def slow_method(name: str, tasks: int) -> Slow:
    """The slow version of a method of --balance."""
    return SlowCombination(tasks, COMBINED[name]) if name in COMBINED else SLOW[name](tasks)
