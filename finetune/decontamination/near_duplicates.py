"""Near-duplicate search: finds copies of the same photo that no map of image ids links."""

import itertools
from pathlib import Path

import msgspec
import numpy as np

from finetune.annotations.official_files import scan_lines
from finetune.decontamination.image_identity import Photos
from finetune.decontamination.image_jobs import CompareJob, HashJob, MatchJob, compare_pairs, hash_images, match_hashes
from finetune.decontamination.perceptual_hash import DIFFERENT
from finetune.tasks import all_tasks
from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.files import files_below, is_utf8, printable, whole_file
from shards.common.image_id import NOT_UTF8, SAME_ID, image_id, is_image
from shards.common.process_pool import run_tasks

PAIRS = "look_alikes.jsonl"
PART = 500  # images per hashing job
COMPARED = 200  # pairs per comparison job
SHOWN = 10  # unreadable images that are printed
BLOCK = 4096  # images per matching job


def _why_not_read(path: Path) -> str:
    """The reason not to read a file; empty if it can be read."""
    if not path.exists():
        return "is a broken link"
    if not path.is_file():
        return "is a named pipe or a device"
    return "" if is_utf8(str(path)) else NOT_UTF8


def image_files(folder: str) -> dict[str, Path]:
    """Photo name -> file, for every image in FOLDER/NAME, where NAME is the name of the tasks' region shards."""
    photo_of = {task.images: task.photo for task in all_tasks().values()}
    present = [Path(folder) / name for name in photo_of if (Path(folder) / name).is_dir()]
    if not present:
        raise UserError(f"--images {folder}: should contain one or more folders named {', '.join(photo_of)}")
    found: dict[str, Path] = {}
    bad: list[str] = []
    for part in present:
        own: dict[str, Path] = {}
        for path in map(Path, files_below(part, is_image)):
            if reason := _why_not_read(path):
                bad.append(f"{printable(path)}: {reason}")
                continue
            image = image_id(path.name)
            if image in own:
                raise UserError(f"{own[image]} and {path}: {SAME_ID.format(image=image)}")
            own[image] = path
            found.setdefault(photo_of[part.name](image), path)
    print_skipped(bad)
    if not found:
        raise UserError(f"--images {folder}: no images in {', '.join(map(str, present))}")
    return found


class NearDuplicate(msgspec.Struct):
    """Two names of the same photo, and the `difference` of their images."""

    one: str
    other: str
    difference: float


def add_near_duplicates(
    photos: Photos, files: dict[str, Path], out: Path, tests: set[str], processes: int, search: str
) -> set[str]:
    """Searches all images for near-duplicates of test images, writes the pairs to OUT and links their names.

    Returns the names of the photos whose files were compared; those that cannot be decoded were not, nor were images of
    one colour.

    Args:
        photos: the links that are extended.
        files: photo name -> image file, see image_files.
        out: output folder of finetune.clean.
        tests: names of the test photos.
        processes: number of worker processes.
        search: name of the search method, of hash_search.SEARCHES.
    """
    print(f"hashing {counted(len(files), 'image')}", flush=True)
    hashes = _hash_all(list(files.values()), out / "looks", processes)
    candidates = _candidates(files, hashes, tests, processes, search)
    jobs = [
        CompareJob([(files[one], files[other]) for one, other in candidates[begin : begin + COMPARED]])
        for begin in range(0, len(candidates), COMPARED)
    ]
    differences = itertools.chain(*_in_order(compare_pairs, jobs, processes, len(candidates), "pairs"))
    pairs = [
        NearDuplicate(one, other, round(value, 3))
        for (one, other), value in zip(candidates, differences, strict=True)
        if value <= DIFFERENT
    ]
    with whole_file(out / PAIRS) as file:
        for pair in pairs:
            file.write(msgspec.json.encode(pair) + b"\n")
            photos.same(pair.one, pair.other, f"look ({pair.difference})")
    print(f"{len(pairs)} of {len(candidates)} candidate pairs are near-duplicates", flush=True)
    return {name for name, compared in zip(files, hashes.any(1).tolist(), strict=True) if compared}


def _hash_all(files: list[Path], folder: Path, processes: int) -> np.ndarray:
    """uint64 (files, 6): hashes of all files; zeros for files that cannot be read, which are printed."""
    jobs = [
        HashJob(files[begin : begin + PART], folder / f"{begin // PART:06d}.npz")
        for begin in range(0, len(files), PART)
    ]
    results = _in_order(hash_images, jobs, processes, len(files), "images")
    bad = [sentence for _, sentences in results for sentence in sentences]
    print_skipped(bad)
    return np.concatenate([hashes for hashes, _ in results])


def print_skipped(sentences: list[str]) -> None:
    """Prints the first messages on images that were skipped."""
    for sentence in sentences[:SHOWN]:
        print(f"skipped {sentence}")
    if len(sentences) > SHOWN:
        print(f"skipped {len(sentences) - SHOWN} more")


def _candidates(
    files: dict[str, Path], hashes: np.ndarray, tests: set[str], processes: int, search: str
) -> list[tuple[str, str]]:
    """Pairs of photo names, one of them a test photo, whose hashes are near."""
    names, readable = list(files), hashes.any(1)
    others = np.flatnonzero(readable)
    tested = np.array([n for n in others.tolist() if names[n] in tests], np.int64)
    print(f"comparing {counted(len(others), 'image')} with {counted(len(tested), 'test image')}", flush=True)
    jobs = [
        MatchJob(hashes[others[begin : begin + BLOCK]], hashes[tested], search)
        for begin in range(0, len(others), BLOCK)
    ]
    found = set()
    for number, pairs in enumerate(_in_order(match_hashes, jobs, processes, len(others), "images")):
        for row, column in pairs.tolist():
            one, other = names[others[number * BLOCK + row]], names[tested[column]]
            if one != other:
                found.add((min(one, other), max(one, other)))
    return sorted(found)


def _in_order(function, jobs: list, processes: int, total: int, unit: str) -> list:
    """The results of jobs that run in worker processes, in the order of the jobs."""
    done = dict(run_tasks(function, jobs, processes, total, unit)) if jobs else {}
    return [done[number] for number in range(len(jobs))]


def read_pairs(folder) -> list[NearDuplicate]:
    """The near-duplicate pairs in an output folder of finetune.clean; an empty list if it did not search for them."""
    path = Path(folder) / PAIRS
    return list(scan_lines(path, NearDuplicate)) if path.exists() else []
