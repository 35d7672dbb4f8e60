"""The images of all splits of all tasks, and the identities of photos."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from finetune.annotations.official_files import MissingFile, existing, find_file
from finetune.annotations.reference_annotations import published_tests
from finetune.decontamination.image_identity import Photos, add_coco, add_genome
from finetune.prepared.prepare_data import IMAGES, Wanted, open_prepared, prepare
from finetune.task_types.base import Task
from finetune.tasks import all_tasks, find_task
from finetune.tasks.refer import INSTANCES
from finetune.tasks.vgqa import IMAGE_DATA
from shards.common.errors import UserError

Counts = dict[tuple[str, str], Counter[tuple[str, ...]]]  # (task, split) -> number of examples by their images


@dataclass
class ImagesOfTasks:
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


def read_all(data: str, processes: int) -> ImagesOfTasks:
    """Reads the images of every split of every task in the data folder."""
    tasks = [task for task in all_tasks().values() if task.folder(data).is_dir()]
    if not tasks:
        raise UserError(f"--data {data}: contains no folder of a task; expected one of {', '.join(all_tasks())}")
    found = ImagesOfTasks(tasks)
    wanted = [Wanted(task, IMAGES, split) for task in tasks for split in (*task.learned, *task.tests)]
    prepare(data, wanted, processes)
    for one in wanted:
        try:
            found.counts[one.task.name, one.split] = open_prepared(data, one)
        except MissingFile as error:
            found.absent.append(f"{one.task.name}'s {one.split}: {error}")
    return found


def identities(data: str, found: ImagesOfTasks) -> Photos:
    """Links between photo names, from the official maps of image ids."""
    photos, genome = Photos(), find_task("vgqa")
    path = find_file(genome.folder(data), IMAGE_DATA)
    if path.exists():
        add_genome(photos, path)
    elif any(task.photo("0").startswith("genome:") for task in found.tasks):
        found.absent.append(f"{path}: needed to match Visual Genome's images with those of COCO and Flickr")
    read: set[bytes] = set()
    for task in found.tasks:
        for path in existing(find_file(task.folder(data), INSTANCES)) if INSTANCES in task.files else ():
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest not in read:  # RefCOCO and RefCOCO+ have the same file
                add_coco(photos, path)
            read.add(digest)
    return photos


def test_photos(data: str, found: ImagesOfTasks, validation: bool = False) -> dict[str, list[str]]:
    """Name of every test photo -> the test sets ("task split") that contain it.

    The reference implementation's lists of test photos, where the data folder has them, are included.

    validation: validation splits count as tests too.
    """
    tests: dict[str, list[str]] = {}
    for task in found.tasks:
        for split in (*task.tests, *(task.learned[1:] if validation else ())):
            for image in found.images(task, (split,)):
                tests.setdefault(task.photo(image), []).append(f"{task.name} {split}")
        for name, file in published_tests(task.folder(data)):
            tests.setdefault(name, []).append(file)
    return {name: list(dict.fromkeys(sets)) for name, sets in tests.items()}
