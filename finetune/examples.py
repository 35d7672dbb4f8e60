"""python -m finetune.examples --run RUN [--compare RUN]: correct and wrong predictions (figures 8 and 9)."""

import contextlib
from pathlib import Path

from finetune.config import EvaluateConfig, ExamplesConfig, check_answer_files
from finetune.inference.argument_errors import naming_flag
from finetune.inference.judged_pairs import COMPARE, TwoRuns, tasks_of_both
from finetune.inference.model_loader import ModelLoader
from finetune.pages.comparison_page import compare_task, write_comparison
from finetune.pages.example_page import judge_task, write_examples
from finetune.run_dirs.finetune_run_dir import read_tasks
from finetune.run_dirs.run_data_folder import choose_data, warn_of_other_data
from finetune.tasks import add_task_files_of, choose_tasks
from shards.common.cli import command
from shards.common.folder_lock import locked_folder


def run(config: ExamplesConfig) -> None:
    out = Path(config.out or ("comparison.html" if config.compare else "examples.html"))
    folder = f"{out.stem}-attention" if config.attention else None
    first, second = flags_of(config, config.run), None
    if config.compare:
        with naming_flag(COMPARE):
            second = flags_of(config, config.compare)
    with locked_folder(out.parent / folder, "finetune.examples") if folder else contextlib.nullcontext():
        if second is None:
            judge_run(config, first, out, folder)
        else:
            compare_runs(config, first, second, out, folder)
    print(f"page: {out}" + (f", with attention maps in {folder}" if folder else ""))


def judge_run(config: ExamplesConfig, flags: EvaluateConfig, out: Path, folder: str | None) -> None:
    """Writes the page of a run."""
    add_task_files_of(config.run)
    tasks = choose_tasks(config.task, "--task") if config.task else read_tasks(config.run)
    check_answer_files(config, tasks)
    loader, judged = ModelLoader(flags), []
    for task in tasks:
        judged.append(judge_task(loader, task, config.split or task.splits[1], config, out, folder))
        print(judged[-1], flush=True)
    write_examples(out, f"Correct and wrong predictions of {config.run}", judged)


def compare_runs(
    config: ExamplesConfig, first: EvaluateConfig, second: EvaluateConfig, out: Path, folder: str | None
) -> None:
    """Writes the page that compares two runs."""
    tasks = tasks_of_both(config.run, config.compare, config.task)
    check_answer_files(config, tasks)
    runs, compared = TwoRuns(first, second), []
    for task in tasks:
        compared.append(compare_task(runs, task, config.split or task.splits[1], config, out, folder))
        print(compared[-1], flush=True)
    write_comparison(out, config.run, config.compare, compared, config.examples)


def flags_of(config: ExamplesConfig, run: str) -> EvaluateConfig:
    """The flags to load a run, with its data folder."""
    warn_of_other_data(run, config.data)
    return EvaluateConfig(**config.of_weights | {"run": run, "data": choose_data(run, config.data)})


EXAMPLES = (
    "python -m finetune.examples --run runs/mt --task refcoco",
    "python -m finetune.examples --run runs/st-refcoco --compare runs/mt",
)


if __name__ == "__main__":
    command(ExamplesConfig, run, "finetune.examples", "Correct and wrong predictions of runs.", examples=EXAMPLES)
