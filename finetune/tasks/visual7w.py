"""Visual7W pointing: choose the box that answers a question among four."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from finetune.annotations.example import Box, Example
from finetune.annotations.official_files import by_id, corners, find_file, scan_list, unique
from finetune.annotations.source_files import once
from finetune.heads.candidates_head import CandidatesHead
from finetune.task_types.pointing import PointingTask
from shards.common.errors import UserError
from shards.common.image_id import image_id


class GivenBox(msgspec.Struct):
    """The fields of a box record, in pixels."""

    box_id: int
    x: int | float
    y: int | float
    width: int | float
    height: int | float


class Question(msgspec.Struct):
    """The fields of a question record; answer and multiple_choices are ids of boxes."""

    qa_id: int
    question: str
    answer: int
    multiple_choices: list[int]


class ImageQuestions(msgspec.Struct):
    """The fields of an image record."""

    split: str
    filename: str
    qa_pairs: list[Question]


@dataclass(frozen=True)
class Visual7W(PointingTask):
    """Candidates are sorted by id, so that their position does not reveal the correct one."""

    def examples(self, folder: Path, split: str) -> list[Example]:
        path = find_file(folder, "dataset_v7w_pointing.json")
        boxes, images = contents(path)
        examples = []
        for where, image in images:
            if image.split != split:
                continue
            name = image_id(image.filename)
            for record in image.qa_pairs:
                ids = sorted({record.answer, *record.multiple_choices})
                for box in ids:
                    if box not in boxes:
                        raise UserError(f"{where}: box {box} is not among the boxes of the file")
                examples.append(
                    Example(
                        record.qa_id,
                        record.question,
                        (name,),
                        ids.index(record.answer),
                        tuple(boxes[box] for box in ids),
                        tuple(map(str, ids)),
                    )
                )
        unique((example.id for example in examples), str(path))
        return examples


@once
def contents(path: Path) -> tuple[dict[int, Box], list[tuple[str, ImageQuestions]]]:
    """(box id -> box, [(location for messages, image)]) of an official file."""
    boxes = by_id(
        (where, of.box_id, corners([of.x, of.y, of.width, of.height], "the box", where))
        for where, of in scan_list(path, "boxes", "box", GivenBox)
    )
    return boxes, list(scan_list(path, "images", "image", ImageQuestions))


TASKS = (
    Visual7W(
        name="visual7w",
        title="Visual7W",
        group="G3",
        token=4,
        head=CandidatesHead(),
        max_tokens=20,
        batch_size=256,
        lr=2e-5,
        images="visual7w",
        splits=("train", "val", "test"),
        tests=("test",),
        files=("dataset_v7w_pointing.json",),
        max_boxes=99,  # 200 rows in the reference implementation, row 0 and 100 regions among them
    ),
)
