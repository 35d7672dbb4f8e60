"""Packages of other projects with the same names are noticed before they are used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "command"),
    [("ops", ["shards.inspect", "data"]), ("finetune", ["shards.inspect", "data"]), ("shards", ["ops"])],
)
def test_a_package_of_another_project_is_named(tmp_path, name, command):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{tmp_path / name} is another project's package {name}" in done.stderr


def test_a_missing_package_is_named(monkeypatch):
    from shards.common import own_packages
    from shards.common.errors import UserError

    monkeypatch.setattr(own_packages, "PACKAGES", ("shards", "no_such_package"))
    with pytest.raises(UserError, match="the package no_such_package is missing"):
        own_packages.check_packages()
