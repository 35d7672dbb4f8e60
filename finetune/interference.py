"""python -m finetune.interference --run RUN: which tasks of a multi-task run help or harm each other."""

import dataclasses
import time

from finetune.config import InterferenceConfig
from finetune.gradients.fixed_batches import as_trained, open_fixed_batches
from finetune.gradients.interference_measurement import measure
from finetune.gradients.measured_sets import INTERFERENCE_FOLDER, INTERFERENCE_NUMBERS
from finetune.gradients.task_gradients import shared_parameters
from finetune.gradients.tracked_gradients import read_tracked
from finetune.pages.interference_page import write_interference_page
from finetune.reporting.interference_summary import render_summary, summarise, write_measurements
from finetune.run_dirs.finetune_run_dir import read_tasks
from finetune.run_dirs.run_data_folder import choose_data, place_of, results_folder, warn_of_other_data
from finetune.tasks import add_task_files_of, choose_tasks
from pretrain.engine.distributed import exiting
from shards.common.cli import command
from shards.common.errors import UserError
from shards.common.folder_lock import locked_folder

ARRAYS, PAGE = "interference.npz", "interference.html"


def run(config: InterferenceConfig) -> None:
    """Measures similarities and affinities, and writes numbers and page."""
    add_task_files_of(config.run)
    warn_of_other_data(config.run, config.data)
    config = as_trained(dataclasses.replace(config, data=choose_data(config.run, config.data)))
    tasks = choose_tasks(config.tasks) if config.tasks else read_tasks(config.run)
    if len(tasks) < 2:
        raise UserError(f"--tasks {tasks[0].name}: interference is between tasks; name at least two")
    folder = results_folder(config.run) / INTERFERENCE_FOLDER
    path = place_of(folder, INTERFERENCE_NUMBERS, config.run, config.data)
    with locked_folder(path.parent, "finetune.interference"):
        opened, began = open_fixed_batches(config, tasks), time.perf_counter()
        count = sum(parameter.numel() for parameter in shared_parameters(opened[0].task_pass.model).values())
        print(
            f"{len(tasks)} tasks, {config.batches} batches of {config.batch_size} examples each; the gradients need "
            f"{len(tasks)} * {count / 1e6:.1f} M shared parameters * 4 bytes = {len(tasks) * count * 4 / 1e9:.2f} GB"
        )
        measured = measure(
            opened, config.look_ahead, config.step, lambda done: print(f"batch {done} of {config.batches}", flush=True)
        )
        tracked = read_tracked(config.run, [task.name for task in tasks])
        summary = summarise(config, tasks, measured, tracked, time.perf_counter() - began)
        write_measurements(path, path.with_name(ARRAYS), summary, measured)
        write_interference_page(path.with_name(PAGE), summary, tracked)
    print(render_summary(summary))
    print(f"numbers: {path} and {ARRAYS}; page: {path.with_name(PAGE)}")


EXAMPLES = (
    "python -m finetune.interference --run runs/mt",
    "python -m finetune.interference --run runs/mt --tasks vqa,gqa,refcoco --batches 16",
)


if __name__ == "__main__":
    summary = "Which tasks of a multi-task run help or harm each other: similarities of gradients, look-ahead steps."
    with exiting():
        command(InterferenceConfig, run, "finetune.interference", summary, examples=EXAMPLES)
