"""The methods of TorchJD (https://torchjd.org) that combine gradients; it is an extra of this package.

TorchJD's methods take the matrix of the tasks' gradients, or its Gramian. They are called with the Gramian, or with a
square matrix that has the same Gramian, so that no copy of the gradients is made.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from finetune.balancing.base import GradientCombination, TaskSteps
from shards.common import counter_rng
from shards.common.errors import UserError
from shards.common.random_purposes import EpochPurpose


class TorchJdMethod(GradientCombination):
    """A method of TorchJD."""

    def __init__(self, seed: int = 0):
        super().__init__(seed)
        try:
            from torchjd import aggregation

            self.method = self.make(aggregation)
        except ImportError as error:
            raise UserError(
                f"--balance: this method needs TorchJD and its solvers ({error}); install them with "
                "pip install 'twelve-in-one[balance]'"
            ) from None

    @staticmethod
    @abstractmethod
    def make(aggregation: Any) -> Any:
        """The aggregator. aggregation: the module torchjd.aggregation."""

    def weights(self, steps: TaskSteps) -> Tensor:
        return self.method.gramian_weighting(steps.gramian)


class PcGrad(TorchJdMethod):
    """PCGrad (Yu et al. 2020): removes from each gradient its components against the others, in random order."""

    @staticmethod
    def make(aggregation: Any) -> Any:
        return aggregation.PCGrad()

    def weights(self, steps: TaskSteps) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(counter_rng.key(self.seed, steps.number, EpochPurpose.GRADIENT_ORDER))
            return super().weights(steps)


class CaGrad(TorchJdMethod):
    """CAGrad (Liu et al. 2021): maximises the smallest decrease of a loss near the mean gradient."""

    @staticmethod
    def make(aggregation: Any) -> Any:
        return aggregation.CAGrad(c=0.4)  # of the paper's experiments on NYU-v2 and Cityscapes


class AlignedMtl(TorchJdMethod):
    """Aligned-MTL (Senushkin et al. 2023): makes the principal components of the gradients equally long."""

    @staticmethod
    def make(aggregation: Any) -> Any:
        return aggregation.AlignedMTL()


class UpGrad(TorchJdMethod):
    """UPGrad (Quinton and Rey 2024): projects each gradient so that it conflicts with no other."""

    @staticmethod
    def make(aggregation: Any) -> Any:
        return aggregation.UPGrad()


class ConFig(TorchJdMethod):
    """ConFIG (Liu et al. 2024): a direction that has the same cosine similarity with every gradient."""

    @staticmethod
    def make(aggregation: Any) -> Any:
        return aggregation.ConFIG()

    def weights(self, steps: TaskSteps) -> Tensor:
        matrix = square_root(steps.gramian)
        return torch.linalg.pinv(matrix.T, hermitian=True) @ self.method(matrix)


def square_root(gramian: Tensor) -> Tensor:
    """The symmetric matrix whose rows have these scalar products; negative eigenvalues, of rounding, count as 0."""
    values, vectors = torch.linalg.eigh(gramian)
    return vectors @ (values.clamp(min=0).sqrt()[:, None] * vectors.T)
