"""python -m finetune.doctor --data DIR: checks which tasks a data folder is complete for, and what is missing."""

import os
from dataclasses import dataclass
from pathlib import Path

from finetune.config import PRETRAINING, chosen_tasks, task_file_flag, tasks_flag
from finetune.data.regions import Regions
from finetune.decontamination.pretraining_data import unchecked_pretraining
from finetune.prepared.prepare_data import prepare
from finetune.reporting.data_readiness import examine, examined, readiness_lines
from shards.common.cli import command, flag
from shards.common.counted import counted
from shards.world import DEFAULT_WORLD, check_data_folder


@dataclass
class DoctorConfig:
    """Flags of finetune.doctor."""

    data: str = flag(DEFAULT_WORLD, "data folder with the tasks' official files and the regions of their images")
    tasks: str = tasks_flag()
    task_file: str | None = task_file_flag()
    min_answer_count: int | None = flag(
        None, "value of --min_answer_count of finetune.st and finetune.mt", unset="the task's", low=1
    )
    init: str = flag(PRETRAINING, "pretraining run, whose data should have been searched for test images")


def run(config: DoctorConfig) -> int:
    check_data_folder(config.data)
    tasks = chosen_tasks(config)
    prepare(config.data, [one for task in tasks for one in examined(task)], os.cpu_count() or 1)
    print(f"{'':<15} {'examples':>9} {'table 8':>9} {'images':>9} {'regions':>9}")
    opened: dict[Path, Regions | str] = {}
    findings = []
    for task in tasks:
        findings.append(examine(task, config.data, opened, config.min_answer_count))
        print("\n".join(readiness_lines(findings[-1])), flush=True)
    if warning := unchecked_pretraining(config.init):
        print(f"warning: {warning}")
    ready = sum(not found.gaps for found in findings)
    print(f"{ready} of {counted(len(findings), 'task')} {'is' if ready == 1 else 'are'} ready")
    return 0 if ready == len(findings) else 1


EXAMPLES = ("python -m finetune.doctor --data data/real",)


if __name__ == "__main__":
    command(
        DoctorConfig, run, "finetune.doctor", "Checks which tasks a data folder is complete for.", examples=EXAMPLES
    )
