"""Published formats of features, found by what a path holds: every file of this folder has one, called FORMAT."""

import importlib
import pkgutil
from pathlib import Path

from shards.errors import UserError
from shards.source import Source


def open_source(path: str) -> Source:
    """The source at a path, by the first format that knows it."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file or folder")
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    formats = [importlib.import_module(f"{__name__}.{name}").FORMAT for name in names]
    for found in formats:
        if found.recognises(Path(path)):
            return found(Path(path))
    raise UserError(f"{path}: should be {', or '.join(each.holds for each in formats)}")
