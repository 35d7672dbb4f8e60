"""What is installed from a wheel works from any directory, the compiled operator included."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the files that git would hand out: no leftovers of the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns(".*", "*.so", "build", "data", "runs", "tests", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skip)
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", folder, cwd=source)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_holds_the_floors_and_the_compiled_operator(wheel, tmp_path):
    names = zipfile.ZipFile(wheel).namelist()
    floors = {name.partition("/")[0] for name in names if name.endswith(".py")}
    assert floors == {floor for floor in ("ops", "shards", "pretrain", "finetune") if (ROOT / floor).is_dir()}
    assert "finetune/paper_tables.json" in names
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
