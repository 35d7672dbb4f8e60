"""python -m finetune.clean --data DIR: decontamination (Clean V&L).

Finds images that are in the test set of any task and lists, for every task, the training and validation images to
remove.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from finetune.annotations.official_files import MissingFile, find_file
from finetune.annotations.reference_annotations import published_tests
from finetune.decontamination.image_identity import LinkPath, Photos, add_genome
from finetune.decontamination.manifest import FORMAT, MANIFEST, Removed, list_file
from finetune.decontamination.near_duplicates import PAIRS, add_near_duplicates
from finetune.decontamination.removal_table import TaskCount, report
from finetune.decontamination.verify import check
from finetune.task_types.base import Task
from finetune.tasks import all_tasks, find_task
from finetune.tasks.vgqa import IMAGE_DATA
from shards.common.cli import command, flag
from shards.common.errors import UserError
from shards.common.files import whole_file, write_json
from shards.common.folder_lock import locked_folder
from shards.common.process_pool import advance, run_tasks
from shards.world import DEFAULT_WORLD, check_data_folder


@dataclass
class CleanConfig:
    """Flags of finetune.clean."""

    data: str = flag(DEFAULT_WORLD, "data folder with the tasks' official files")
    out: str | None = flag(None, "output folder for the lists of removed images", unset="DATA/clean", written=True)
    images: str | None = flag(
        None,
        "folder with one folder of images per data set (such as coco), to find near-duplicate images too",
        unset="images are matched by their ids only",
    )
    check: bool = flag(False, "only check whether test images remain in training and validation; write nothing")
    processes: int = flag(os.cpu_count() or 1, "number of worker processes", low=1)


@dataclass
class Reading:
    """A split of a task that a worker process reads."""

    task: str
    folder: Path
    split: str


Counts = dict[tuple[str, str], Counter[tuple[str, ...]]]  # (task, split) -> number of examples by their images


@dataclass
class Annotations:
    """The images of all splits of the tasks. absent: sentences on splits and files that were not found."""

    tasks: list[Task]
    counts: Counts = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)

    def images(self, task: Task, splits: tuple[str, ...]) -> dict[str, int]:
        """Image -> number of examples of these splits that contain it, in the order of the examples."""
        found: dict[str, int] = {}
        for split in splits:
            for images, examples in self.counts.get((task.name, split), {}).items():
                for image in dict.fromkeys(images):
                    found[image] = found.get(image, 0) + examples
        return found


def count_images(reading: Reading) -> Counter[tuple[str, ...]] | str:
    """The number of examples by images of a split, or an error message where its file is missing."""
    try:
        return find_task(reading.task).image_counts(reading.folder, reading.split)
    except MissingFile as error:
        return str(error)
    finally:
        advance()


def read_all(data: str, processes: int) -> Annotations:
    """Reads the images of every split of every task in the data folder."""
    tasks = [task for task in all_tasks().values() if task.folder(data).is_dir()]
    if not tasks:
        raise UserError(f"--data {data}: contains no folder of a task; expected one of {', '.join(all_tasks())}")
    found = Annotations(tasks)
    readings = [Reading(t.name, t.folder(data), split) for t in tasks for split in (*t.learned, *t.tests)]
    done = dict(run_tasks(count_images, readings, processes, len(readings), "splits"))
    for number, reading in enumerate(readings):
        if isinstance(done[number], str):
            found.absent.append(f"{reading.task}'s {reading.split}: {done[number]}")
        else:
            found.counts[reading.task, reading.split] = done[number]
    return found


def identities(data: str, found: Annotations) -> Photos:
    """Links between photo names, from the official maps of image ids."""
    photos, genome = Photos(), find_task("vgqa")
    path = find_file(genome.folder(data), IMAGE_DATA)
    if path.exists():
        add_genome(photos, path)
    elif any(task.photo("0").startswith("genome:") for task in found.tasks):
        found.absent.append(f"{path}: needed to match Visual Genome's images with those of COCO and Flickr")
    return photos


def test_photos(data: str, found: Annotations) -> dict[str, str]:
    """Name of every test photo -> "task split" that contains it.

    The reference implementation's lists of test photos, where the data folder has them, are included.
    """
    tests: dict[str, str] = {}
    for task in found.tasks:
        for split in task.tests:
            for image in found.images(task, (split,)):
                tests.setdefault(task.photo(image), f"{task.name} {split}")
        for name in published_tests(task.folder(data)):
            tests.setdefault(*name)
    return tests


def clean(config: CleanConfig) -> str:
    """Writes the lists of removed images, with the reasons, and returns the report."""
    out = Path(config.out or Path(config.data) / "clean")
    with locked_folder(out, "finetune.clean"):
        return _clean(config, out)


def _clean(config: CleanConfig, out: Path) -> str:
    found = read_all(config.data, config.processes)
    photos, tests = identities(config.data, found), test_photos(config.data, found)
    if not tests:
        raise UserError(f"--data {config.data}: found no test images; {'; '.join(found.absent)}")
    (out / MANIFEST).unlink(missing_ok=True)  # a manifest exists only together with complete lists
    if config.images:
        add_near_duplicates(photos, config.images, out, set(tests), config.processes)
    else:
        (out / PAIRS).unlink(missing_ok=True)
    paths, rows = photos.paths_to_tests(tests), []
    for task in found.tasks:
        images = found.images(task, task.learned)
        removed = {image: paths[name] for image in images if (name := task.photo(image)) in paths}
        write_list(list_file(out, task), removed, images)
        rows.append(_count(task, found, set(images), set(removed)))
    text = report(rows, found.absent)
    with whole_file(out / "report.txt", "w", encoding="utf-8") as file:
        file.write(text + "\n")
    manifest = {
        "format": FORMAT,
        "test_photos": len(tests),
        "by_look": bool(config.images),
        "absent": found.absent,
        "tasks": {row.task.name: row.facts() for row in rows},
    }
    write_json(out / MANIFEST, manifest)
    return f"{text}\nlists: {out}{os.sep}; train with --clean {out} to skip these images"


def write_list(path: Path, removed: dict[str, LinkPath], examples: dict[str, int]) -> None:
    """Writes one JSON line per removed image, sorted by image id."""
    with whole_file(path) as file:
        for image, links in sorted(removed.items()):
            line = Removed(image, examples[image], links.test, links.names, links.evidence)
            file.write(msgspec.json.encode(line) + b"\n")


def _count(task: Task, found: Annotations, images: set[str], removed: set[str]) -> TaskCount:
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


def run(config: CleanConfig) -> int:
    check_data_folder(config.data)
    if config.check:
        leaks = check(config.data, config.out or Path(config.data) / "clean")
        print("\n".join(leaks) if leaks else "no test image remains in any training or validation set")
        return 1 if leaks else 0
    print(clean(config))
    return 0


if __name__ == "__main__":
    summary = "Decontamination: finds test images of any task in the training and validation data of all tasks."
    command(CleanConfig, run, "finetune.clean", summary)
