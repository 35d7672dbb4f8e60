"""Reads what finetune.clean wrote: the images to remove from a task's training and validation data."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from finetune.annotations.official_files import scan_lines
from finetune.prepared.packed_examples import PackedExamples
from finetune.task_types.base import Task
from finetune.task_types.table_tasks import TableTask
from pretrain.engine.run_dir import CONFIG, read_config
from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.files import read_json
from shards.common.untrusted_input import check_fields

MANIFEST = "clean.json"
FORMAT = 1
NOT_CLEANED = "not cleaned"  # mark of runs without --clean next to the paper's numbers, which are decontaminated


class Removed(msgspec.Struct):
    """One removed image of a task. examples: number of training and validation examples that contain it."""

    image: str
    examples: int
    test: str
    names: tuple[str, ...]
    evidence: tuple[str, ...]


class SplitCount(msgspec.Struct):
    """Number of examples of a split when finetune.clean ran."""

    all: int


class TaskEntry(msgspec.Struct):
    """The manifest's entry of one task."""

    removed_images: int
    examples: dict[str, SplitCount]


class Manifest(msgspec.Struct):
    """The fields of clean.json that are read."""

    tasks: dict[str, TaskEntry]
    without_picture: dict[str, tuple[int, int]] = {}


@dataclass(frozen=True)
class CleanedTask:
    """The images to remove from one task's training and validation data.

    examples: number of examples of each split when finetune.clean ran.
    """

    task: Task
    folder: Path
    images: frozenset[str]
    examples: dict[str, int]

    def check(self, split: str, examples: PackedExamples) -> None:
        """Raises UserError if the split has changed since finetune.clean ran."""
        then = self.examples.get(split, len(examples))
        if len(examples) != then:
            raise UserError(
                f"--clean {self.folder}: {self.task.name}'s {split} had {then} examples when finetune.clean ran and "
                f"now has {len(examples)}; run finetune.clean again on this data"
            )

    def keep(self, split: str, examples: PackedExamples, log=print) -> PackedExamples:
        """The examples of a split whose images are not removed; all examples of a test split."""
        if self.task.is_test(split):
            return examples
        kept = examples.with_images(self.images.isdisjoint)
        if kept.all():
            return examples
        removed = len(examples) - int(kept.sum())
        of_all = f"{removed} of {counted(len(examples), 'example')}"
        log(f"cleaned: {of_all} of {self.task.name}'s {split} removed (test images)")
        return examples.select(kept)


def is_cleaned(config: dict) -> bool:
    """Whether a run, and the fine-tuning run that it was initialised from (AT->ST), were trained with --clean.

    config: of the run, as returned by read_config. A pretraining run, or an initial run that is not found, is not
    checked.
    """
    seen: set[Path] = set()  # a run may have been initialised from earlier weights in its own directory
    while config["flags"].get("clean"):
        before = Path(config.get("start", {}).get("run") or "") / CONFIG
        if before in seen or not before.is_file():
            return True
        seen.add(before)
        config = read_config(before.parent)
        if "tasks" not in config:
            return True
    return False


def clean_folder(data, clean: str) -> Path:
    """The folder that --clean names; DATA/clean for a --clean without a value, which fire parses as True."""
    return Path(data) / "clean" if clean.lower() == "true" else Path(clean)


def read_manifest(folder) -> dict:
    """The manifest (clean.json) of a folder that finetune.clean has written."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise UserError(f"--clean {folder}: contains no {MANIFEST}; create it with finetune.clean --out {folder}")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: was not written by this version of finetune.clean; run it again")
    return check_fields(manifest, Manifest, path)


def not_compared(without_picture: dict) -> list[str]:
    """Sentences on the images that were compared by ids only, whose copies under other ids are not known.

    without_picture: the manifest's entry: task -> (number of images, number of these without a readable image file).
    """
    if without_picture and all(missing == images for images, missing in without_picture.values()):
        return ["note: images were compared by ids only; --images FOLDER also compares their content"]
    one, several = "has no readable image file and was", "have no readable image file and were"
    return [
        f"note: {missing} of {counted(images, 'image')} of {name} "
        f"{one if missing == 1 else several} compared by ids only"
        for name, (images, missing) in without_picture.items()
        if missing
    ]


def list_file(folder, task: Task) -> Path:
    """The list of removed images of a task."""
    return Path(folder) / "removed" / f"{task.name}.jsonl"


def read_cleaned(folder, task: Task) -> CleanedTask:
    """A task's removed images, from a folder that finetune.clean has written."""
    manifest = read_manifest(folder)
    if task.name not in manifest["tasks"]:
        how = " and its --task_file" if isinstance(task, TableTask) else ""
        raise UserError(
            f"--clean {folder}: does not contain {task.name}; run finetune.clean on data with this task{how}"
        )
    known = manifest["tasks"][task.name]
    removed = frozenset(line.image for line in scan_lines(list_file(folder, task), Removed))
    if len(removed) != known["removed_images"]:
        raise UserError(f"{list_file(folder, task)}: was changed after finetune.clean wrote it; run it again")
    return CleanedTask(task, Path(folder), removed, {split: of["all"] for split, of in known["examples"].items()})
