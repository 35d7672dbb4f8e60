"""Visual words: k-means clusters of hand-crafted features, used as object classes without a trained detector.

They are fitted on a sample of the regions of an extraction and stored next to the shards (visual_words.npz), so that
another extraction can use the same ones.
"""

from dataclasses import dataclass

import numpy as np
import scipy  # imports its parts when they are used; some take a second

from shards.common.files import whole_file
from shards.common.untrusted_input import LARGEST, read_arrays, reading, whole_number

DIRECTIONS = 32  # number of principal components in which distances are computed
KEPT_MASS = 0.992  # mean probability mass of the k stored classes of a region, over the sample


@dataclass
class VisualWords:
    """Visual words; the distribution of a region is softmax(-sharpness * squared distance to each centre).

    Attributes:
        mean, directions: (D,) and (D, d), the projection of features to d principal components.
        centres: (words, d).
        sharpness: inverse temperature of the softmax.
        per_region: k, number of stored words per region.
    """

    mean: np.ndarray
    directions: np.ndarray
    centres: np.ndarray
    sharpness: float
    per_region: int

    def __len__(self) -> int:
        return len(self.centres)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return -self.sharpness * scipy.spatial.distance.cdist(
            (features - self.mean) @ self.directions, self.centres, "sqeuclidean"
        )

    def classify(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k most probable words for features (N, D): ids int16 and probabilities float16 (N, k), in order."""
        probs = _softmax(self._logits(features))
        ids = np.argsort(-probs, axis=1, kind="stable")[:, : self.per_region]
        return ids.astype(np.int16), np.take_along_axis(probs, ids, 1).astype(np.float16)

    def save(self, path) -> None:
        with whole_file(path) as file:
            np.savez(file, **vars(self))


def load_words(path) -> VisualWords:
    with reading(path, "it is not a file of visual words"):
        values = read_arrays(path)
        words = VisualWords(
            **{
                name: values[name].astype(np.float64, casting="same_kind") for name in ("mean", "directions", "centres")
            },
            sharpness=float(values["sharpness"]),
            per_region=whole_number(values["per_region"], 1),
        )
        (width,), (rows, size), (count, columns) = words.mean.shape, words.directions.shape, words.centres.shape
        if rows != width or columns != size or not 1 <= words.per_region <= count or not 0 < words.sharpness < LARGEST:
            raise ValueError("its arrays have inconsistent shapes or values")
        if not all(np.isfinite(values).all() for values in (words.mean, words.directions, words.centres)):
            raise ValueError("it contains NaN or infinite numbers")
        return words


def fit_words(features: np.ndarray, words: int, seed: int) -> VisualWords:
    """Fits words to features (n, D) by k-means in their principal components.

    There are at most n / 4 words. The sharpness is the lowest with which the 8 most probable words (or all, if fewer)
    have 99% of the probability mass on average.
    """
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    _, _, rows = np.linalg.svd(features - mean, full_matrices=False)
    directions = rows[: min(DIRECTIONS, len(rows))].T
    points = (features - mean) @ directions
    words = max(1, min(words, len(points) // 4))
    centres, _ = scipy.cluster.vq.kmeans2(points, words, minit="++", seed=np.random.default_rng(seed), missing="warn")
    fitted = VisualWords(mean, directions, centres, 1.0, min(8, words))
    fitted.sharpness = _sharpness(fitted, features[:: max(1, len(features) // 4000)])
    return fitted


def _softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


def _sharpness(words: VisualWords, features: np.ndarray) -> float:
    """Finds the sharpness by bisection over powers of two; a larger one gives the nearest words more mass."""
    distances = words._logits(features)
    low, high = -10.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        probs = np.sort(_softmax(distances * 2.0**middle), axis=1)
        enough = probs[:, -words.per_region :].sum(1).mean() >= KEPT_MASS
        low, high = (low, middle) if enough else (middle, high)
    return 2.0**high
