"""Parts of `make docs` that mkdocs.yml cannot describe: pages outside of docs/, and the API reference.

The site has the folders of the repository, so that links between pages work there, on a forge and on disk.
"""

import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
PACKAGES = ("finetune", "pretrain", "shards", "ops")  # whose __all__ is the public interface
ENTRY = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE)


def on_config(config):
    """Sets the navigation: the README, the pages in the order of docs/README.md, the reference, and the project."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [f"docs/{name}" for name in re.findall(r"\]\((\w+\.md)\)", index)]
    config.nav = [
        "README.md",
        {"Documentation": ["docs/README.md", *pages]},
        {"API reference": [f"reference/{package}.md" for package in PACKAGES]},
        {"Project": list(PROJECT)},
    ]
    config.watch += [str(ROOT / package) for package in PACKAGES]
    return config


def on_files(files: Files, config) -> Files:
    """Moves the files of docs/ to the folder docs/ of the site; adds the other pages and the reference."""
    names = ["README.md", "LICENSE", "CITATION.cff", *PROJECT]
    ours, theirs = [], []
    for file in files:
        own = file.src_dir == config.docs_dir
        (ours if own else theirs).append(file)
    names += [f"docs/{file.src_uri}" for file in ours if not file.src_uri.endswith(".py")]
    found = [File.generated(config, name, abs_src_path=str(ROOT / name)) for name in names]
    found += [File.generated(config, f"reference/{name}.md", content=reference(name)) for name in PACKAGES]
    return Files([*theirs, *found])


def reference(package: str) -> str:
    """The page of a package: its docstring, and a section for each name in its `__all__`."""
    folder = ROOT / package
    module = griffe.visit(package, folder / "__init__.py", (folder / "__init__.py").read_text(encoding="utf-8"))
    sections = [f"# {package}", module.docstring.value]
    for name in sorted(module.exports, key=str.lower):
        path = f"{package}.{name}"
        defined = module.imports[name] if (folder / f"{name}.py").exists() else path  # a module has the same name
        sections.append(f"::: {defined}\n    options: {{heading: {path}, toc_label: {name}}}")
    return "\n\n".join(sections) + "\n"


class SplitNames(griffe.Extension):
    """Splits entries for several names in docstrings ("key, value: ..."), which mkdocstrings takes for one name."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = ENTRY.sub(split, obj.docstring.value)


def split(entry: re.Match) -> str:
    """One entry for each of the names, with the same text."""
    return "\n".join(f"{entry['indent']}{name}: {entry['text']}" for name in entry["names"].split(", "))
