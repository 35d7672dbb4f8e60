"""Checks that no known test image remains in a corpus, by other means than the search.

Names are compared by the numbers and the name of the collection in a path, and images by a difference hash (dHash) and
the correlation of their pixels without alignment; the search uses forms of names, a DCT hash and alignment.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.decontamination.corpus_files import MANIFEST
from finetune.decontamination.corpus_images import CorpusImage, CorpusPart, corpus_images, corpus_parts
from finetune.decontamination.fingerprint_file import read_fingerprint
from finetune.decontamination.known_tests import KnownTests
from finetune.decontamination.perceptual_hash import compared_forms, grey
from shards.common.errors import UserError
from shards.common.excluded_ids import read_excluded
from shards.common.process_pool import advance, run_tasks
from shards.images.image_files import BadImage

NEAR, CORRELATED = 4, 0.95  # bits of 64, and correlation of the pixels, of copies that must not remain
SIDE = 16  # pixels, of the images that are correlated
MARKS = {"coco": "coco", "genome": "vg_100k", "flickr": "flickr"}  # what a path of a collection contains
SHOWN = 20  # leaks that are printed


@dataclass(frozen=True)
class CheckJob:
    """A part to check.

    known: fingerprint file; excluded: ids that are not trained on; mirrored: whether mirrored copies are leaks too.
    """

    part: CorpusPart
    known: str
    excluded: frozenset[str]
    collection: str | None
    mirrored: bool


def check_corpus(
    corpus: str, out: Path, known: str, collection: str | None, mirrored: bool, processes: int
) -> list[str]:
    """One message per test image that remains in the corpus without the excluded images.

    Args:
        out: output folder of the search.
        known: fingerprint file of the test sets.
        collection: see corpus_images.
        mirrored: also compare mirrored images.
    """
    if not (out / MANIFEST).exists():
        raise UserError(f"--out {out}: contains no {MANIFEST}; create it with finetune.clean --corpus {corpus}")
    excluded = read_excluded(out)
    jobs = [CheckJob(part, known, excluded, collection, mirrored) for part in corpus_parts(corpus)]
    done = dict(run_tasks(check_part, jobs, processes, sum(job.part.bytes for job in jobs), "B"))
    leaks = [leak for number in range(len(jobs)) for leak in done[number]]
    return leaks[:SHOWN] + ([f"and {len(leaks) - SHOWN} more"] if len(leaks) > SHOWN else [])


def check_part(job: CheckJob) -> list[str]:
    """The leaks in a part, in a worker process."""
    known = read_fingerprint(job.known)
    thumbnails = [known.pictures.image(row) for row in range(len(known.pictures))]
    bits = np.array([difference_hash(image) for image in thumbnails], np.uint64)
    pixels = np.array([_standard(image) for image in thumbnails]).reshape(-1, SIDE * SIDE)
    files = {bytes(sha256) for sha256 in known.pictures.sha256}
    leaks = []
    for image in corpus_images(job.part, job.collection):
        if image.id in job.excluded:
            continue
        if reason := _leak(image, known, files, bits, pixels, job.mirrored):
            leaks.append(f"{image.source}: is a test image ({reason})")
    advance(job.part.bytes)
    return leaks


def _leak(
    image: CorpusImage, known: KnownTests, files: set[bytes], bits: np.ndarray, pixels: np.ndarray, mirrored: bool
) -> str:
    """How an image is known; empty for an image that is not."""
    place = image.source.lower()
    numbers = re.findall(r"\d+", place.rpartition("#")[2].rpartition("/")[2])
    names = {name for name, _ in image.names}
    names |= {f"{of}:{int(number)}" for of, mark in MARKS.items() if mark in place for number in numbers}
    if same := sorted(names & known.names.keys()):
        return same[0]
    if not isinstance(image.picture, bytes):
        return ""
    if hashlib.sha256(image.picture).digest() in files:
        return "the same file"
    try:
        picture = grey(image.picture)
    except BadImage:
        return ""
    for compared in compared_forms(picture, mirrored):
        near = np.flatnonzero(np.bitwise_count(bits ^ np.uint64(difference_hash(compared))) <= NEAR)
        correlations = pixels[near] @ _standard(compared) / SIDE**2
        if len(near) and correlations.max() >= CORRELATED:
            return f"it looks like {known.pictures.names[near[correlations.argmax()]]}"
    return ""


def difference_hash(image: Image.Image) -> int:
    """64 bits of a greyscale image: whether each of 8 x 8 pixels is darker than the one to its right."""
    pixels = np.asarray(image.resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(pixels[:, :-1] < pixels[:, 1:]).tobytes(), "big")


def _standard(image: Image.Image) -> np.ndarray:
    """float32 (SIDE * SIDE,): the pixels with mean 0 and standard deviation 1."""
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    return (pixels - pixels.mean()) / max(float(pixels.std()), 1e-3)
