"""e-SNLI-VE: SNLI-VE with corrected labels. Its explanations are not used."""

from dataclasses import dataclass
from pathlib import Path

from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, read_csv, take
from finetune.heads.classification_head import ClassificationHead
from finetune.tasks.snli_ve import Pair, VisualEntailment

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class ExplainedEntailment(VisualEntailment):
    """Splits are named as in the official files."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        path = find_file(folder, f"esnlive_{split}.csv")
        return self.pairs(path, ((where, _pair(row, where)) for where, row in read_csv(path)))


def _pair(row: dict, where: str) -> Pair:
    return Pair(*(take(row, column, str, where) for column in ("pairID", "gold_label", "hypothesis", "Flickr30kID")))


TASKS = (
    ExplainedEntailment(
        name="esnli_ve",
        title="e-SNLI-VE",
        group="extra",
        token=16,
        head=ClassificationHead("entailment", ("contradiction", "neutral", "entailment")),
        max_tokens=56,
        batch_size=256,
        lr=2e-5,
        images="flickr",
        splits=SPLITS,
        tests=("test",),
        files=tuple(f"esnlive_{split}.csv" for split in SPLITS),
    ),
)
