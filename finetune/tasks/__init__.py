"""The tasks, found by name: every module of this package defines some in a tuple named TASKS.

Adding a task takes a new module here, or a package with an entry point (shards.common.plugins), and nothing else.
"""

import importlib
import pkgutil
from collections.abc import Sequence

from finetune.task_types.base import TASK_TOKENS, Task
from shards.common.errors import UserError
from shards.common.plugins import load_plugin, package_of, plugins

GROUPS = ("G1", "G2", "G3", "G4")  # of the paper; tasks that are not in the paper have other group names


def all_tasks() -> dict[str, Task]:
    """Every task by its name, in the order of the paper's groups."""
    found = [
        task
        for module in pkgutil.iter_modules(__path__)
        for task in importlib.import_module(f"{__name__}.{module.name}").TASKS
    ]
    for point in plugins("tasks").values():
        found += _of_package(package_of(point), load_plugin(point), found)
    return {task.name: task for task in sorted(found, key=lambda task: (task.group, task.token))}


def _of_package(package: str, tasks: Sequence[Task], known: Sequence[Task]) -> list[Task]:
    """The tasks of another package. Raises UserError if their names or tokens are those of known tasks."""
    checked: list[Task] = []
    for task in tasks:
        for other in (*known, *checked):
            if task.name == other.name:
                raise UserError(f"package {package}: there is already a task {task.name}; rename it or uninstall one")
            if task.token == other.token or not 0 <= task.token < TASK_TOKENS:
                taken = {one.token for one in (*known, *checked)}
                free = ", ".join(str(token) for token in range(1, TASK_TOKENS) if token not in taken)
                raise UserError(f"package {package}: token {task.token} of {task.name} is not free; use one of {free}")
        checked.append(task)
    return checked


def paper_tasks() -> dict[str, Task]:
    """The paper's twelve tasks by name: the tasks of the miniature world and of the MT score."""
    return {name: task for name, task in all_tasks().items() if task.group in GROUPS}


def find_task(name: str) -> Task:
    """The task of a name. Raises UserError with a list of all tasks for an unknown name."""
    tasks = all_tasks()
    if name not in tasks:
        raise UserError(f"--task {name}: should be one of {', '.join(tasks)}")
    return tasks[name]


def choose_tasks(names: str, flag: str = "--tasks") -> list[Task]:
    """The tasks of a comma-separated list of tasks and groups, such as "refcoco,g1", without duplicates.

    "all" stands for the paper's twelve tasks; further tasks are chosen by their name or group.
    """
    tasks, chosen = all_tasks(), set()
    groups = {"all": set(paper_tasks())}
    for task in tasks.values():
        groups.setdefault(task.group.lower(), set()).add(task.name)
    for name in names.split(","):
        if name.lower() not in groups and name not in tasks:
            raise UserError(f"{flag} {name}: should be one of {', '.join([*groups, *tasks])}")
        chosen |= groups.get(name.lower(), {name})
    return [task for name, task in tasks.items() if name in chosen]
