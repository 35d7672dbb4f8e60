"""What worker processes do in a search for near-duplicates: hash, match and compare images.

Apart from near_duplicates.py, which imports the tasks and with them torch: a worker would take seconds to start.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.decontamination.hash_search import SEARCHES
from finetune.decontamination.kept_results import kept_result
from finetune.decontamination.perceptual_hash import difference, grey, image_hashes
from shards.common.process_pool import advance
from shards.images.image_files import BadImage


@dataclass
class HashJob:
    """Images to be hashed. kept: file that caches the hashes between runs."""

    files: list[Path]
    kept: Path


@dataclass
class MatchJob:
    """Hashes to be compared with those of all test images. search: name of the method, of hash_search.SEARCHES."""

    hashes: np.ndarray
    tests: np.ndarray
    search: str


@dataclass
class CompareJob:
    """Pairs of image files to be compared by `difference`."""

    pairs: list[tuple[Path, Path]]


def hash_images(job: HashJob) -> tuple[np.ndarray, list[str]]:
    """(uint64 (n, 6) hashes, zeros for images that cannot be read; a message on each of these)."""
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in job.files]
    stamp = hashlib.sha256(json.dumps([str(job.files[0].parent), states]).encode()).hexdigest()
    kept, earlier = kept_result(job.kept, stamp, lambda: _hash(job.files))
    if earlier:
        advance(len(job.files))
    return kept["hashes"], kept["bad"].tolist()


def _hash(files: list[Path]) -> dict[str, np.ndarray]:
    hashes, bad = [], []
    for path in files:
        try:
            hashes.append(image_hashes(grey(path.read_bytes())))
        except BadImage as error:
            hashes.append(np.zeros(6, np.uint64))
            bad.append(f"{path}: {error}")
        advance()
    return {"hashes": np.stack(hashes), "bad": np.array(bad, np.str_)}


def match_hashes(job: MatchJob) -> np.ndarray:
    """The near pairs of a block of images and all test images."""
    found = SEARCHES[job.search](job.tests).pairs(job.hashes)
    advance(len(job.hashes))
    return found


def compare_pairs(job: CompareJob) -> list[float]:
    """`difference` of the two images of each pair."""
    found = []
    for one, other in job.pairs:
        found.append(difference(grey(one.read_bytes()), grey(other.read_bytes())))
        advance()
    return found
