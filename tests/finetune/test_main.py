"""twelve-in-one: every command under one name."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from finetune.__main__ import GROUPS, main

ROOT = Path(__file__).parents[2]
MODULES = {module for commands in GROUPS.values() for module, _ in commands.values()}


def test_all_commands_are_listed():
    found = set()
    for package in ("ops", "shards", "pretrain", "finetune"):
        for path in (ROOT / package).rglob("*.py"):
            if re.search(r'^if __name__ == "__main__":', path.read_text(), re.MULTILINE):
                found.add(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    assert found - {"finetune"} == MODULES
    assert all(find_spec(module) for module in MODULES)
    names = [name for commands in GROUPS.values() for name in commands]
    assert len(names) == len(set(names)) == len(MODULES)


def test_a_command_is_what_its_module_is():
    """The same output and status, under its short name and under its module's."""
    for arguments in (["inspect", "--help"], ["inspect", "no-such-folder"], ["shards.inspect", "--help"]):
        ours = subprocess.run([sys.executable, "-m", "finetune", *arguments], capture_output=True, text=True, cwd=ROOT)
        command = [sys.executable, "-m", "shards.inspect", *arguments[1:]]
        module = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert (ours.returncode, ours.stdout, ours.stderr) == (module.returncode, module.stdout, module.stderr)
        assert "shards.inspect" in ours.stdout or "no-such-folder" in ours.stderr


def test_the_overview_needs_no_torch():
    check = "import sys; from finetune.__main__ import overview; overview(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_the_overview_names_all(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["twelve-in-one", *arguments])
    assert main() == 0
    out = capsys.readouterr().out
    assert all(f"(python -m {module})" in out for module in MODULES)


def test_the_version_is_the_installed_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["twelve-in-one", "--version"])
    monkeypatch.setattr("ops.own_packages.own_version", lambda: "0.7.1")
    assert main() == 0 and capsys.readouterr().out == "twelve-in-one 0.7.1\n"
    monkeypatch.setattr("ops.own_packages.own_version", lambda: None)
    assert main() == 0 and capsys.readouterr().out == "twelve-in-one (not installed)\n"


def test_an_unknown_command_is_answered_with_those_that_exist(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["twelve-in-one", "trian"])
    assert main() == 2
    assert re.search(r"trian: no such command; it should be one of extract, .*, pretrain", capsys.readouterr().err)


def test_a_reader_that_ends_early_is_no_traceback():
    command = f"{sys.executable} -m finetune | true; exit ${{PIPESTATUS[0]}}"
    for _ in range(3):
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert done.stderr == "" and done.returncode in (0, 141)
