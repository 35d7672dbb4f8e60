"""What is installed from a wheel works from any directory, the compiled operator included."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_the_oldest_versions_are_those_that_are_allowed():
    """What `make test-oldest` tests is what pyproject.toml promises."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", each).groups() for each in ranges)
    oldest = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "tests/oldest.txt").read_text(), re.MULTILINE))
    tested = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert set(oldest) == set(tested) and set(bounds) - set(tested) == {"spacy"}  # of many packages, 400 MB
    for name, version in oldest.items():
        tools = ("pytest", "pytest-xdist", "hypothesis", "ruff", "codespell", "mypy", "tensorboard", "playwright")
        used_by_tests_alone = name in tools
        bound = bounds.get(name) if not used_by_tests_alone else None
        assert Version(version) == Version(bound or tested[name]), name


def test_every_extra_is_documented():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [described] = re.findall(r"^- Extras.*?(?=^- )", (ROOT / "docs/install.md").read_text(), re.DOTALL | re.MULTILINE)
    assert set(project["optional-dependencies"]) <= set(re.findall(r"`(\w+)`", described))


def test_make_names_a_python_that_is_too_old_before_it_installs_anything(tmp_path):
    python = tmp_path / "python3.10"
    code = "import sys; sys.version_info = (3, 10, 13); exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{code}" "$2"\n')
    python.chmod(0o755)
    command = ("make", "env", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"{python} is Python 3.10; Python 3.11 or newer is needed" in done.stderr
    assert "venv" not in done.stdout and not (tmp_path / "venv").exists()


def run(*command, cwd, **environment):
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def without(*folders):
    """For copytree: without these folders of the repository (finetune/data is another) and without leftovers."""
    leftovers = shutil.ignore_patterns(".*", "*.so", "*.egg-info", "__pycache__")
    return lambda place, names: leftovers(place, names) | (set(folders) if Path(place) == ROOT else set())


def build(folder, **environment):
    """A wheel of the files that git would hand out, with no leftovers of the working tree, and what its build said."""
    source = folder / "source"
    skip = without("build", "data", "runs", "tests")
    shutil.copytree(ROOT, source, ignore=skip)
    command = (sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-v", "-w", folder)
    said = run(*command, cwd=source, **environment)
    return next(folder.glob("*.whl")), said


def test_an_editable_installation_is_a_path_that_editors_follow(tmp_path):
    """A .pth file with the repository's path; editors do not follow setuptools' import hooks."""
    source = tmp_path / "source"
    skip = without("build", "data", "runs", "tests", "docs", "benchmarks")
    shutil.copytree(ROOT, source, ignore=skip)
    script = f"from setuptools import build_meta; print(build_meta.build_editable({str(tmp_path)!r}))"
    run(sys.executable, "-c", script, cwd=source, PATH="/nowhere", CXX="")  # no compiler
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    path, *others = (name for name in wheel.namelist() if ".dist-info/" not in name)
    assert not others and wheel.read(path).decode().strip() == str(source)


@pytest.mark.slow
def test_a_wheel_holds_the_layers_and_the_compiled_operator(tmp_path):
    wheel, _ = build(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    layers = {name.partition("/")[0] for name in names if name.endswith(".py")}
    assert layers == {layer for layer in ("ops", "shards", "pretrain", "finetune") if (ROOT / layer).is_dir()}
    assert {f"{layer}/py.typed" for layer in layers} <= set(names)  # type checkers use the annotations
    assert {"finetune/evaluation/paper_tables.json", "finetune/reporting/downloads.toml"} <= set(names)
    pages = {path.name for path in (ROOT / "finetune/pages").iterdir() if path.suffix in (".css", ".html", ".js")}
    assert pages and pages == {name.split("/")[-1] for name in names if "/pages/" in name and not name.endswith(".py")}
    target = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel, cwd=tmp_path)
    # -P and the path make this copy the one that is imported, not the one that the tests were started from.
    script = "import ops.__main__, sys; print(ops.__file__); sys.exit(ops.__main__.main())"
    out = run(sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(target)!r}); {script}", cwd=tmp_path)
    assert str(target) in out
    if shutil.which("c++"):
        assert "CPU   compiled; self-check passed" in out
        assert "-cp311-abi3-" in wheel.name  # for later versions of Python too


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
@pytest.mark.parametrize("release", ["13.0", "12.4"])
def test_a_cuda_that_does_not_build_costs_the_operators_for_the_gpu_alone(release, tmp_path):
    """torch is made to say that it has CUDA 13.0; of the toolkit there is an nvcc that tells its release."""
    nvcc = tmp_path / "toolkit/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f'#!/bin/sh\necho "release {release}, V{release}.1"\n')
    nvcc.chmod(0o755)
    header = tmp_path / "toolkit/include/cuda_runtime_api.h"
    header.parent.mkdir()
    header.touch()
    (tmp_path / "sitecustomize.py").write_text("import torch\ntorch.version.cuda = '13.0'\n")
    wheel, said = build(tmp_path, PYTHONPATH=tmp_path, CUDA_HOME=tmp_path / "toolkit")
    assert "the operators could not be compiled with CUDA" in said
    assert any(name.startswith("ops/_compiled") for name in zipfile.ZipFile(wheel).namelist())
