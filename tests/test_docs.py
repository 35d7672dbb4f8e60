"""The documentation: its links and pictures are there, and its commands name commands and flags that exist."""

import importlib
import json
import pkgutil
import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from finetune.__main__ import GROUPS
from pretrain import config as pretrain_config
from shards.common.cli import build, parse, usage

ROOT = Path(__file__).parents[1]
DOCS = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")])
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS, ROOT / "benchmarks" / "README.md"]


def text_of(page: Path) -> str:
    """The text of a page; of a notebook that of its cells, where {python} is the Python that runs it."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]).replace("{python}", "python")


def commands(text: str):
    """(module, names of its flags) of every `python -m` in blocks of code and between backticks, behind a `&&` too."""
    text = text.replace("\\\n", " ")
    for line in re.findall(r"(?:python|torchrun[^\n`&]*?) -m ((?:pretrain|finetune|shards|ops)\b[^\n`#|&]*)", text):
        module, *words = line.split()
        yield module, [word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")]


FLAGS_TO_BE_MADE = {"regression"}  # by the reader of a tutorial


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)", text_of(page)):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def config_of(module) -> type:
    """The dataclass of a command's flags."""
    return get_type_hints(module.run)["config"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_flags_exist(page):
    for name, flags in commands(text_of(page)):
        module = importlib.import_module(f"{name}.__main__" if name in ("ops", "shards.world") else name)
        has_flags = "run" in vars(module)  # finetune and ops have none
        known = {field.name for field in fields(config_of(module))} if has_flags else set()
        assert set(flags) <= known | FLAGS_TO_BE_MADE | {"help"}, (name, flags)


FOLDERS = "tests|pretrain|finetune|shards|ops|benchmarks|docs"
TO_BE_MADE = {  # by the reader of a tutorial, or by a later record
    *("finetune/tasks/tallyqa.py", "finetune/heads/counting_head.py", "shards/detectors/grid.py"),
    "pretrain/objective/regression_term.py",
    "benchmarks/records/NAME-YYYY-MM-DD.jsonl",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_repository_that_a_page_names_exist(page):
    text = text_of(page)
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]+(?:\.\w+|/))`", text)) - TO_BE_MADE
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_functions_that_pool_are_in_the_files_of_their_table():
    text = (ROOT / "docs" / "regions.md").read_text().partition("## Where regions are pooled")[2]
    lines = text.partition("\n## ")[0].splitlines()
    rows = [line.strip("|").split("|")[-2:] for line in lines if line.startswith("| ")][1:]
    assert len(rows) == 7
    for functions, files in rows:
        code = "".join((ROOT / file).read_text() for file in re.findall(r"`(.+?)`", files))
        for name in re.findall(r"\w+", functions):
            assert re.search(rf"^ *(def|class) {name}\b", code, re.MULTILINE), name


def test_every_page_is_linked_from_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS if page.name != "README.md" and f"]({page.name})" not in index] == []


def test_help_has_the_effective_defaults():
    """Of a flag whose default is None, what applies where it is not given."""
    configs = set()
    for package in ("shards", "pretrain", "finetune"):
        for module in pkgutil.iter_modules([str(ROOT / package)]):
            values = vars(importlib.import_module(f"{package}.{module.name}")).items()
            configs |= {value for name, value in values if name.endswith("Config") and is_dataclass(value)}
    configs = {config for config in configs if any("help" in field.metadata for field in fields(config))}
    assert len(configs) >= 20
    for config in configs:
        text = usage(config, "some.command", "Does it.")
        assert "[default: ]" not in text and "[default: None]" not in text, config
    text = usage(pretrain_config.PretrainConfig, "pretrain.run", "")
    for size in ("base", "tiny"):
        settled = pretrain_config.PretrainConfig(config=size).with_size_defaults()
        for name in ("batch_size", "epochs", "lr", "clip"):
            [described] = re.findall(rf"^  --{name} (.*?)(?=^  --|^$)", text, re.DOTALL | re.MULTILINE)
            assert f"{getattr(settled, name):g} ({size})" in " ".join(described.split())


COMMANDS = [module for group in GROUPS.values() for module, _ in group.values()]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "ops"])  # which has no flags
def test_the_examples_of_help_can_be_typed(name):
    module = importlib.import_module("shards.world.__main__" if name == "shards.world" else name)
    config = config_of(module)
    assert module.EXAMPLES
    for example in module.EXAMPLES:
        launcher, _, rest = example.partition(f" -m {name}")
        assert launcher == "python" or launcher.startswith("torchrun --standalone --nproc-per-node")
        positional, flags = parse(shlex.split(rest))
        build(config, flags, positional)


def test_a_run_is_expected_from_the_hub_too():
    for package in ("pretrain", "finetune"):
        for module in pkgutil.iter_modules([str(ROOT / package)]):
            for name, value in vars(importlib.import_module(f"{package}.{module.name}")).items():
                runs = [field for field in fields(value) if field.name == "run"] if is_dataclass(value) else []
                assert all(field.metadata.get("model") for field in runs), (module.name, name)
