"""Checks that no test image remains in training or validation data, by code that is independent of finetune.clean."""

import numpy as np
import scipy  # imports its parts when they are used; some take a second

from finetune.annotations.official_files import MissingFile, find_file, read_annotations
from finetune.decontamination.manifest import read_cleaned, read_manifest
from finetune.decontamination.near_duplicates import read_pairs
from finetune.prepared.packed_examples import PackedExamples
from finetune.tasks import all_tasks, find_task
from finetune.tasks.vgqa import IMAGE_DATA
from shards.common.progress_bar import progress_bar

SHOWN = 20  # leaks that are printed per split


def find_leaks(data: str, folder) -> list[str]:
    """One message per leak; an empty list if there are no leaks.

    Examples are read as in training, with the lists of `folder` applied. Names of the same photo are the connected
    components of a graph.
    """
    manifest = read_manifest(folder)
    tests: dict[str, str] = {}  # photo name -> "task split"
    kept: list[tuple[str, str, str]] = []  # (name, task and split, image)
    sentences = []
    tasks = [task for task in all_tasks().values() if task.folder(data).is_dir()]
    for task in progress_bar(tasks, unit=" tasks"):
        known = manifest["tasks"].get(task.name)
        if known is None:
            sentences.append(f"{task.name}: not in {folder}; run finetune.clean again")
            continue
        cleaned = read_cleaned(folder, task)
        for split in (*task.learned, *task.tests):
            try:
                examples = PackedExamples.of(task.examples(task.folder(data), split))
            except MissingFile:
                continue
            left = cleaned.keep(split, examples, log=lambda _: None)
            images = {image for images in left.images()[0] for image in images}
            if task.is_test(split):
                tests |= {task.photo(image): f"{task.name} {split}" for image in images}
                continue
            kept += [(task.photo(image), f"{task.name} {split}", image) for image in sorted(images)]
            then = known["examples"][split]
            if (len(examples), len(left)) != (then["all"], then["kept"]):
                sentences.append(
                    f"{task.name} {split}: has {len(examples)} examples, {len(left)} without test images, and had "
                    f"{then['all']} and {then['kept']} when finetune.clean ran; run it again"
                )
    return sentences + _leaks(kept, tests, _same(data, folder))


def _same(data: str, folder) -> list[tuple[str, str]]:
    """Pairs of names of the same photo: from Visual Genome's id map and from the near-duplicate search."""
    pairs = [(pair.one, pair.other) for pair in read_pairs(folder)]
    path = find_file(find_task("vgqa").folder(data), IMAGE_DATA)
    for image in read_annotations(path) if path.exists() else ():
        for collection in ("coco", "flickr"):
            if image.get(f"{collection}_id") is not None:
                pairs.append((f"genome:{image['image_id']}", f"{collection}:{image[f'{collection}_id']}"))
    return pairs


def _leaks(kept: list[tuple[str, str, str]], tests: dict[str, str], same: list[tuple[str, str]]) -> list[str]:
    numbers: dict[str, int] = {}
    for name in (*tests, *(name for name, _, _ in kept), *(name for pair in same for name in pair)):
        numbers.setdefault(name, len(numbers))
    ends = np.array([[numbers[one], numbers[other]] for one, other in same], np.int64).reshape(-1, 2)
    edges = scipy.sparse.coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(numbers), len(numbers)))
    group = scipy.sparse.csgraph.connected_components(edges, directed=False)[1]
    tested = {int(group[numbers[name]]): (name, test) for name, test in tests.items()}
    found: dict[str, list[str]] = {}
    for name, place, image in kept:
        if (known := tested.get(int(group[numbers[name]]))) is not None:
            found.setdefault(place, []).append(f"{place}: image {image} is {known[0]}, in the test set {known[1]}")
    lines = []
    for place, leaks in found.items():
        lines += leaks[:SHOWN]
        if len(leaks) > SHOWN:
            lines.append(f"{place}: and {len(leaks) - SHOWN} more")
    return lines
