"""Packages of other projects with the same names are noticed before they are used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops import own_packages

ROOT = Path(__file__).parents[2]
PACKAGES = ("ops", "shards", "pretrain", "finetune")


def run(*argv, paths, cwd):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([sys.executable, *argv], cwd=cwd, capture_output=True, text=True, env=environment)


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
