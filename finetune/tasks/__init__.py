"""The tasks, found by name: every file of this folder gives some in a tuple called TASKS.

A new task is a new file here and nothing else.
"""

import importlib
import pkgutil

from finetune.task import Task
from shards.errors import UserError


def all_tasks() -> dict[str, Task]:
    """Every task by its name, in the order of the paper's groups."""
    found = [
        task
        for module in pkgutil.iter_modules(__path__)
        for task in importlib.import_module(f"{__name__}.{module.name}").TASKS
    ]
    return {task.name: task for task in sorted(found, key=lambda task: (task.group, task.token))}


def find_task(name: str) -> Task:
    """The task of a name; a UserError lists those there are."""
    tasks = all_tasks()
    if name not in tasks:
        raise UserError(f"--task {name}: should be one of {', '.join(tasks)}")
    return tasks[name]
