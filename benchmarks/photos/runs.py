"""The rows of the table and their training runs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.photos.data import FOLDS, NOT_CLEANED, PRETRAINED, Folder
from benchmarks.photos.recipe import Recipe
from finetune.reporting.training_commands import TrainingCommand
from pretrain.engine.run_dir import absolute
from shards.common.errors import UserError

TASKS = ("flickr_retrieval", "flickr30k_entities", "esnli_ve", "daquar")
RETRIEVAL, FOLDED = "flickr_retrieval", "esnli_ve"  # FOLDED is scored by cross-validation
ZERO_SHOT, AT, ST, AT_ST = "zero-shot", "AT", "ST", "AT->ST"
MAIN_ROWS = (ZERO_SHOT, AT, ST, AT_ST)


@dataclass(frozen=True)
class Ablation:
    """A pretraining run that differs from the main one, and the training after it.

    Attributes:
        meaning: description for the table.
        flags: changed flags of pretrain.run; None without pretraining.
        groups: groups of photographs for pretraining.
        alone: single-task training on FOLDED, in all folds, instead of multi-task training.
        base: the row that it is compared with.
    """

    meaning: str
    flags: dict | None = field(default_factory=dict)
    groups: tuple[str, ...] = PRETRAINED
    alone: bool = False
    base: str = AT


RANDOM = {"contrastive": 0.0, "negatives": "random"}
PREDICT_ALL = RANDOM | {"aligned_only": False}
ABLATIONS = {
    "random": Ablation("random negatives, not contrastive", RANDOM),
    # With hard negatives every pair of a batch is aligned, so this is an ablation of random misaligned captions.
    "all_pairs": Ablation("random, predictions on misaligned pairs too", PREDICT_ALL, base="random"),
    "no_overlap": Ablation("no masking of overlapping regions", {"overlap": 1.1}),
    "scratch": Ablation("no pretraining", None),
    "not_cleaned": Ablation("ST, pretrained on all images", groups=NOT_CLEANED, alone=True, base=ST),
}
ROWS = (*MAIN_ROWS, *ABLATIONS)


@dataclass(frozen=True)
class Plan:
    """The runs of one seed. folds: number of folds with their own multi-task run, and with AT and AT->ST scores."""

    recipe: Recipe
    folder: Folder
    bert: str
    seed: int
    folds: int

    @property
    def out(self) -> Path:
        return seed_folder(self.folder, self.seed)

    def pretraining(self, row: str) -> TrainingCommand:
        """The pretraining run of a row; it is the main one for all rows except some ablations."""
        ablation = ABLATIONS.get(row, Ablation(""))
        flags = {"data": self.folder.pairs(ablation.groups), "config": self.recipe.model, "bert": self.bert}
        flags |= self.recipe.pretrain | ablation.flags | {"seed": self.seed}
        return TrainingCommand("pretrain.run", flags, self.out / "pretrain" / (row if row in ABLATIONS else "main"))

    def together(self, row: str, fold: int = 0) -> TrainingCommand:
        """The multi-task run of a row."""
        if row in ABLATIONS and ABLATIONS[row].flags is None:
            start = {"init": self.bert, "config": self.recipe.model}
        else:
            start = {"init": str(self.pretraining(row).out)}
        flags = {"tasks": ",".join(TASKS), **self._data(fold), **start, **self.recipe.together}
        return TrainingCommand(
            "finetune.mt", flags, self.out / "mt" / f"{row if row in ABLATIONS else 'main'}-fold{fold}"
        )

    def alone(self, row: str, task: str, fold: int = 0) -> TrainingCommand:
        """The single-task run of a row, from its pretraining, or from the multi-task run of the fold (AT->ST)."""
        init = (self.together(AT, fold) if row == AT_ST else self.pretraining(row)).out
        flags = {"task": task, **self._data(fold), "init": str(init), **self.recipe.alone_on(task)}
        name = f"{task}-fold{fold}" if task == FOLDED else task
        return TrainingCommand("finetune.st", flags, self.out / {AT_ST: "at_st", ST: "st"}.get(row, row) / name)

    def _data(self, fold: int) -> dict:
        return {"data": str(self.folder.fold(fold)), "clean": "true", "seed": self.seed}

    def pretrainings(self, rows: tuple[str, ...]) -> list[TrainingCommand]:
        """The pretraining runs of some rows, without duplicates."""
        needed = {run.out: run for row in rows if not _without(row) for run in [self.pretraining(row)]}
        return list(needed.values())

    def finetunings(self, rows: tuple[str, ...]) -> tuple[list[TrainingCommand], list[TrainingCommand]]:
        """(runs initialised from pretraining, runs initialised from these) of some rows."""
        first: dict[Path, TrainingCommand] = {}
        second: dict[Path, TrainingCommand] = {}
        for row in rows:
            for scored in self.scored(row):
                if row == ZERO_SHOT:
                    continue
                (second if row == AT_ST else first)[scored.call.out] = scored.call
                if row == AT_ST:
                    together = self.together(AT, scored.fold)
                    first[together.out] = together
        return list(first.values()), list(second.values())

    def scored(self, row: str) -> Iterator["Scored"]:
        """The evaluations of a row: a task on a fold, by a run."""
        ablation = ABLATIONS.get(row)
        if row == ZERO_SHOT:
            yield Scored(RETRIEVAL, 0, self.pretraining(row))
            return
        if ablation and ablation.alone:
            yield from (Scored(FOLDED, fold, self.alone(row, FOLDED, fold)) for fold in range(FOLDS))
            return
        for task in TASKS:
            folds = 1 if task != FOLDED or ablation else FOLDS if row == ST else self.folds
            for fold in range(folds):
                call = self.alone(row, task, fold) if row in (ST, AT_ST) else self.together(row, fold)
                yield Scored(task, fold, call)


@dataclass(frozen=True)
class Scored:
    """A task on a fold, by a run."""

    task: str
    fold: int
    call: TrainingCommand


def _without(row: str) -> bool:
    return row in ABLATIONS and ABLATIONS[row].flags is None


def seed_folder(folder: Folder, seed: int) -> Path:
    return folder.root / f"seed{seed}"


def check_made_with(call: TrainingCommand) -> None:
    """Raises UserError for a run that was started with other flags, because the table would mix them."""
    if not call.begun:
        return
    stored = call.stored_flags
    for name, asked in call.flags.items():
        if stored.get(name, asked) not in (asked, absolute(asked, name)):
            raise UserError(
                f"{call.out}: was made with --{name} {stored[name]} and not {asked}; give another --out, or remove it"
            )
