"""Finds the images to remove from every task's training data, and writes their lists."""

import os
from pathlib import Path

import msgspec

from finetune.config import CleanConfig
from finetune.decontamination.image_identity import LinkPath, Photos
from finetune.decontamination.image_lists import ImagesOfTasks, identities, read_all, test_photos
from finetune.decontamination.manifest import FORMAT, MANIFEST, Removed, list_file, not_compared
from finetune.decontamination.near_duplicates import PAIRS, add_near_duplicates, image_files
from finetune.decontamination.removal_table import TaskCount, removal_report
from finetune.task_types.base import Task
from finetune.tasks import keep_task_files
from shards.common.errors import UserError
from shards.common.files import whole_file, write_json
from shards.common.folder_lock import locked_folder


def clean(config: CleanConfig) -> str:
    """Writes the lists of removed images, with the reasons, and returns the report."""
    out = Path(config.out or Path(config.data) / "clean")
    with locked_folder(out, "finetune.clean"):
        return _clean(config, out)


def _clean(config: CleanConfig, out: Path) -> str:
    found = read_all(config.data, config.processes)
    photos = identities(config.data, found)
    tests = {name: sets[0] for name, sets in test_photos(config.data, found).items()}
    if not tests:
        raise UserError(f"--data {config.data}: found no test images; {'; '.join(found.absent)}")
    (out / MANIFEST).unlink(missing_ok=True)  # a manifest exists only together with complete lists
    compared: set[str] = set()
    if config.images:
        files = image_files(config.images)
        compared = add_near_duplicates(photos, files, out, set(tests), config.processes, config.search)
    else:
        (out / PAIRS).unlink(missing_ok=True)
    paths, rows = photos.paths_to_tests(tests), []
    for task in found.tasks:
        images = found.images(task, task.learned)
        removed = {image: paths[name] for image in images if (name := task.photo(image)) in paths}
        write_list(list_file(out, task), removed, images)
        rows.append(_count(task, found, set(images), set(removed)))
    unseen = _without_picture(found, photos, compared)
    text = "\n".join([removal_report(rows, found.absent), *not_compared(unseen)])
    with whole_file(out / "report.txt", "w", encoding="utf-8") as file:
        file.write(text + "\n")
    manifest = {
        "format": FORMAT,
        "test_photos": len(tests),
        "by_look": bool(config.images),
        "absent": found.absent,
        "without_picture": unseen,
        "tasks": {row.task.name: row.entry() for row in rows},
    }
    keep_task_files(found.tasks, out)
    write_json(out / MANIFEST, manifest)
    return f"{text}\nlists: {out}{os.sep}; train with --clean {out} to skip these images"


def _without_picture(found: ImagesOfTasks, photos: Photos, compared: set[str]) -> dict[str, tuple[int, int]]:
    """Task -> (number of its annotated images, of these without a compared image file under any name)."""
    pictured = set(photos.paths_to_tests(dict.fromkeys(compared, "")))
    counts = {}
    for task in found.tasks:
        images = found.images(task, (*task.learned, *task.tests))
        counts[task.name] = len(images), sum(task.photo(image) not in pictured for image in images)
    return counts


def write_list(path: Path, removed: dict[str, LinkPath], examples: dict[str, int]) -> None:
    """Writes one JSON line per removed image, sorted by image id."""
    with whole_file(path) as file:
        for image, links in sorted(removed.items()):
            line = Removed(image, examples[image], links.test, links.names, links.evidence)
            file.write(msgspec.json.encode(line) + b"\n")


def _count(task: Task, found: ImagesOfTasks, images: set[str], removed: set[str]) -> TaskCount:
    """Counts of images and examples of a task, before and after removal."""

    def examples(split: str, without: set[str]) -> int:
        counts = found.counts.get((task.name, split), {})
        return sum(number for of, number in counts.items() if without.isdisjoint(of))

    return TaskCount(
        task=task,
        images=len(images),
        test_images=len(found.images(task, task.tests)),
        removed_images=len(removed),
        examples={split: (examples(split, set()), examples(split, removed)) for split in task.learned},
    )
