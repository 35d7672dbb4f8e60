"""What finetune.clean has written: the images that a task's training and validation leave out."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from finetune.official import scan_lines
from finetune.task import Example, Task
from pretrain.run_folder import CONFIG, read_config
from shards.errors import UserError
from shards.files import read_json
from shards.reading import check_fields

MANIFEST = "clean.json"
FORMAT = 1
NOT_CLEANED = "not cleaned"  # what runs without --clean are marked by next to the paper's numbers, which are with it


class Removed(msgspec.Struct):
    """One image of a task that is a test's. examples: of training and validation together that have it."""

    image: str
    examples: int
    test: str
    names: tuple[str, ...]
    evidence: tuple[str, ...]


class Counted(msgspec.Struct):
    """How many examples of a split there were when it was cleaned."""

    all: int


class OfTask(msgspec.Struct):
    """A task's part of the manifest."""

    removed_images: int
    examples: dict[str, Counted]


class Manifest(msgspec.Struct):
    """The fields of clean.json that are counted on."""

    tasks: dict[str, OfTask]


@dataclass(frozen=True)
class CleanedTask:
    """The images that one task leaves out where it trains and validates.

    examples: how many there were of each split when it was cleaned.
    """

    task: Task
    folder: Path
    images: frozenset[str]
    examples: dict[str, int]

    def check(self, split: str, examples: list[Example]) -> None:
        """Refuses a split that has changed since."""
        then = self.examples.get(split, len(examples))
        if len(examples) != then:
            raise UserError(
                f"--clean {self.folder}: {self.task.name}'s {split} had {then} examples when it was cleaned and has "
                f"{len(examples)}; run finetune.clean again on this data"
            )

    def keep(self, split: str, examples: list[Example], say=print) -> list[Example]:
        """The examples of a split without those images; of a test all."""
        if self.task.is_test(split):
            return examples
        kept = [example for example in examples if self.images.isdisjoint(example.images)]
        if len(kept) < len(examples):
            left_out = len(examples) - len(kept)
            say(f"cleaned: {left_out} of {len(examples)} examples of {self.task.name}'s {split} have images of tests")
        return kept


def is_cleaned(config: dict) -> bool:
    """Whether a run was fine-tuned with --clean, and the fine-tuning run that it began with as well (AT->ST).

    config: of the run, as read_config gives it. A run to begin with that is not found, and pretraining, do not count.
    """
    seen: set[Path] = set()  # a run may have begun with weights that its own directory had before
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
    """The folder that --clean means: DATA/clean where it stands alone (fire makes True of it), else what it names."""
    return Path(data) / "clean" if clean.lower() == "true" else Path(clean)


def read_manifest(folder) -> dict:
    """What finetune.clean says of its work in `folder`."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise UserError(f"--clean {folder}: holds no {MANIFEST}; python -m finetune.clean --out {folder} makes it")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: was not written by this version of finetune.clean; run it again")
    return check_fields(manifest, Manifest, path)


def list_file(folder, task: Task) -> Path:
    """The list of what is removed of a task."""
    return Path(folder) / "removed" / f"{task.name}.jsonl"


def read_cleaned(folder, task: Task) -> CleanedTask:
    """A task's part of a folder that finetune.clean has written."""
    manifest = read_manifest(folder)
    if task.name not in manifest["tasks"]:
        raise UserError(f"--clean {folder}: has nothing on {task.name}; run finetune.clean again, on data that has it")
    known = manifest["tasks"][task.name]
    removed = frozenset(line.image for line in scan_lines(list_file(folder, task), Removed))
    if len(removed) != known["removed_images"]:
        raise UserError(f"{list_file(folder, task)}: is not as finetune.clean wrote it; run it again")
    return CleanedTask(task, Path(folder), removed, {split: of["all"] for split, of in known["examples"].items()})
