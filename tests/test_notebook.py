"""The notebook of the documentation: it is valid, shows nothing of the machine it was written on, and runs."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first_steps.ipynb"
# Runs the cells as Jupyter does. A `!` line that fails raises nothing; its status is in _exit_code.
RUN_CELLS = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        shell.run_cell("".join(cell["source"])).raise_error()
        if status := shell.user_ns.get("_exit_code", 0):
            sys.exit(f"cell {number}: status {status}")
"""


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code_of(notebook) -> list[str]:
    """Python of the code cells; commands (`!`) become `pass`."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [re.sub(r"^!.*$", "pass", source, flags=re.MULTILINE) for source in sources]


def test_it_is_a_notebook_without_outputs(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown") and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert not re.search(r"/(home|root|tmp|work|Users)/", NOTEBOOK.read_text(encoding="utf-8"))


def test_what_its_cells_import_exists(notebook):
    imported = 0
    for source in code_of(notebook):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module != "IPython.display":
                exec(ast.unparse(node), {})
                imported += 1
    assert imported >= 3


@pytest.mark.slow
def test_it_runs(tmp_path):
    pytest.importorskip("IPython")
    environment = os.environ | {"PYTHONPATH": str(NOTEBOOK.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN_CELLS, str(NOTEBOOK)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = tmp_path / "first_steps"
    assert (folder / "runs" / "refcoco" / "scores" / "refcoco-testA.json").exists()
    assert "moon" in (folder / "attention.html").read_text(encoding="utf-8")
