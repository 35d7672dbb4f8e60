"""Which tasks a data folder is complete for, and what is missing."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from finetune.annotations.official_files import MissingFile
from finetune.data.regions import Regions, region_folder
from finetune.evaluation.paper_results import paper_samples
from finetune.prepared.prepare_data import EXAMPLES, IMAGES, Wanted, for_training, open_examples, open_prepared
from finetune.reporting.downloads import download_of, image_downloads
from finetune.run_dirs.answer_vocabularies import training_answers
from finetune.task_types.base import Task
from shards.common.counted import counted
from shards.common.errors import UserError


@dataclass
class Finding:
    """The result of checking a task.

    rows: (split, examples, images, images with regions) of each split; answers: size of the answer vocabulary; gaps:
    messages on what prevents training, with the fix; missing: official files that were not found; absent: messages on
    optional splits that cannot be used; archives: of the images, with places to download them, if there are no regions.
    """

    task: Task
    rows: list[tuple[str, int, int, int | None]] = field(default_factory=list)
    answers: int | None = None
    gaps: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)


def examined(task: Task) -> list[Wanted]:
    """The prepared data that `examine` opens."""
    others = [Wanted(task, EXAMPLES if _read_whole(task, split) else IMAGES, split) for split in task.splits[2:]]
    return for_training(task) + others


def _read_whole(task: Task, split: str) -> bool:
    """Whether the annotations of a split are read completely, to find errors in them, such as missing answers.

    Only the images of others are read, because GQA's submission has millions of questions.
    """
    return split in task.splits[:2] or split in task.reported


def examine(task: Task, data: str, opened: dict[Path, Regions | str], min_answer_count: int | None = None) -> Finding:
    """Reads every split of a task, looks up the regions of its images, and counts its answers as training does.

    Args:
        task: the task.
        data: data folder.
        opened: cache of region shards by folder, or of the error message.
        min_answer_count: see answer_vocabularies.training_answers.
    """
    found, folder = Finding(task), task.folder(data)
    found.missing = task.missing_files(folder)
    if not folder.is_dir():
        names = f"{folder}{f' (or {Path(data) / task.published})' if task.published else ''}"
        found.gaps.append(f"no folder {names}: it should contain the official files of {task.title}")
        return found
    regions = _regions(region_folder(data, task.images), opened)
    lost = _examine_splits(found, data, regions)
    if task.head.has_vocabulary and task.splits[0] in lost:  # its training annotations can be read
        try:
            found.answers = len(training_answers(task, data, min_answer_count, log=lambda _: None))
        except UserError as error:
            found.gaps.append(f"answers: {error}")
    where = region_folder(data, task.images)
    if isinstance(regions, str):
        found.archives = image_downloads(task.images)
        found.gaps.append(f"{regions}: python -m shards.extract IMAGES --out {where}, or shards.convert FEATURES")
    for split, images in lost.items():
        if images:
            sentence = f"{split}: {counted(len(images), 'image')} without regions in {where}, such as {min(images)}"
            hint = "extract or convert them into a subfolder, or skip their examples with --missing skip"
            (found.gaps if split in task.splits[:2] else found.absent).append(f"{sentence}; {hint}")
    if task.head.has_candidates:
        out = region_folder(data, f"{task.name}_boxes")
        if isinstance(boxes := _regions(out, opened), str):
            found.gaps.append(
                f"{boxes}: python -m finetune.given_boxes --task {task.name} --data {data} --out boxes.jsonl, "
                f"then shards.extract IMAGES --boxes boxes.jsonl --out {out}"
            )
    return found


def _examine_splits(found: Finding, data: str, regions: Regions | str) -> dict[str, list[str]]:
    """Adds a row for every split that can be read; returns the images without regions of each.

    regions: of the task's images, or an error message.
    """
    task, lost = found.task, {}
    for split in task.splits:
        needed = split in task.splits[:2]  # training and validation; the other splits are optional
        try:
            counts = count_examples(task, data, split)
        except UserError as error:
            absent = isinstance(error, MissingFile) and not needed  # its files are listed already
            (found.gaps if needed else found.absent).append(f"{split}: {'files not found' if absent else error}")
            continue
        images = {image for of_example in counts for image in of_example}
        lost[split] = [image for image in images if image not in regions] if isinstance(regions, Regions) else []
        covered = len(images) - len(lost[split]) if isinstance(regions, Regions) else None
        found.rows.append((split, counts.total(), len(images), covered))
    return lost


def count_examples(task: Task, data, split: str) -> Counter[tuple[str, ...]]:
    """Number of examples of a split by their images."""
    if _read_whole(task, split):
        return open_examples(data, task, split).image_counts()
    counts = open_prepared(data, Wanted(task, IMAGES, split))
    if not counts:
        raise UserError(f"{task.folder(data)}: no examples in {task.name}'s split {split}")
    return counts


def _regions(folder: Path, opened: dict[Path, Regions | str]) -> Regions | str:
    if folder not in opened:
        try:
            opened[folder] = Regions(folder)
        except UserError as error:
            opened[folder] = str(error)
    return opened[folder]


def readiness_lines(found: Finding) -> list[str]:
    """The lines of a task in the table."""
    paper, state = paper_samples(found.task), "ready" if not found.gaps else "with gaps" if found.rows else "not ready"
    lines = [f"{found.task.name}: {state}"]
    for split, examples, images, covered in found.rows:
        published, covered = paper.get(split, ""), "-" if covered is None else covered
        lines.append(f"  {split:<13} {examples:>9} {published:>9} {images:>9} {covered:>9}")
    if found.answers is not None:
        lines.append(f"  {counted(found.answers, 'answer')} in the vocabulary")
    for file in found.missing:
        place = download_of(found.task, file)
        lines.append(f"  not found: {file}; {f'see {place}' if place else 'no place to download it is known'}")
    lines += [f"  not usable: {what}" for what in found.absent]
    lines += [f"  images: {archive}" for archive in found.archives]
    return lines + [f"  to fix: {gap}" for gap in found.gaps]
