"""Published formats of features, found by what a path holds: every file of this folder has one, called FORMAT."""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from shards.errors import UserError
from shards.files import expand
from shards.source import Source


def open_source(sources: Sequence[str]) -> Source:
    """The source at one or several paths or patterns, by the format that knows it."""
    if not sources:
        raise UserError("no source is given; give a file or folder of features")
    paths = [Path(path) for source in sources for path in _expanded(source)]
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    formats = [importlib.import_module(f"{__name__}.{name}").FORMAT for name in names]
    known = {path: [each for each in formats if each.recognises(path)] for path in paths}
    for path, found in known.items():
        if not found:
            raise UserError(f"{path}: should be {', or '.join(each.holds for each in formats)}")
        if len(found) > 1 or found != known[paths[0]]:
            names = " and ".join(dict.fromkeys(each.holds for of_path in known.values() for each in of_path))
            raise UserError(f"{path}: features of one conversion should be of one kind, and there are {names}")
    (kind,) = known[paths[0]]
    if len(paths) > 1 and not kind.several:
        raise UserError(f"{paths[1]}: only .tsv files can be several; convert each of these into a folder of its own")
    return kind(*paths)


def _expanded(source: str) -> list[str]:
    """The paths that a path, a glob or a brace pattern names."""
    if Path(source).exists():
        return [source]
    return expand(source)
