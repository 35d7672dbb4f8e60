"""Photos that are the same by their look, where no map of ids says so."""

import contextlib
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from finetune.cleaning.looks import DIFFERENT, difference, grey, look_hashes, near_pairs
from finetune.cleaning.photos import Photos
from finetune.official import scan_lines
from finetune.tasks import all_tasks
from shards.errors import UserError
from shards.files import files_below, is_utf8, printable, whole_file
from shards.image_id import NOT_UTF8, SAME_ID, image_id, is_image
from shards.images import BadImage
from shards.jobs import advance, run_tasks
from shards.reading import read_arrays, reading

PAIRS = "look_alikes.jsonl"
PART = 500  # images that a process looks at together
COMPARED = 200  # pairs
SHOWN = 10  # images that cannot be read
BLOCK = 4096  # images against all those of tests, by one process


@dataclass
class Looking:
    """Images to be hashed; hashes are kept in a file from run to run."""

    files: list[Path]
    kept: Path


@dataclass
class Matching:
    """Hashes to be compared with those of test images."""

    hashes: np.ndarray
    tests: np.ndarray


@dataclass
class Comparing:
    """Pairs of files to be compared closely."""

    pairs: list[tuple[Path, Path]]


def image_files(folder: str) -> dict[str, Path]:
    """Photo -> its file, for every image in FOLDER/NAME, NAME as the tasks call their regions."""
    photo_of = {task.images: task.photo for task in all_tasks().values()}
    there = [Path(folder) / name for name in photo_of if (Path(folder) / name).is_dir()]
    if not there:
        raise UserError(
            f"--images {folder}: should have folders of images named {', '.join(photo_of)}, or some of them"
        )
    found: dict[str, Path] = {}
    bad: list[str] = []
    for part in there:
        own: dict[str, Path] = {}
        for path in map(Path, files_below(part, is_image)):
            if not is_utf8(str(path)) or not path.exists():
                bad.append(f"{printable(path)}: {NOT_UTF8 if path.exists() else 'is a link to nothing'}")
                continue
            image = image_id(path.name)
            if image in own:
                raise UserError(f"{own[image]} and {path}: {SAME_ID.format(image=image)}")
            own[image] = path
            found.setdefault(photo_of[part.name](image), path)
    _print_skipped(bad)
    if not found:
        raise UserError(f"--images {folder}: {', '.join(map(str, there))} hold no images")
    return found


def look(looking: Looking) -> tuple[np.ndarray, list[str]]:
    """(uint64 (n, 6) hashes, zeros of what cannot be read; sentences on these)."""
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in looking.files]
    stamp = hashlib.sha256(json.dumps([str(looking.files[0].parent), facts]).encode()).hexdigest()
    if looking.kept.exists():
        with contextlib.suppress(UserError), reading(looking.kept):  # one that was damaged is made again
            kept = read_arrays(looking.kept)
            if str(kept["stamp"]) == stamp and kept["hashes"].shape == (len(looking.files), 6):
                advance(len(looking.files))
                return kept["hashes"].astype(np.uint64, casting="same_kind"), kept["bad"].tolist()
    hashes, bad = [], []
    for path in looking.files:
        try:
            hashes.append(look_hashes(grey(path.read_bytes())))
        except BadImage as error:
            hashes.append(np.zeros(6, np.uint64))
            bad.append(f"{path}: {error}")
        advance()
    with whole_file(looking.kept) as file:
        np.savez(file, stamp=stamp, hashes=np.stack(hashes), bad=np.array(bad, np.str_))
    return np.stack(hashes), bad


def match(matching: Matching) -> np.ndarray:
    """`near_pairs` of a block of images with all those of tests."""
    found = near_pairs(matching.hashes, matching.tests)
    advance(len(matching.hashes))
    return found


def compare(comparing: Comparing) -> list[float]:
    """How much the images of each pair differ."""
    found = []
    for one, other in comparing.pairs:
        found.append(difference(grey(one.read_bytes()), grey(other.read_bytes())))
        advance()
    return found


class Pair(msgspec.Struct):
    """Two names of one photo, and how much its images differ."""

    one: str
    other: str
    difference: float


def add_near_duplicates(photos: Photos, folder: str, out: Path, tests: set[str], processes: int) -> None:
    """Finds images of tests among all others by their look, writes the pairs to OUT and adds them to what is known."""
    files = image_files(folder)
    print(f"looking at {len(files)} images", flush=True)
    candidates = _candidates(files, _hash_all(list(files.values()), out / "looks", processes), tests, processes)
    tasks = [
        Comparing([(files[one], files[other]) for one, other in candidates[begin : begin + COMPARED]])
        for begin in range(0, len(candidates), COMPARED)
    ]
    differences = itertools.chain(*_in_order(compare, tasks, processes, len(candidates), "pairs"))
    pairs = [
        Pair(one, other, round(value, 3))
        for (one, other), value in zip(candidates, differences, strict=True)
        if value <= DIFFERENT
    ]
    with whole_file(out / PAIRS) as file:
        for pair in pairs:
            file.write(msgspec.json.encode(pair) + b"\n")
            photos.same(pair.one, pair.other, f"look ({pair.difference})")
    print(f"{len(pairs)} of {len(candidates)} pairs of like images are one photo", flush=True)


def _hash_all(files: list[Path], folder: Path, processes: int) -> np.ndarray:
    """uint64 (files, 6); zeros of those that cannot be read, which are told."""
    parts = [
        Looking(files[begin : begin + PART], folder / f"{begin // PART:06d}.npz")
        for begin in range(0, len(files), PART)
    ]
    looks = _in_order(look, parts, processes, len(files), "images")
    bad = [sentence for _, sentences in looks for sentence in sentences]
    _print_skipped(bad)
    return np.concatenate([hashes for hashes, _ in looks])


def _print_skipped(sentences: list[str]) -> None:
    for sentence in sentences[:SHOWN]:
        print(f"skipped {sentence}")
    if len(sentences) > SHOWN:
        print(f"skipped {len(sentences) - SHOWN} more")


def _candidates(files: dict[str, Path], hashes: np.ndarray, tests: set[str], processes: int) -> list[tuple[str, str]]:
    """Pairs of photos, one of a test, whose hashes are near."""
    names, readable = list(files), hashes.any(1)
    others = np.flatnonzero(readable)
    tested = np.array([n for n in others.tolist() if names[n] in tests], np.int64)
    print(f"comparing {len(others)} images with {len(tested)} of tests", flush=True)
    blocks = [Matching(hashes[others[begin : begin + BLOCK]], hashes[tested]) for begin in range(0, len(others), BLOCK)]
    found = set()
    for number, pairs in enumerate(_in_order(match, blocks, processes, len(others), "images")):
        for row, column in pairs.tolist():
            one, other = names[others[number * BLOCK + row]], names[tested[column]]
            if one != other:
                found.add((min(one, other), max(one, other)))
    return sorted(found)


def _in_order(function, tasks: list, processes: int, total: int, unit: str) -> list:
    """What processes make of tasks, in the order of these."""
    done = dict(run_tasks(function, tasks, processes, total, unit)) if tasks else {}
    return [done[number] for number in range(len(tasks))]


def read_pairs(folder) -> list[Pair]:
    """The pairs that a run in `folder` has found by look; none where it did not look."""
    path = Path(folder) / PAIRS
    return list(scan_lines(path, Pair)) if path.exists() else []
