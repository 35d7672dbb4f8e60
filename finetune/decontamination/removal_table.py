"""Decontamination statistics in the columns of the paper's tables 7 and 8, next to the paper's numbers."""

from dataclasses import dataclass

import numpy as np

from finetune.evaluation.paper_results import paper_numbers
from finetune.task_types.base import Task
from finetune.tasks import GROUPS


@dataclass
class TaskCount:
    """Numbers of images of one task.

    images: of training and validation; removed_images: of these; test_images: of the test; examples: split -> (number
    of examples, number that remain).
    """

    task: Task
    images: int
    test_images: int
    removed_images: int
    examples: dict[str, tuple[int, int]]

    @property
    def removed_share(self) -> float:
        return self.removed_images / max(self.images, 1)

    def entry(self) -> dict:
        """The task's entry in the manifest."""
        return {
            "images": self.images,
            "test_images": self.test_images,
            "removed_images": self.removed_images,
            "examples": {split: {"all": all, "kept": kept} for split, (all, kept) in self.examples.items()},
        }


def removal_report(rows: list[TaskCount], absent: list[str]) -> str:
    """The tables as text, with notes on the paper's numbers and on files that were not found (`absent`).

    The average and the total are over the paper's tasks, as in the paper.
    """
    papers = [row for row in rows if row.task.group in GROUPS] or rows
    lines = [
        "images as in table 7, these data and the paper's",
        f"{'':<20} {'train+val':>10} {'test':>8} {'cleaned':>10} {'removed':>8}   "
        f"{'train+val':>10} {'test':>8} {'cleaned':>10} {'removed':>8}",
    ]
    for row in rows:
        paper = paper_numbers("table7_clean_vl", row.task) or [None] * 4
        theirs = _columns(*paper[:3], None if paper[3] is None else paper[3] / 100)
        ours = _columns(row.images, row.test_images, row.images - row.removed_images, row.removed_share)
        lines.append(f"{row.task.title:<20} {ours}   {theirs}".rstrip())
    shares = [row.removed_share for row in papers]
    lines += [f"{'average':<20} {'':>10} {'':>8} {'':>10} {np.mean(shares):>8.2%}", ""]
    lines += [
        "training examples as in table 8, these data and the paper's",
        f"{'':<20} {'full':>10} {'cleaned':>10}   {'full':>10} {'cleaned':>10}",
    ]
    for row in rows:
        full, kept = row.examples[row.task.learned[0]]
        paper = paper_numbers("table8_training", row.task) or [None, None]
        theirs = " ".join(_number(value, 10) for value in paper[:2])
        lines.append(f"{row.task.title:<20} {full:>10} {kept:>10}   {theirs}".rstrip())
    full, kept = (sum(row.examples[row.task.learned[0]][n] for row in papers) for n in (0, 1))
    lines += [f"{'total':<20} {full:>10} {kept:>10}", ""]
    lines.append("the paper's tables disagree on Visual7W: table 7 removes 8.56% of the images, table 8 no examples")
    lines.append("GQA's test is the official test (2,987 images) in table 7 and testdev in table 8; here it is both")
    return "\n".join(lines + [f"not found: {what}" for what in absent])


def _columns(images: int | None, test: int | None, cleaned: int | None, share: float | None) -> str:
    removed = " " * 8 if share is None else f"{share:>8.2%}"
    return f"{_number(images, 10)} {_number(test, 8)} {_number(cleaned, 10)} {removed}"


def _number(value: int | None, width: int) -> str:
    return f"{'' if value is None else value:>{width}}"
