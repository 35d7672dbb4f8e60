"""The tasks, found by name: every module of this package defines some in a tuple named TASKS.

Adding a task takes a new module here, a package with an entry point (shards.common.plugins), or a TOML file about
tables (task_types.table_tasks), and nothing else.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from finetune.task_types.base import TASK_TOKENS, Task
from finetune.task_types.table_tasks import read_task_file
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.plugins import load_plugin, package_of, plugins

TASK_FILES = "tasks"  # folder of a run with the TOML files of its tasks, if any
_own: dict[str, tuple[Task, str]] = {}  # tasks of TOML files by name, with the contents of the files

GROUPS = ("G1", "G2", "G3", "G4")  # of the paper; tasks that are not in the paper have other group names


def all_tasks() -> dict[str, Task]:
    """Every task by its name, in the order of the paper's groups."""
    found = [
        task
        for module in pkgutil.iter_modules(__path__)
        for task in importlib.import_module(f"{__name__}.{module.name}").TASKS
    ]
    for point in plugins("tasks").values():
        found += _checked(f"package {package_of(point)}", load_plugin(point), found)
    found += (task for task, _ in _own.values())
    return {task.name: task for task in sorted(found, key=lambda task: (task.group, task.token))}


def add_task_file(path, run=None) -> Task:
    """Makes the task of a TOML file known in this process under its name, and returns it.

    run: a run that is resumed, whose copy of the file is used if the file no longer exists.
    """
    if run is not None and not Path(path).exists() and (Path(run) / TASK_FILES / Path(path).name).exists():
        path = Path(run) / TASK_FILES / Path(path).name
    known, name = all_tasks(), Path(path).stem
    others = [task for task in known.values() if task.name != name or name not in _own]
    task = read_task_file(path, known[name].token if name in _own else _free_tokens(others)[0])
    _checked(str(path), [task], others)
    if name in _own and _own[name][0] != task:
        raise UserError(f"{path}: another file describes another task {name}; rename one of them")
    _own.setdefault(name, (task, Path(path).read_text(encoding="utf-8")))
    return task


def keep_task_files(tasks: Sequence[Task], run) -> None:
    """Copies the TOML files of tasks into a run, which keeps its tasks by this wherever it is used.

    run: a run directory, or an output folder of finetune.clean; copies of other tasks in it are removed.
    """
    for path in (Path(run) / TASK_FILES).glob("*.toml"):
        path.unlink()
    for name in [task.name for task in tasks if task.name in _own]:
        (Path(run) / TASK_FILES).mkdir(parents=True, exist_ok=True)
        with whole_file(Path(run) / TASK_FILES / f"{name}.toml", "w", encoding="utf-8") as file:
            file.write(_own[name][1])


def add_task_files_of(run) -> None:
    """Makes the tasks known whose TOML files are kept in a run."""
    for path in sorted((Path(run) / TASK_FILES).glob("*.toml")):
        add_task_file(path)


def _free_tokens(tasks: Sequence[Task]) -> list[int]:
    """The task tokens that no task has, those above all others first."""
    taken = {task.token for task in tasks}
    return sorted(set(range(1, TASK_TOKENS)) - taken, reverse=True) or [0]


def _checked(source: str, tasks: Sequence[Task], known: Sequence[Task]) -> list[Task]:
    """The tasks of a source. Raises UserError if their names or tokens are those of known tasks."""
    checked: list[Task] = []
    for task in tasks:
        others = [*known, *checked]
        if any(task.name == other.name for other in others):
            raise UserError(f"{source}: there is already a task {task.name}; rename it or remove one")
        if any(task.token == other.token for other in others) or not 0 < task.token < TASK_TOKENS:
            free = ", ".join(map(str, sorted(_free_tokens(others))))
            raise UserError(f"{source}: token {task.token} of {task.name} is not free; use one of {free}")
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

    "all" is the paper's twelve tasks; further tasks are chosen by their name or group.
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
