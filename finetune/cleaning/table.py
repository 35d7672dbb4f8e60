"""Clean V&L's numbers in the columns of the paper's tables 7 and 8, beside the paper's own."""

from dataclasses import dataclass

import numpy as np

from finetune.paper import paper_numbers
from finetune.task import Task
from finetune.tasks import GROUPS


@dataclass
class TaskCount:
    """One task's images of training and validation, of its test, and those removed.

    examples: split -> (all, those that are kept).
    """

    task: Task
    images: int
    test_images: int
    removed_images: int
    examples: dict[str, tuple[int, int]]

    @property
    def removed_share(self) -> float:
        return self.removed_images / max(self.images, 1)

    def facts(self) -> dict:
        """What the manifest says of it."""
        return {
            "images": self.images,
            "test_images": self.test_images,
            "removed_images": self.removed_images,
            "examples": {split: {"all": all, "kept": kept} for split, (all, kept) in self.examples.items()},
        }


def report(rows: list[TaskCount], absent: list[str]) -> str:
    """The tables as text, with what was not there and what the paper leaves open.

    The average and the total are over the paper's tasks, as the paper's own are.
    """
    papers = [row for row in rows if row.task.group in GROUPS] or rows
    lines = [
        "images, as in table 7, and the paper's",
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
        "examples to train on, as in table 8, and the paper's",
        f"{'':<20} {'full':>10} {'cleaned':>10}   {'full':>10} {'cleaned':>10}",
    ]
    for row in rows:
        full, kept = row.examples[row.task.learned[0]]
        paper = paper_numbers("table8_training", row.task) or [None, None]
        theirs = " ".join(_number(value, 10) for value in paper[:2])
        lines.append(f"{row.task.title:<20} {full:>10} {kept:>10}   {theirs}".rstrip())
    full, kept = (sum(row.examples[row.task.learned[0]][n] for row in papers) for n in (0, 1))
    lines += [f"{'total':<20} {full:>10} {kept:>10}", ""]
    lines.append("the paper's tables disagree on Visual7W: 8.56% of its images leave in table 7, no example in table 8")
    lines.append("GQA's test in table 7 is the official test (2,987 images), in table 8 testdev; here it is both")
    return "\n".join(lines + [f"not there: {what}" for what in absent])


def _columns(images: int | None, test: int | None, cleaned: int | None, share: float | None) -> str:
    removed = " " * 8 if share is None else f"{share:>8.2%}"
    return f"{_number(images, 10)} {_number(test, 8)} {_number(cleaned, 10)} {removed}"


def _number(value: int | None, width: int) -> str:
    return f"{'' if value is None else value:>{width}}"
