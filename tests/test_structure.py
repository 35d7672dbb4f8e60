"""The structure that design and README promise: layers import downwards only, commands exist, names are kept."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["ops", "shards", "pretrain", "finetune"]
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_layer_imports_only_layers_below_it(path):
    layer = path.relative_to(ROOT).parts[0]
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    assert not imported(path) & above


def test_the_shards_layer_imports_torch_for_networks_alone():
    """Commands that extract, convert and read start in a fraction of a second because of it. fp16.py imports it where
    it is called: in the processes that convert, once in each."""
    users = {
        str(path.relative_to(ROOT / "shards"))
        for path in FILES
        if path.is_relative_to(ROOT / "shards") and "torch" in imported(path)
    }
    networks = {"detection/batched.py", "detectors/backbone.py", "detectors/transformers_model.py"}
    networks |= {"parsing/tensor_files.py", "parsing/torch_save.py", "common/device.py"}
    assert {user for user in users if not user.startswith(("detection/x152/", "detection/backbone/"))} == networks | {
        "common/fp16.py"
    }
    names = ("extract", "convert", "inspect", "storage.reader", "world", "detectors.pixels")
    modules = ", ".join(f"shards.{name}" for name in names)
    check = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_workers_that_read_images_start_without_torch():
    """A pool imports the module of its function in each worker; torch takes seconds and 300 MB."""
    names = ("image_jobs", "known_tests", "corpus_part", "corpus_check")
    modules = ", ".join(f"finetune.decontamination.{name}" for name in names)
    check = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def is_command(path: Path) -> bool:
    """Whether a module can be started with `python -m`."""
    body = ast.parse(path.read_text()).body
    return any(isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in body)


@pytest.mark.parametrize("package", ["shards", "pretrain", "finetune"])
def test_modules_directly_under_a_package_are_commands(package):
    """Everything else is in a folder named by its role, and no command is. In ops, which is flat, all are together."""
    others = {"__init__.py", "__main__.py", "config.py", "build.py"}
    direct = {path for path in (ROOT / package).glob("*.py") if path.name not in others}
    commands = {path for path in (ROOT / package).rglob("*.py") if path.name != "__main__.py" and is_command(path)}
    assert direct == commands


COMMANDS = [path for path in FILES if path.name != "__main__.py" and is_command(path)]
LONGEST_COMMAND = 80  # lines


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_has_only_flags_and_run(path):
    """Whatever can be reused or tested apart from the flags is in a folder named by its role."""
    assert len(path.read_text().splitlines()) <= LONGEST_COMMAND


def imported_modules(path: Path) -> set[str]:
    """The modules that a file may import, by their full names: `from a import b` can mean a, or a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_no_module_imports_a_command():
    """A command imported by another module is a library in the wrong place; runpy would also load it twice."""
    commands = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in COMMANDS}
    importers = {path: imported_modules(path) & commands for path in (*FILES, *(ROOT / "benchmarks").rglob("*.py"))}
    of_one_command = {"benchmarks/tasks.py": {"finetune.st"}}  # trains in its own process
    found = {str(path.relative_to(ROOT)): names for path, names in importers.items() if names}
    assert found == of_one_command


def folders_of(package: str) -> list[str]:
    """The folders of a package in the order of README's map, the lowest first."""
    readme = (ROOT / "README.md").read_text()
    [block] = re.findall(rf"^{package}/ .*\n((?:  .*\n)+)", readme, re.MULTILINE)
    return re.findall(r"^  (\w+)/", block, re.MULTILINE)


@pytest.mark.parametrize("package", ["shards", "pretrain", "finetune"])
def test_a_folder_imports_only_folders_above_it_in_the_map(package):
    """config.py and build.py are exempt: flags name the choices of all folders, and all folders take flags."""
    folders = folders_of(package)
    assert {path.parent.name for path in (ROOT / package).glob("*/__init__.py")} == set(folders)
    for number, folder in enumerate(folders):
        later = {f"{package}.{name}" for name in folders[number + 1 :]}
        for path in (ROOT / package / folder).rglob("*.py"):
            modules = {".".join(name.split(".")[:2]) for name in imported_modules(path)}
            assert not modules & later, path


def test_a_name_of_a_module_has_one_meaning():
    names = Counter(path.stem for path in FILES)
    same = {"__init__", "__main__", "base", "build", "config", "convert"}  # the same thing in several folders
    assert {name for name, count in names.items() if count > 1} <= same


def test_every_file_says_what_it_is():
    silent = [str(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []
