"""Packages of other projects with the same names are noticed before they are used."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ops import own_packages

ROOT = Path(__file__).parents[2]
PACKAGES = ("ops", "shards", "pretrain", "finetune")


def run(*argv, paths, cwd):
    """SIGINT has Python's default, although tests in the background of a shell ignore it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.run([sys.executable, *argv], cwd=cwd, capture_output=True, text=True, env=environment, **options)


@pytest.fixture
def other(tmp_path):
    """Makes an empty package of a name in a directory, which is returned."""

    def make(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("ops", ["shards.inspect", "data"]),
        ("ops", ["pretrain.run"]),
        ("ops", ["finetune", "mt"]),
        ("shards", ["ops"]),
        ("shards", ["pretrain.run"]),
        ("shards", ["finetune.mt", "--help"]),
        ("pretrain", ["finetune.mt"]),
        ("finetune", ["shards.inspect", "data"]),
    ],
)
def test_a_package_of_another_project_is_named(other, name, command):
    folder = other(name)
    done = run("-m", *command, paths=[folder, ROOT], cwd=folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: {folder / name} is another project's package {name}, ")


def test_a_file_of_the_same_name_is_named(tmp_path):
    """A user's script in the directory of the command, also in a folder of the clone."""
    clone, script = tmp_path / "clone", tmp_path / "clone" / "scratch" / "shards.py"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    script.parent.mkdir()
    script.write_text("")
    done = run("-m", "finetune.mt", "--help", paths=[script.parent, clone], cwd=script.parent)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: {script} is another project's package shards, ")


def test_in_python_it_is_an_import_error(other):
    folder = other("shards")
    done = run("-c", "from finetune import Predictor", paths=[folder, ROOT], cwd=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {folder / 'shards'} is another project's package")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(own_packages, "PACKAGES", ("shards", "no_such_package"))
    with pytest.raises(ImportError, match="the package no_such_package is missing"):
        own_packages.check_packages()


@pytest.fixture
def site(tmp_path):
    """A folder with the files of the packages and pip's record of their first ones, as an installed wheel has them."""
    site = tmp_path / "site"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    record(site, "twelve-in-one", [f"{name}/__init__.py" for name in PACKAGES])
    return site


def record(site, distribution, paths):
    folder = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{path},{own_packages.recorded_hash(site / path)},{(site / path).stat().st_size}" for path in paths]
    (folder / "RECORD").write_text("\n".join([*lines, f"{folder.name}/RECORD,,"]) + "\n")


@pytest.mark.parametrize("command", [["ops"], ["shards.inspect", "data"], ["finetune"]])
def test_a_later_installation_that_replaced_a_file_is_named(site, tmp_path, command):
    done = run("-m", *command, "--help", paths=[site], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (site / "ops" / "__init__.py").write_text("")
    record(site, "other-ops", ["ops/__init__.py"])
    done = run("-m", *command, "--help", paths=[site], cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{site / 'ops' / '__init__.py'} was replaced by the package other-ops" in done.stderr


# A library that is interrupted while it is imported, and makes another error of it, as NumPy does.
INTERRUPTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("not interrupted")
except BaseException:
    raise ImportError("cannot be imported") from None
"""
SCRIPT = "import sys; sys.argv = ['bin/twelve-in-one', 'inspect']; from finetune.__main__ import main; sys.exit(main())"


@pytest.mark.parametrize("start", [["-m", "shards.inspect"], ["-u", "-m", "finetune", "inspect"], ["-c", SCRIPT]])
def test_an_interrupt_during_the_imports_of_a_command_is_quiet(tmp_path, start):
    (tmp_path / "fire.py").write_text(INTERRUPTED)
    done = run(*start, "data", paths=[tmp_path, ROOT], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.parametrize("command", [["finetune.mt"], ["ops"], ["finetune", "inspect"], ["shards.inspect", "data"]])
def test_a_deleted_directory_is_named(tmp_path, command):
    folder = tmp_path / "folder"
    folder.mkdir()
    deletes = f"import os, sys; os.rmdir({str(folder)!r}); os.execv(sys.executable, sys.argv[1:])"
    done = run("-c", deletes, sys.executable, "-m", *command, paths=[ROOT], cwd=folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: the current directory cannot be used (No such file or directory); ")


def test_programs_that_import_a_package_handle_interrupts_themselves(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import shards\n")
    (tmp_path / "mine" / "__main__.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('saved')\n"
    )
    done = run("-m", "mine", paths=[tmp_path, ROOT], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "saved\n", "")


def test_an_ignored_interrupt_stays_ignored(tmp_path):
    """Of a command that a shell started in the background."""
    ignores = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    (tmp_path / "fire.py").write_text(INTERRUPTED)
    done = run("-c", ignores, sys.executable, "-m", "shards.inspect", paths=[tmp_path, ROOT], cwd=tmp_path)
    assert "not interrupted" in done.stdout and done.returncode != 130, done.stderr


def test_workers_that_are_interrupted_during_their_imports_print_nothing(tmp_path):
    (tmp_path / "work.py").write_text(
        "import os, signal\n"
        "from shards.common.process_pool import run_tasks\n"
        "if __name__ == '__main__':\n"
        "    print(sum(done for _, done in run_tasks(abs, [-1, -2], 2, 2, 'parts')))\n"
        "else:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = run("work.py", paths=[ROOT], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "3\n") and "Traceback" not in done.stderr, done.stderr
