"""The data of a task: its examples with their regions, and the collators that turn them into batches."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.example import Example
from finetune.data.hard_negatives import RetrievalNegatives
from finetune.data.regions import Regions, region_folder, with_regions
from finetune.data.task_collate import TaskCollator
from finetune.decontamination.manifest import CleanedTask, clean_folder, read_cleaned
from finetune.prepared.packed_examples import PackedExamples
from finetune.prepared.prepare_data import Wanted, open_examples, prepare
from finetune.task_types.base import Task
from pretrain.data.collate import Limits
from pretrain.engine.distributed import DIFFERENT_DATA, on_every_rank, same_everywhere
from pretrain.tokenizer.tokenizer import WordPieceTokenizer
from shards.common.dist_info import Ranks
from shards.common.errors import UserError
from shards.storage.dataset import fingerprint
from shards.world import is_world


@dataclass(frozen=True)
class CollatorSettings:
    """What a model and its flags determine of a task's collators.

    Attributes:
        tokenizer: the tokenizer.
        vocabulary: answer vocabulary, or None.
        positions: number of position embeddings of the model, an upper limit of the number of tokens.
        max_regions: maximum number of regions per image; None: the task's.
    """

    tokenizer: WordPieceTokenizer
    vocabulary: AnswerVocabulary | None
    positions: int
    max_regions: int | None


@dataclass
class TaskData:
    """A task's official files and the regions of its images.

    Attributes:
        root: data folder of all tasks.
        folder: the task's own.
        regions: regions of the images.
        boxes: regions of the images' given boxes (the candidates are among them), or of annotated boxes that are added
            in training, or None.
        missing: "stop" or "skip" for examples whose image has no regions.
        cleaned: the images that decontamination removes, or None.
    """

    task: Task
    root: Path
    folder: Path
    regions: Regions
    boxes: Regions | None
    missing: str
    cleaned: CleanedTask | None = None

    @property
    def feature_size(self) -> int:
        return self.regions.dataset.feature_size

    @property
    def all_regions(self) -> list[Regions]:
        """The regions of the images, and those of the given boxes if there are any."""
        return [regions for regions in (self.regions, self.boxes) if regions is not None]

    def examples(self, split: str, log=print) -> PackedExamples:
        """A split's examples after decontamination, if any, whose images have regions."""
        examples = open_examples(self.root, self.task, split)
        if self.cleaned is not None:
            self.cleaned.check(split, examples)
            examples = self.cleaned.keep(split, examples, log)
            if not examples:
                raise UserError(f"--clean: no examples of {self.task.name}'s {split} remain; all have test images")
        kept = with_regions(examples, self.regions, self.regions.dataset.folder, self.missing == "skip", log)
        if self.boxes is not None:
            kept = with_regions(kept, self.boxes, self.boxes.dataset.folder, self.missing == "skip", log)
        return kept

    def collator(
        self, examples: Sequence[Example], settings: CollatorSettings, seed: int | None = None
    ) -> TaskCollator:
        """The collator of some of the task's examples.

        Args:
            examples: the examples.
            settings: the tokenizer, the answers and the limits.
            seed: random seed of retrieval's negatives and of dropout in training; None in evaluation.
        """
        training, candidates = seed is not None, self.task.head.has_candidates
        draws = training and self.task.head.ranks_images
        negatives = RetrievalNegatives(examples, self.regions, seed, self.root) if draws else None
        max_tokens = min(self.task.max_tokens, settings.positions)
        return TaskCollator(
            task=self.task,
            examples=examples,
            regions=self.regions,
            tokenizer=settings.tokenizer,
            limits=Limits(max_tokens, settings.max_regions or self.task.max_regions, self.feature_size),
            boxes=self.boxes if candidates else None,
            annotated=self.boxes if training and not candidates else None,
            vocabulary=settings.vocabulary,
            negatives=negatives,
            seed=seed or 0,
        )


def prepare_on_every_machine(data: str, wanted: Sequence[Wanted], ranks: Ranks) -> None:
    """Makes missing prepared data in one process of every machine, while its other ranks wait."""
    processes = os.cpu_count() or 1
    on_every_rank(ranks, lambda: None if ranks.local else prepare(data, wanted, processes, ranks.log))


def same_on_every_rank(data: TaskData, splits: Sequence[PackedExamples], ranks: Ranks) -> None:
    """Raises UserError if a rank reads other regions or other examples than the first rank."""
    where = f"{data.folder} with {data.regions.dataset.folder}"
    same_everywhere(ranks, lambda: content_of(data, splits), DIFFERENT_DATA.format(data=where))


def content_of(data: TaskData, splits: Sequence[PackedExamples]) -> list[str]:
    """Fingerprints of a task's regions and of the examples of its splits."""
    datasets = [regions.dataset for regions in data.all_regions]
    return [*map(fingerprint, datasets), *(examples.digest() for examples in splits)]


def check_same_width(first: Regions, *others: Regions) -> None:
    """Raises UserError if the feature sizes of region data sets differ."""
    for other in others:
        if other.dataset.feature_size != first.dataset.feature_size:
            raise UserError(
                f"{other.dataset.folder}: feature size {other.dataset.feature_size}, and {first.dataset.folder} has "
                f"{first.dataset.feature_size}; extract both with the same detector"
            )


def open_data(
    task: Task,
    data: str,
    missing: str,
    annotated: bool = False,
    opened: dict[Path, Regions] | None = None,
    clean: str | None = None,
) -> TaskData:
    """Opens a task's data: official files in DATA/NAME, regions of images and candidate boxes in DATA/regions/.

    Args:
        task: the task.
        data: data folder.
        missing: see TaskData.
        annotated: open the annotated boxes of referring expressions too.
        opened: region shards by folder, shared between tasks; newly opened ones are added.
        clean: value of --clean, see cleaned.clean_folder.

    Raises:
        UserError: the folder, or its region shards, do not exist or do not match.
    """
    opened = {} if opened is None else opened

    def regions_of(name: str) -> Regions:
        path = region_folder(data, name)
        if path not in opened:
            opened[path] = Regions(path)
        return opened[path]

    folder = task.folder(data)
    if not folder.is_dir():
        hint = f"; python -m shards.world --out {data} completes the miniature world" if is_world(data) else ""
        raise UserError(f"{folder}: no such folder; it should contain the official files of {task.title}{hint}")
    regions = regions_of(task.images)
    given = task.head.has_candidates or (annotated and task.head.finds_regions)
    boxes = regions_of(f"{task.name}_boxes") if given else None
    if boxes is not None:
        check_same_width(regions, boxes)
    cleaned = read_cleaned(clean_folder(data, clean), task) if clean else None
    return TaskData(task, Path(data), folder, regions, boxes, missing, cleaned)
