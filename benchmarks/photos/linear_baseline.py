"""The linear baseline of retrieval: regularised canonical correlation analysis (CCA) between regions and words.

An image is represented by the mean and the maximum of its region features, a caption by the TF-IDF weights of its
words. Both are projected by CCA, and images are ranked by cosine similarity.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from finetune.data.regions import SamplesById
from finetune.annotations.example import Example
from finetune.tasks.retrieval import own_images

AT_LEAST = 3  # minimum document frequency of a word in the training captions
SIZE, POWER = 256, 4  # size of the projections, and exponent of the correlations as weights (Gong et al. 2014)
RIDGES = (0.01, 0.1, 1.0, 10.0)  # of images, in units of the mean variance; selected on the validation images
TEXT_RIDGE = 0.1
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Words:
    """Captions as rows of TF-IDF weights. numbers: word -> column; weights: float (words,), inverse frequencies."""

    numbers: dict[str, int]
    weights: np.ndarray

    @classmethod
    def of(cls, captions: Sequence[str]) -> "Words":
        counts = Counter(word for caption in captions for word in set(_WORD.findall(caption.lower())))
        kept = sorted(word for word, count in counts.items() if count >= AT_LEAST)
        frequencies = np.array([counts[word] for word in kept], np.float64)
        return cls({word: n for n, word in enumerate(kept)}, np.log(len(captions) / frequencies))

    def rows(self, captions: Sequence[str]) -> sparse.csr_array:
        """float64 (captions, words), each row of length 1 or 0."""
        places = [
            (row, self.numbers[word])
            for row, caption in enumerate(captions)
            for word in _WORD.findall(caption.lower())
            if word in self.numbers
        ]
        rows, columns = np.array(places, np.int64).reshape(-1, 2).T
        shape = len(captions), len(self.numbers)
        counts = sparse.csr_array((self.weights[columns], (rows, columns)), shape=shape)
        lengths = np.sqrt(counts.power(2).sum(1))
        return sparse.csr_array(sparse.diags_array(1 / np.where(lengths > 0, lengths, 1)) @ counts)


@dataclass(frozen=True)
class Projections:
    """The CCA projections: means and matrices of images and captions, with columns weighted by correlation."""

    image_mean: np.ndarray
    image: np.ndarray
    text_mean: np.ndarray
    text: np.ndarray

    def scores(self, images: np.ndarray, captions: sparse.csr_array) -> np.ndarray:
        """float64 (captions, images): cosines. images: (n, D)."""
        x = (images - self.image_mean) @ self.image
        y = captions @ self.text - self.text_mean @ self.text
        return _unit(y) @ _unit(x).T


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def canonical_projections(
    images: np.ndarray, captions: sparse.csr_array, own: np.ndarray, ridge: float, text_ridge: float = TEXT_RIDGE
) -> Projections:
    """Regularised CCA of pairs.

    Args:
        images: float (n, D).
        captions: (m, V).
        own: int (m,), the image of each caption; images are weighted by their number of captions.
        ridge, text_ridge: added to the diagonals of the covariances, in units of their means.
    """
    count, times = len(own), np.bincount(own, minlength=len(images))[:, None]
    image_mean, text_mean = (images * times).sum(0) / count, np.asarray(captions.sum(0)).ravel() / count
    x = images - image_mean
    owners = sparse.csr_array((np.ones(count), (own, np.arange(count))), shape=(len(images), count))
    of_images = (x * times).T @ x / count
    of_texts = (captions.T @ captions).toarray() / count - np.outer(text_mean, text_mean)
    of_both = x.T @ np.asarray((owners @ captions).todense()) / count  # x has mean 0 over the pairs
    x_root, y_root = _root(of_images, ridge), _root(of_texts, text_ridge)
    left, correlations, right = linalg.svd(
        linalg.solve_triangular(y_root, linalg.solve_triangular(x_root, of_both, lower=True).T, lower=True).T,
        full_matrices=False,
    )
    weights = correlations[:SIZE] ** POWER
    image = linalg.solve_triangular(x_root.T, left[:, :SIZE]) * weights
    text = linalg.solve_triangular(y_root.T, right[:SIZE].T) * weights
    return Projections(image_mean, image, text_mean, text)


def _root(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """The Cholesky factor of a covariance with a ridge."""
    added = max(ridge * np.trace(covariance) / len(covariance), 1e-12)
    return linalg.cholesky(covariance + added * np.eye(len(covariance)), lower=True)


def pooled_features(regions: SamplesById, images: Iterable[str]) -> dict[str, np.ndarray]:
    """Image -> float64 (2 D,): mean and maximum over its regions."""
    found = ((image, regions[image].features.astype(np.float64)) for image in dict.fromkeys(images))
    return {image: np.concatenate([features.mean(0), features.max(0)]) for image, features in found}


def linear_retrieval(
    pooled: Mapping[str, np.ndarray],
    train: Sequence[Example],
    val: Sequence[Example],
    dev: Sequence[Example],
    ridges: Sequence[float] = RIDGES,
) -> np.ndarray:
    """float64 (captions, images): scores on dev of a baseline fitted on train.

    Args:
        pooled: see pooled_features.
        train, val, dev: captions with their images.
        ridges: values of the ridge of images, of which the best on val is selected.
    """
    parts = [
        np.stack([pooled[image] for image in dict.fromkeys(example.images[0] for example in part)])
        for part in (train, val, dev)
    ]
    mean, spread = parts[0].mean(0), parts[0].std(0) + 1e-6
    parts = [(features - mean) / spread for features in parts]
    words = Words.of([example.text for example in train])
    texts = [words.rows([example.text for example in part]) for part in (train, val, dev)]
    own = own_images(train)
    fitted = [canonical_projections(parts[0], texts[0], own, ridge) for ridge in ridges]
    best = max(fitted, key=lambda projections: _mean_inverse_rank(projections.scores(parts[1], texts[1]), val))
    return best.scores(parts[2], texts[2])


def _mean_inverse_rank(scores: np.ndarray, examples: Sequence[Example]) -> float:
    """Mean reciprocal rank of the captions' own images."""
    own = own_images(examples)
    ranks = (scores > scores[np.arange(len(own)), own][:, None]).sum(1) + 1
    return float((1 / ranks).mean())
