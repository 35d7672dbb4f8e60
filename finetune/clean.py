"""python -m finetune.clean --data DIR: decontamination (Clean V&L).

Finds images that are in the test set of any task and lists, for every task, the training and validation images to
remove.
"""

from pathlib import Path

from finetune.config import CleanConfig, add_task_files
from finetune.decontamination.remove_images import clean
from finetune.decontamination.verify import check
from finetune.tasks import add_task_files_of
from shards.common.cli import command
from shards.common.errors import UserError
from shards.world import check_data_folder


def run(config: CleanConfig) -> int:
    check_data_folder(config.data)
    out = config.out or Path(config.data) / "clean"
    for task in add_task_files(config.task_file):
        if not (folder := task.folder(config.data)).is_dir():
            raise UserError(f"--task_file: {folder} not found; it should contain {', '.join(task.files)}")
    if config.check:
        add_task_files_of(out)
        leaks = check(config.data, out)
        print("\n".join(leaks) if leaks else "no test image remains in any training or validation set")
        return 1 if leaks else 0
    print(clean(config))
    return 0


EXAMPLES = (
    "python -m finetune.clean --data data/real",
    "python -m finetune.clean --data data/real --images images/",
    "python -m finetune.clean --data data/real --task_file mine.toml",
)


if __name__ == "__main__":
    summary = "Decontamination: finds test images of any task in the training and validation data of all tasks."
    command(CleanConfig, run, "finetune.clean", summary, examples=EXAMPLES)
