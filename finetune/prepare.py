"""python -m finetune.prepare --data DIR: reads the official files of tasks once, for all later commands."""

import os
from dataclasses import dataclass

from finetune.config import chosen_tasks, task_file_flag, tasks_flag
from finetune.prepared.prepare_data import for_training, open_prepared, places, prepare
from shards.common.cli import command, flag
from shards.common.errors import UserError
from shards.world import DEFAULT_WORLD, check_data_folder


@dataclass
class PrepareConfig:
    """Flags of finetune.prepare."""

    data: str = flag(DEFAULT_WORLD, "data folder with the tasks' official files")
    tasks: str = tasks_flag()
    task_file: str | None = task_file_flag()
    processes: int = flag(os.cpu_count() or 1, "number of worker processes", low=1)


def run(config: PrepareConfig) -> int:
    check_data_folder(config.data)
    tasks, failed = chosen_tasks(config), 0
    prepare(config.data, [one for task in tasks for one in for_training(task)], config.processes)
    for task in tasks:
        try:
            counts = [f"{one.split} {len(open_prepared(config.data, one))}" for one in for_training(task)]
            print(f"{task.name}: {', '.join(counts)}")
        except UserError as error:
            print(f"{task.name}: not prepared: {error}")
            failed += 1
    used = next((place for place in places(config.data) if place.is_dir()), None)
    print(f"prepared examples: {used}{os.sep}" if used else "no folder for prepared examples can be written")
    return 1 if failed else 0


EXAMPLES = ("python -m finetune.prepare --data data/real",)


if __name__ == "__main__":
    command(
        PrepareConfig,
        run,
        "finetune.prepare",
        "Reads the official files of tasks once, for all later commands.",
        examples=EXAMPLES,
    )
