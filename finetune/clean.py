"""python -m finetune.clean --data DIR: decontamination (Clean V&L).

Finds images that are in the test set of any task and lists, for every task, the training and validation images to
remove.
"""

from pathlib import Path

from finetune.config import CleanConfig
from finetune.decontamination.remove_images import clean
from finetune.decontamination.verify import check
from shards.common.cli import command
from shards.world import check_data_folder


def run(config: CleanConfig) -> int:
    check_data_folder(config.data)
    if config.check:
        leaks = check(config.data, config.out or Path(config.data) / "clean")
        print("\n".join(leaks) if leaks else "no test image remains in any training or validation set")
        return 1 if leaks else 0
    print(clean(config))
    return 0


EXAMPLES = (
    "python -m finetune.clean --data data/real",
    "python -m finetune.clean --data data/real --images images/",
)


if __name__ == "__main__":
    summary = "Decontamination: finds test images of any task in the training and validation data of all tasks."
    command(CleanConfig, run, "finetune.clean", summary, examples=EXAMPLES)
