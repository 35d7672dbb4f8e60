"""python -m finetune.given_boxes --task guesswhat --out boxes.jsonl: annotated boxes as input of shards.extract."""

import json
from dataclasses import dataclass
from pathlib import Path

from finetune.task_types.base import GivenBoxes
from finetune.tasks import all_tasks, find_task
from shards.common.cli import REQUIRED, command, flag
from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.world import DEFAULT_WORLD, check_data_folder


@dataclass
class GivenBoxesConfig:
    """Flags of finetune.given_boxes."""

    task: str = flag(REQUIRED, "task whose annotations contain boxes")
    out: str = flag(REQUIRED, "output file, for shards.extract --boxes", written=True)
    data: str = flag(DEFAULT_WORLD, "data folder with the tasks' official files")


def run(config: GivenBoxesConfig) -> None:
    task = find_task(config.task)
    if not isinstance(task, GivenBoxes):
        names = ", ".join(name for name, other in all_tasks().items() if isinstance(other, GivenBoxes))
        raise UserError(f"--task {task.name}: its annotations contain no boxes; use one of {names}")
    check_data_folder(config.data)
    found = task.given_boxes(task.folder(config.data))
    with whole_file(config.out, "w", encoding="utf-8") as file:
        for image, known in found.items():
            size = dict(zip(("width", "height"), known.size, strict=True)) if known.size else {}
            boxes = {"boxes": list(known.boxes.values()), "box_ids": list(known.boxes)}
            file.write(json.dumps({"image_id": image} | size | boxes) + "\n")
    number = sum(len(known.boxes) for known in found.values())
    folder = Path(config.data) / "regions" / f"{task.name}_boxes"
    print(f"{config.out}: {counted(number, 'box')} of {counted(len(found), 'image')}; next command:")
    print(f"python -m shards.extract IMAGES --boxes {config.out} --out {folder}")


EXAMPLES = ("python -m finetune.given_boxes --task visual7w --data data/real --out boxes.json",)


if __name__ == "__main__":
    command(
        GivenBoxesConfig,
        run,
        "finetune.given_boxes",
        "The boxes of a task's annotations, for shards.extract.",
        examples=EXAMPLES,
    )
