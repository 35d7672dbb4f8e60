"""Tasks, detectors, importers, regimes and balancing methods of other installed packages, found by their entry points.

A package declares them in its pyproject.toml:

    [project.entry-points."twelve_in_one.tasks"]
    tallyqa = "tallyqa:TASKS"
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from shards.common.errors import UserError

GROUP = "twelve_in_one"  # prefix of the groups of entry points


@cache
def plugins(kind: str) -> dict[str, EntryPoint]:
    """Name -> entry point of every plug-in of a kind, not loaded.

    Args:
        kind: tasks, detectors, importers, regimes or balances.

    Raises:
        UserError: two packages have a plug-in of the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"{GROUP}.{kind}"):
        other = found.setdefault(point.name, point)
        if other.value != point.value or package_of(other) != package_of(point):
            raise UserError(
                f"packages {package_of(other)} and {package_of(point)} both have a plug-in {point.name} of "
                f"{GROUP}.{kind}; uninstall one of them"
            )
    return found


def package_of(point: EntryPoint) -> str:
    """The name of the package that declares an entry point."""
    return point.dist.name if point.dist else point.module


def load_plugin(point: EntryPoint) -> Any:
    """The object of an entry point. Raises UserError if its package cannot be imported or lacks it."""
    try:
        return point.load()
    except Exception as error:
        raise UserError(
            f"package {package_of(point)}: its plug-in {point.name} ({point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}; update or uninstall the package"
        ) from None
