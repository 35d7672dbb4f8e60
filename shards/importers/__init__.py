"""Formats of published features, detected by the content of a path; every module in this folder defines a FORMAT.

Other packages add formats by entry points (shards.common.plugins).
"""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from shards.common.errors import UserError
from shards.common.files import expand
from shards.common.plugins import load_plugin, plugins
from shards.importing.base import Source


def open_source(sources: Sequence[str]) -> Source:
    """Opens the source at one or several paths or patterns, with the format that recognises it."""
    if not sources:
        raise UserError("SOURCE is missing; it should be a file or folder of features")
    paths = [Path(path) for source in sources for path in _expanded(source)]
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    formats = [importlib.import_module(f"{__name__}.{name}").FORMAT for name in names]
    formats += map(load_plugin, plugins("importers").values())
    known = {path: [each for each in formats if each.recognises(path)] for path in paths}
    for path, found in known.items():
        if not found:
            raise UserError(f"{path}: should be {', or '.join(each.holds for each in formats)}")
        if len(found) > 1 or found != known[paths[0]]:
            names = " and ".join(dict.fromkeys(each.holds for of_path in known.values() for each in of_path))
            raise UserError(f"{path}: all features of a conversion should have the same format; found {names}")
    (kind,) = known[paths[0]]
    if len(paths) > 1 and not kind.several:
        raise UserError(f"{paths[1]}: several paths are only supported for .tsv; convert each path separately")
    return kind(*paths)


def _expanded(source: str) -> list[str]:
    """The paths given by a path, a glob or a brace pattern."""
    if Path(source).exists():
        return [source]
    return expand(source)
