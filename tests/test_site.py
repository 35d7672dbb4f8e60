"""The public interface: every name of `__all__` exists, is documented, and is in the site that `make docs` builds."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("finetune", "pretrain", "shards", "ops")
NAMES = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]


@pytest.mark.parametrize(("package", "name"), NAMES, ids=lambda value: value)
def test_every_public_name_exists_and_is_documented(package, name):
    value = getattr(importlib.import_module(package), name)
    assert value.__name__ == name and value.__doc__ and not value.__doc__.startswith(f"{name}(")


@pytest.mark.parametrize("package", ["finetune", "shards"])
def test_public_names_are_loaded_on_first_use(package):
    """A command that needs none of them starts without torch; editors and type checkers see the same names."""
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module._DEFINED_IN)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = module.Nothing
    check = f"import {package}, sys; assert 'torch' not in sys.modules; from {package} import *; Sample = 0"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("mkdocs", "mkdocstrings", "mkdocstrings_handlers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the packages of the extra docs are not installed ({name})")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "WARNING" not in said, said
    return folder


def test_the_site_has_every_public_name(site):
    """mkdocs.yml is strict, so that a broken link, anchor or docstring ends the build too."""
    for package in PACKAGES:
        page = (site / "reference" / f"{package}.html").read_text(encoding="utf-8")
        headings = re.findall(r"<h2 [^>]*>(.*?)</h2>", page, re.S)
        titles = {re.sub(r"<[^>]*>", "", heading).split()[0] for heading in headings}
        assert titles == {f"{package}.{name}" for of, name in NAMES if of == package}
    embedder = (site / "reference" / "finetune.html").read_text(encoding="utf-8")
    assert 'id="finetune.Embedder.pairs"' in embedder and 'id="finetune.Predictor.__call__"' in embedder


def test_entries_for_several_names_have_a_row_each(site):
    """The docstring of `short_attention` has one entry for max_query and max_key."""
    page = (site / "reference" / "ops.html").read_text(encoding="utf-8")
    for name in ("max_query", "max_key"):
        assert re.search(rf"<code>{name}</code></b>\s*\(<code><span title=.int.>.*?<p>upper bounds of", page, re.S)


def test_the_site_has_every_page_and_loads_nothing_from_other_servers(site):
    for page in (*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks/README.md"):
        name = page.relative_to(ROOT).with_name("index.md" if page.stem == "README" else page.name)
        assert (site / name.with_suffix(".html")).exists(), name
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', text), page
