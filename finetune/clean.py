"""python -m finetune.clean --data DIR: images of any task's test leave every task's training and validation."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from finetune.cleaning.cleaned import FORMAT, MANIFEST, Removed, list_file
from finetune.cleaning.leaks import check
from finetune.cleaning.near_duplicates import PAIRS, add_near_duplicates
from finetune.cleaning.photos import Photos, Trail, add_genome
from finetune.cleaning.table import TaskCount, report
from finetune.official import MissingFile, find_file
from finetune.processed import published_tests
from finetune.task import Task
from finetune.tasks import all_tasks, find_task
from finetune.tasks.vgqa import IMAGE_DATA
from shards.errors import UserError
from shards.files import whole_file, write_json
from shards.flags import command, flag
from shards.folder_lock import locked_folder
from shards.jobs import advance, run_tasks
from shards.world import DEFAULT_WORLD, check_data_folder


@dataclass
class CleanConfig:
    """Flags of finetune.clean."""

    data: str = flag(DEFAULT_WORLD, "a folder with the tasks' official files")
    out: str | None = flag(None, "the folder for what is removed", unset="DATA/clean", written=True)
    images: str | None = flag(
        None, "a folder with folders of images, coco for one: compare their looks too", unset="looks are not compared"
    )
    check: bool = flag(False, "look for test images in what training and validation would use, and change nothing")
    processes: int = flag(os.cpu_count() or 1, "working processes", low=1)


@dataclass
class Reading:
    """A split to be read, by a working process."""

    task: str
    folder: Path
    split: str


Counts = dict[tuple[str, str], Counter[tuple[str, ...]]]  # (task, split) -> examples by their images


@dataclass
class Annotations:
    """What the tasks' annotations say of images. absent: splits of a test that are not there, and files."""

    tasks: list[Task]
    counts: Counts = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)

    def images(self, task: Task, splits: tuple[str, ...]) -> dict[str, int]:
        """Image -> how many examples of these splits have it, in their order."""
        found: dict[str, int] = {}
        for split in splits:
            for images, examples in self.counts.get((task.name, split), {}).items():
                for image in dict.fromkeys(images):
                    found[image] = found.get(image, 0) + examples
        return found


def count_images(reading: Reading) -> Counter[tuple[str, ...]] | str:
    """The images of a split, or the sentence that says which file is not there."""
    try:
        return find_task(reading.task).image_counts(reading.folder, reading.split)
    except MissingFile as error:
        return str(error)
    finally:
        advance()


def read_all(data: str, processes: int) -> Annotations:
    """The images of every split of every task that the data folder has."""
    tasks = [task for task in all_tasks().values() if task.folder(data).is_dir()]
    if not tasks:
        raise UserError(f"--data {data}: holds no folder of a task; {', '.join(all_tasks())} are their names")
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
    """What the id maps say of the photos' names."""
    photos, genome = Photos(), find_task("vgqa")
    path = find_file(genome.folder(data), IMAGE_DATA)
    if path.exists():
        add_genome(photos, path)
    elif any(task.photo("0").startswith("genome:") for task in found.tasks):
        found.absent.append(f"{path}: without it Visual Genome's images are not known under COCO's and Flickr's names")
    return photos


def test_photos(data: str, found: Annotations) -> dict[str, str]:
    """The name of every photo of a test -> whose it is. The published code's lists of such photos count too."""
    tests: dict[str, str] = {}
    for task in found.tasks:
        for split in task.tests:
            for image in found.images(task, (split,)):
                tests.setdefault(task.photo(image), f"{task.name} {split}")
        for name in published_tests(task.folder(data)):
            tests.setdefault(*name)
    return tests


def clean(config: CleanConfig) -> str:
    """Writes what each task leaves out and why; returns the report."""
    out = Path(config.out or Path(config.data) / "clean")
    with locked_folder(out, "finetune.clean"):
        return _clean(config, out)


def _clean(config: CleanConfig, out: Path) -> str:
    found = read_all(config.data, config.processes)
    photos, tests = identities(config.data, found), test_photos(config.data, found)
    if not tests:
        raise UserError(f"--data {config.data}: has no test images to remove; {'; '.join(found.absent)}")
    (out / MANIFEST).unlink(missing_ok=True)  # until the lists are whole there is none
    if config.images:
        add_near_duplicates(photos, config.images, out, set(tests), config.processes)
    else:
        (out / PAIRS).unlink(missing_ok=True)
    trails, rows = photos.trails(tests), []
    for task in found.tasks:
        images = found.images(task, task.learned)
        removed = {image: trails[name] for image in images if (name := task.photo(image)) in trails}
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
    return f"{text}\nthe lists are in {out}{os.sep}; --clean {out} of finetune.st and finetune.mt leaves them out"


def write_list(path: Path, removed: dict[str, Trail], examples: dict[str, int]) -> None:
    """A line an image, by its id."""
    with whole_file(path) as file:
        for image, trail in sorted(removed.items()):
            line = Removed(image, examples[image], trail.test, trail.names, trail.evidence)
            file.write(msgspec.json.encode(line) + b"\n")


def _count(task: Task, found: Annotations, images: set[str], removed: set[str]) -> TaskCount:
    """The task's numbers for the report."""

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
        print("\n".join(leaks) if leaks else "no image of a test is left in any training or validation set")
        return 1 if leaks else 0
    print(clean(config))
    return 0


if __name__ == "__main__":
    command(CleanConfig, run, "finetune.clean", "Test images of any task leave every task's training and validation.")
