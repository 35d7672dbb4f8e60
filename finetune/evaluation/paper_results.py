"""The numbers of the paper's tables 7 to 12."""

from pathlib import Path

from finetune.task_types.base import Task
from shards.common.files import read_json

WITHOUT_G4 = "table12_without_g4"
PAPER = Path(__file__).parent / "paper_tables.json"

TABLE8_NAMES = {  # of tasks that tables 7 and 8 name differently
    "vqa": "VQA2.0",
    "vgqa": "VGQA",
    "coco_retrieval": "COCO Retrieval",
    "flickr_retrieval": "Flickr30k Retrieval",
}


def paper_table(table: str) -> dict:
    """The `columns` and `rows` of a table."""
    return read_json(PAPER)[table]


def paper_samples(task: Task) -> dict[str, int]:
    """Split -> number of samples in the paper's table 8: of training, and of the test if it is a single split.

    For Visual Genome QA the test is its validation split. Retrieval tests are omitted: table 8 counts their images.
    """
    row = paper_numbers("table8_training", task)
    if row is None:
        return {}
    tests = task.reported or task.splits[1:2]
    single = len(tests) == 1 and not task.head.ranks_images
    return {task.splits[0]: row[0]} | ({tests[0]: row[2]} if single else {})


def paper_training(task: Task, cleaned: bool) -> int | None:
    """Number of training samples in the paper's table 8, cleaned or full; None for a task without a row."""
    row = paper_numbers("table8_training", task)
    return row and row[1 if cleaned else 0]


def paper_numbers(table: str, task: Task) -> list | None:
    """A task's row of the paper's table 7 or 8; None for a task that is not in the paper."""
    return paper_table(table)["rows"].get(TABLE8_NAMES.get(task.name, task.title))


def paper_row(table: str, row: str) -> dict[str, float]:
    """A row of one of the paper's tables: column -> value.

    In table 12 the paper divides the sum of ten task scores by twelve; here the MT score is their mean.
    """
    numbers = paper_table(table)
    cells = dict(zip(numbers["columns"], numbers["rows"][row], strict=True))
    return cells | {"MT Score": cells["MT Score"] * 12 / 10} if table == WITHOUT_G4 else cells
