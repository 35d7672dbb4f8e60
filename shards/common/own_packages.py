"""Checks that the top-level packages are the toolkit's own: other projects use the names ops, shards and finetune."""

from importlib.util import find_spec
from pathlib import Path

from shards.common.errors import UserError

PACKAGES = ("ops", "shards", "pretrain", "finetune")


def check_packages() -> None:
    """Raises UserError if Python finds one of the packages elsewhere than next to this one."""
    root = Path(__file__).resolve().parents[2]
    for name in PACKAGES:
        found = find_spec(name)
        if found is None or found.origin is None:
            raise UserError(f"the package {name} is missing next to {root / 'shards'}; install twelve-in-one again")
        folder = Path(found.origin).resolve().parent
        if folder.parent != root:
            raise UserError(
                f"{folder} is another project's package {name}, which Python finds before that of twelve-in-one in "
                f"{root}; install twelve-in-one in an environment of its own, and run it in another directory"
            )
