"""Nash-MTL: the gradients are weighted as the players of a bargaining game agree."""

import torch
from torch import Tensor

from finetune.balancing.base import GradientCombination, TaskSteps


class NashMtl(GradientCombination):
    """Nash-MTL (Navon et al. 2022): weights a > 0 with G a = 1 / a, G being the Gramian of the gradients.

    They minimise a'Ga / 2 - sum(log a), which is convex and self-concordant, so that a damped Newton method finds them
    from any start. The authors' code, and TorchJD after it, solve a sequence of approximations that starts from the
    last weights instead. As in their code, the weighted sum has a norm of at most LARGEST_NORM.
    """

    LARGEST_NORM = 1.0
    RIDGE = 1e-8  # relative to the mean squared norm: without it gradients that cancel have no finite solution
    TOLERANCE = 1e-12  # of the Newton decrement
    ITERATIONS = 200

    def weights(self, steps: TaskSteps) -> Tensor:
        scale = steps.gramian.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        gramian = steps.gramian / scale + self.RIDGE * torch.eye(len(steps.names), dtype=torch.float64)
        found = gramian.diagonal().rsqrt()
        for _ in range(self.ITERATIONS):
            slope = gramian @ found - 1 / found
            direction = torch.linalg.solve(gramian + torch.diag(found**-2), slope)
            decrement = (slope @ direction).clamp(min=0).sqrt()
            found = found - direction / (1 + decrement)  # a damped step keeps all weights positive
            if decrement < self.TOLERANCE:
                break
        found = found / scale.sqrt()
        norm = (found @ steps.gramian @ found).clamp(min=0).sqrt()
        return found / (norm / self.LARGEST_NORM).clamp(min=1)
