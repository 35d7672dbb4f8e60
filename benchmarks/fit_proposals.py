"""Fits the constants of the built-in detector's proposals (BIAS and WEIGHTS in shards/detection/handcrafted.py) to
photographs.

    python benchmarks/fit_proposals.py --photos DIR [--split train] [--count 1500]

DIR is that of benchmarks/proposals.py. Poisson regression: each annotated box counts for the candidate that overlaps it
most, and the logarithm of a candidate's expected count is linear in its measurements.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
from scipy.optimize import minimize

from benchmarks.proposals import Annotated, read_photographs
from shards.common.box_iou import iou
from shards.common.cli import REQUIRED, command, flag
from shards.detection import handcrafted

DECAY = 1e-4  # L2 penalty of the weights of standardised features


@dataclass
class Config:
    """Flags of this script."""

    photos: str = flag(REQUIRED, "folder of the photographs and their Flickr30k Entities")
    split: str = flag("train", "split of the photographs, the part of the file names after the hyphen")
    count: int = flag(1500, "photographs, spread over the split", low=1)


def nearest_counts(boxes: np.ndarray) -> np.ndarray:
    """Number of boxes (n, 4), relative to the image size, whose nearest candidate is each candidate."""
    candidates = handcrafted.candidate_boxes()
    return np.bincount(iou(boxes, candidates).argmax(1), minlength=len(candidates))


def fit(images: list[Annotated]) -> tuple[float, np.ndarray]:
    """Fits the log-linear model; returns (bias, weights)."""
    measured = np.concatenate([handcrafted.candidate_features(x.image).astype(np.float32) for x in images])
    counts = np.concatenate([nearest_counts(x.boxes) for x in images]).astype(np.float32)
    mean, spread = measured.mean(0, np.float64), measured.std(0, dtype=np.float64)
    measured = ((measured - mean) / spread).astype(np.float32)
    total = counts.sum(dtype=float)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logs = (measured @ parameters[1:].astype(np.float32) + np.float32(parameters[0])).clip(-30, 5)
        rates = np.exp(logs)
        slope = (rates - counts) / total
        likelihood = (counts * logs).sum(dtype=float) - rates.sum(dtype=float)
        value = DECAY * (parameters[1:] ** 2).sum() - likelihood / total
        return value, np.append(slope.sum(dtype=float), measured.T @ slope + 2 * DECAY * parameters[1:])

    start = np.append(np.log(total / len(counts)), np.zeros(measured.shape[1]))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    weights = found[1:] / spread
    return float(found[0] - weights @ mean), weights


def run(config: Config) -> None:
    bias, weights = fit(read_photographs(Path(config.photos), config.split, config.count))
    print(f"BIAS = {bias:.2f}\nWEIGHTS = {{")
    for name, weight in zip(handcrafted.WEIGHTS, weights, strict=True):
        print(f'    "{name}": {weight:.2f},')
    print("}")


if __name__ == "__main__":
    command(Config, run, "benchmarks/fit_proposals.py", __doc__.splitlines()[0], sys.argv[1:])
