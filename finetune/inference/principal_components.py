"""Principal component analysis of embeddings, to show them in a plane."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # imports its parts when they are used; some take a second

AXES = 2


@dataclass(frozen=True)
class Plane:
    """The plane of the first two principal components.

    Attributes:
        mean: float64 (size,), mean of the embeddings.
        axes: float64 (2, size), orthonormal; the largest entry of each is positive. Zeros without such a component.
        explained: fraction of the total variance along each axis.
    """

    mean: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    explained: tuple[float, float]

    def project(self, embeddings: np.ndarray) -> npt.NDArray[np.float64]:
        """float64 (n, 2), the coordinates of embeddings (n, size)."""
        return (np.asarray(embeddings, np.float64) - self.mean) @ self.axes.T


def principal_plane(embeddings: np.ndarray) -> Plane:
    """The plane that has most of the variance of embeddings, float (n, size).

    From their covariance (size, size), because there are usually more embeddings than dimensions.
    """
    values = np.asarray(embeddings, np.float64)
    mean, size = values.mean(0), values.shape[1]
    covariance = np.cov(values, rowvar=False, bias=True).reshape(size, size)
    total, found = float(np.trace(covariance)), min(AXES, size)
    variances, vectors = scipy.linalg.eigh(covariance, subset_by_index=(size - found, size - 1))
    axes, explained = np.zeros((AXES, size)), [0.0] * AXES
    precision = float(np.finfo(np.float64).eps)
    rounding = size * precision * (total + precision * float((values**2).sum(1).mean()))  # of a variance
    for axis in range(found):
        variance, vector = float(variances[found - 1 - axis]), vectors[:, found - 1 - axis]
        if variance > rounding:
            axes[axis] = vector * np.sign(vector[np.abs(vector).argmax()])
            explained[axis] = variance / total
    return Plane(mean, axes, (explained[0], explained[1]))
