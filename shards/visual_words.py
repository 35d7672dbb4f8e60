"""Visual words: groups of descriptors that stand in for object classes where there is no trained detector.

They are fitted once on a sample of an extraction's regions and kept beside the shards (visual_words.npz),
so that a second extraction can use the same ones.
"""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

from shards.files import whole_file
from shards.reading import LARGEST, read_arrays, reading, whole_number

DIRECTIONS = 32  # principal directions of the descriptors in which distances are measured
KEPT_MASS = 0.992  # of a region's class distribution is in its k listed classes, on average over the sample


@dataclass
class VisualWords:
    """mean (D,) and directions (D, d) bring a descriptor to d numbers; centres (words, d); sharpness of softmax.

    A region's distribution over words is softmax(-sharpness * squared distance to each centre).
    """

    mean: np.ndarray
    directions: np.ndarray
    centres: np.ndarray
    sharpness: float
    per_region: int

    def __len__(self) -> int:
        return len(self.centres)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return -self.sharpness * cdist((features - self.mean) @ self.directions, self.centres, "sqeuclidean")

    def classify(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest words of descriptors (N, D): ids int16 and probabilities float16 (N, k), best first."""
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
            raise ValueError("its arrays do not fit together")
        if not all(np.isfinite(values).all() for values in (words.mean, words.directions, words.centres)):
            raise ValueError("it has NaN or infinite numbers")
        return words


def fit_words(features: np.ndarray, words: int, seed: int) -> VisualWords:
    """Words from a sample of descriptors (n, D): k-means in the sample's principal directions.

    There are at most n / 4 words. The sharpness is the lowest at which the 8 likeliest words hold 99% of a
    region's distribution on average (fewer words: all of them).
    """
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    _, _, rows = np.linalg.svd(features - mean, full_matrices=False)
    directions = rows[: min(DIRECTIONS, len(rows))].T
    points = (features - mean) @ directions
    words = max(1, min(words, len(points) // 4))
    centres, _ = kmeans2(points, words, minit="++", seed=np.random.default_rng(seed), missing="warn")
    fitted = VisualWords(mean, directions, centres, 1.0, min(8, words))
    fitted.sharpness = _sharpness(fitted, features[:: max(1, len(features) // 4000)])
    return fitted


def _softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


def _sharpness(words: VisualWords, features: np.ndarray) -> float:
    """Bisection over powers of two; more sharpness puts more mass on the nearest words."""
    distances = words._logits(features)
    low, high = -10.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        probs = np.sort(_softmax(distances * 2.0**middle), axis=1)
        enough = probs[:, -words.per_region :].sum(1).mean() >= KEPT_MASS
        low, high = (low, middle) if enough else (middle, high)
    return 2.0**high
