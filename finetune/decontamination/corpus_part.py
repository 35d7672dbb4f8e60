"""Finds test images in one part of a corpus: by names, checksums and appearance, with the evidence of each."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from finetune.decontamination import perceptual_hash
from finetune.decontamination.corpus_images import CorpusImage, CorpusPart, corpus_images
from finetune.decontamination.fingerprint_file import read_fingerprint
from finetune.decontamination.hash_search import NEAR, SEARCHES
from finetune.decontamination.kept_results import kept_result, read_kept_result
from finetune.decontamination.known_tests import KnownTests
from finetune.decontamination.perceptual_hash import (
    DIFFERENT,
    compared_forms,
    difference,
    grey,
    image_hashes,
    thumbnail,
)
from shards.common.process_pool import advance
from shards.images.image_files import BadImage

BLOCK = 256  # images that are searched for at a time; their thumbnails are in memory
VERSION = 3  # of what is computed from a part; raise it when results change
CHECKSUM, LOOK = "SHA-256", "look"


class Chain(msgspec.Struct):
    """A chain of links from an image of the corpus to a test photo.

    names: the image id, then the names of the photo, up to the one in a test set; evidence: of each link.
    """

    names: tuple[str, ...]
    evidence: tuple[str, ...]


class FoundImage(msgspec.Struct):
    """A test image in a corpus.

    photos: a name of each test photo that it is; tests: the test sets with these; chains: all that was found, names
    first; difference: the smallest `difference` to a known image of these photos, None if either image is missing.
    """

    image: str
    source: str
    photos: tuple[str, ...]
    tests: tuple[str, ...]
    chains: tuple[Chain, ...]
    difference: float | None = None


class Unseen(msgspec.Struct):
    """An image of the corpus whose appearance could not be compared, and the reason."""

    source: str
    reason: str


@dataclass
class PartResult:
    """What was found in a part.

    images: their number; pictures: the number of those that were decoded; bare: of those whose id is a number of an
    unknown collection; unseen: the images that cannot be decoded.
    """

    images: int = 0
    pictures: int = 0
    bare: int = 0
    found: list[FoundImage] = field(default_factory=list)
    unseen: list[Unseen] = field(default_factory=list)


@dataclass(frozen=True)
class PartJob:
    """A part to be searched.

    known: fingerprint file of the test sets, with its checksum; kept: file of the result; search: a name of
    hash_search.SEARCHES; mirrored: also search for mirrored copies.
    """

    part: CorpusPart
    known: str
    known_sha256: str
    kept: Path
    collection: str | None
    search: str
    mirrored: bool = False

    @property
    def stamp(self) -> str:
        """A hash of everything that the result depends on."""
        files = [(str(Path(name).absolute()), *_state(name)) for name in self.part.files]
        settings = (VERSION, NEAR, DIFFERENT, perceptual_hash.TRIMMED)
        inputs = [files, self.part.files, self.known_sha256, self.collection, repr(settings), self.mirrored]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether the result of an earlier run, or of another rank, exists."""
        return read_kept_result(self.kept, self.stamp) is not None


def _state(name: str) -> tuple[int, int]:
    try:
        found = Path(name).stat()
    except OSError:  # a broken link
        return 0, 0
    return found.st_size, found.st_mtime_ns


def search_part(job: PartJob) -> PartResult:
    """Searches a part, or returns the result of an earlier run; in a worker process."""
    kept, _ = kept_result(job.kept, job.stamp, lambda: _encode(_search(job)))
    advance(job.part.bytes)
    return _decode(kept)


def _encode(result: PartResult) -> dict[str, np.ndarray]:
    lines = {"found": result.found, "unseen": result.unseen}
    arrays = {name: np.frombuffer(msgspec.json.encode(value), np.uint8) for name, value in lines.items()}
    return arrays | {"counts": np.array([result.images, result.pictures, result.bare], np.int64)}


def _decode(arrays: dict[str, np.ndarray]) -> PartResult:
    found = msgspec.json.decode(arrays["found"].tobytes(), type=list[FoundImage])
    unseen = msgspec.json.decode(arrays["unseen"].tobytes(), type=list[Unseen])
    return PartResult(*arrays["counts"].tolist(), found, unseen)


class _Index:
    """Known test sets, prepared for a search."""

    def __init__(self, known: KnownTests, search: str):
        self.known = known
        pictures = known.pictures
        self.rows_by_sha256: dict[bytes, list[int]] = {}
        self.rows_by_photo: dict[str, list[int]] = {}
        for row, (name, sha256) in enumerate(zip(pictures.names, map(bytes, pictures.sha256), strict=True)):
            self.rows_by_sha256.setdefault(sha256, []).append(row)
            self.rows_by_photo.setdefault(known.names[name].photo, []).append(row)
        self.searched = np.flatnonzero(pictures.hashes.any(1))  # an image of one colour has no hash
        self.search = SEARCHES[search](pictures.hashes[self.searched])
        self.image = functools.lru_cache(maxsize=4096)(pictures.image)

    def rows_of(self, names: Iterable[str]) -> set[int]:
        """The rows of the known images of some photos."""
        return {row for name in names for row in self.rows_by_photo.get(self.known.names[name].photo, ())}

    def near(self, hashes: np.ndarray) -> list[list[int]]:
        """The rows of the known images with near hashes, for each image. hashes: uint64 (n, 6)."""
        found: list[list[int]] = [[] for _ in hashes]
        for image, row in self.search.pairs(hashes).tolist():
            found[image].append(int(self.searched[row]))
        return found


@functools.lru_cache(maxsize=1)
def _index(path: str, sha256: str, search: str) -> _Index:
    """The index of a fingerprint file, which a worker process reads once. sha256: of the file."""
    return _Index(read_fingerprint(path), search)


@dataclass(frozen=True)
class _Seen:
    """What is kept of an image while a block is searched. image: without its picture, which may be large.

    sha256: of the file, as it is in the corpus and as it was downloaded; hashes: of the image and, if mirrored copies
    are searched for, of its mirror image, uint64 (1 or 2, 6), zeros without a picture.
    """

    image: CorpusImage
    sha256: tuple[bytes, ...]
    thumbnail: Image.Image | None
    hashes: np.ndarray


def _search(job: PartJob) -> PartResult:
    index, result = _index(job.known, job.known_sha256, job.search), PartResult()
    seen = (_see(image, job.mirrored, result) for image in corpus_images(job.part, job.collection))
    while block := list(itertools.islice(seen, BLOCK)):
        hashes = np.concatenate([one.hashes for one in block])
        hashed, forms = np.flatnonzero(hashes.any(1)), 1 + job.mirrored
        near = dict(zip(hashed.tolist(), index.near(hashes[hashed]), strict=True))
        for number, one in enumerate(block):
            found = _found(index, one, [near.get(number * forms + form, []) for form in range(forms)])
            if found:
                result.found.append(found)
    return result


def _see(image: CorpusImage, mirrored: bool, result: PartResult) -> _Seen:
    """Decodes and counts an image. mirrored: hash its mirror image too."""
    result.images += 1
    result.bare += image.bare
    without, picture = dataclasses.replace(image, picture=None), image.picture
    sha256 = [hashlib.sha256(picture).digest()] if isinstance(picture, bytes) else []
    with contextlib.suppress(ValueError):  # not a checksum
        sha256.append(bytes.fromhex(image.sha256))
    small, hashes = None, np.zeros((1 + mirrored, len(perceptual_hash.TRIMMED)), np.uint64)
    if picture is not None:
        try:
            whole = grey(picture)
            small = thumbnail(whole)
            hashes = np.stack([image_hashes(form) for form in compared_forms(whole, mirrored)])
            result.pictures += 1
        except BadImage as error:
            result.unseen.append(Unseen(image.source, str(error)))
    return _Seen(without, tuple(dict.fromkeys(sha256)), small, hashes)


def _found(index: _Index, seen: _Seen, near: list[list[int]]) -> FoundImage | None:
    """The evidence that an image is a test photo, or None.

    near: rows of the known images whose hashes are near those of the image, and of its mirror image, if it has been
    hashed.
    """
    known, image = index.known, seen.image
    rows = [row for sha256 in seen.sha256 for row in index.rows_by_sha256.get(sha256, ())]
    links = [(name, evidence) for name, evidence in image.names if name in known.names]
    links += [(known.pictures.names[row], CHECKSUM) for row in rows]
    differences: dict[int, float] = {}
    if seen.thumbnail is not None:
        stated = index.rows_of(name for name, _ in links)
        forms = compared_forms(seen.thumbnail, mirrored=len(near) > 1)
        for rows_near, form, mark in zip(near, forms, ("", ", mirrored")[: len(near)], strict=True):
            compared = {row: round(difference(form, index.image(row)), 3) for row in sorted({*rows_near, *stated})}
            same = sorted((value, row) for row, value in compared.items() if value <= DIFFERENT and row in rows_near)
            links += [(known.pictures.names[row], f"{LOOK} ({value}{mark})") for value, row in same]
            for row, value in compared.items():
                differences[row] = min(value, differences.get(row, value))
    if not links:
        return None
    photos = tuple(sorted({known.names[name].photo for name, _ in links}))
    tests = tuple(sorted({test for name, _ in links for test in known.names[name].sets}))
    smallest = min((differences[row] for row in index.rows_of(n for n, _ in links) if row in differences), default=None)
    chains = tuple(_chain(known, image.id, name, evidence) for name, evidence in dict.fromkeys(links))
    return FoundImage(image.id, image.source, photos, tests, chains, smallest)


def _chain(known: KnownTests, image: str, name: str, evidence: str) -> Chain:
    one = known.names[name]
    return Chain((image, *one.names), (evidence, *one.evidence))
