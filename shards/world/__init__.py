"""The miniature world: a small synthetic data set, the default data of all commands.

Images are written as PNG files, and annotations in the official formats of the twelve data sets, so that they are
processed by the same code as real data.
"""

from pathlib import Path

from shards.common.errors import UserError

DEFAULT_WORLD = "data/world"
SETTINGS = "world.json"


def pairs_folder(world) -> Path:
    """The region shards of a world's image-caption pairs."""
    return Path(world) / "regions" / "pairs"


def is_world(folder) -> bool:
    return (Path(folder) / SETTINGS).exists()


def check_data_folder(folder) -> None:
    """Raises UserError if a data folder does not exist; commands that do not train do not create it."""
    if not Path(folder).is_dir():
        hint = "; python -m shards.world creates the miniature world there" if str(folder) == DEFAULT_WORLD else ""
        raise UserError(f"--data {folder}: no such folder{hint}")


def complete_world(folder, tasks: bool = True) -> None:
    """Completes a miniature world with its stored settings, and creates the default one if it does not exist.

    Other folders contain user data and are not changed.
    """
    if is_world(folder) or str(folder) == DEFAULT_WORLD:
        from shards.world.creation import make_world, stored_settings  # extraction takes half a second to import

        make_world(stored_settings(folder), tasks)
