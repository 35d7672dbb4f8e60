"""Visual7W pointing: choose the box that answers a question among four."""

from dataclasses import dataclass
from pathlib import Path

from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, read_annotations, take, take_all, unique
from finetune.heads.candidates_head import CandidatesHead
from finetune.task_types.pointing import PointingTask
from shards.common.errors import UserError
from shards.common.image_id import image_id


@dataclass(frozen=True)
class Visual7W(PointingTask):
    """Candidates are sorted by id, so that their position does not reveal the correct one."""

    def photo(self, image: str) -> str:
        """The Visual Genome photo; the official files name it v7w_ID."""
        return f"genome:{image.removeprefix('v7w_')}"

    def examples(self, folder: Path, split: str) -> list[Example]:
        path = find_file(folder, "dataset_v7w_pointing.json")
        value = read_annotations(path)
        boxes = {}
        for number, record in enumerate(take(value, "boxes", list, str(path))):
            where = f"{path}, box {number}"
            x, y, width, height = (take(record, key, (int, float), where) for key in ("x", "y", "width", "height"))
            boxes[take(record, "box_id", int, where)] = x, y, x + width, y + height
        examples = []
        for number, image in enumerate(take(value, "images", list, str(path))):
            where = f"{path}, image {number}"
            if take(image, "split", str, where) != split:
                continue
            name = image_id(take(image, "filename", str, where))
            for record in take(image, "qa_pairs", list, where):
                right = take(record, "answer", int, where)
                ids = sorted({right, *take_all(record, "multiple_choices", int, where)})
                for box in ids:
                    if box not in boxes:
                        raise UserError(f"{where}: box {box} is not among the boxes of the file")
                examples.append(
                    Example(
                        take(record, "qa_id", int, where),
                        take(record, "question", str, where),
                        (name,),
                        ids.index(right),
                        tuple(boxes[box] for box in ids),
                        tuple(map(str, ids)),
                    )
                )
        unique((example.id for example in examples), str(path))
        return examples


TASKS = (
    Visual7W(
        name="visual7w",
        title="Visual7W",
        group="G3",
        token=4,
        head=CandidatesHead(),
        words=20,
        batch_size=256,
        lr=2e-5,
        images="visual7w",
        splits=("train", "val", "test"),
        tests=("test",),
        files=("dataset_v7w_pointing.json",),
        max_boxes=99,  # 200 rows in the reference implementation, row 0 and 100 regions among them
    ),
)
