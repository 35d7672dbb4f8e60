"""Checks that the top-level packages are the toolkit's own: other projects use the names ops, shards and finetune.

Each package runs this file, by its path, before it imports anything of another one, which could be the other project's.
It is therefore the first that a command runs, and handles interrupts while the command is imported.
"""

import base64
import hashlib
import os
import signal
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("ops", "shards", "pretrain", "finetune")
DISTRIBUTION = "twelve-in-one"
ROOT = Path(__file__).resolve().parents[1]  # the folder of all four
ADVICE = "install twelve-in-one in an environment of its own"


def check_packages() -> None:
    """Ends a command with one sentence and status 2 if a package is not the toolkit's own, or it has no directory.

    Raises:
        ImportError: a package is not the toolkit's own, outside of a command.
    """
    command = _starts_command()
    if command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)  # until shards.common.cli.command, which handles later interrupts
    problem = (command and without_directory()) or elsewhere() or overwritten()
    if problem is None:
        return
    started = Path(sys.argv[0])  # -m: Python is about to start a module of the package
    if started.name in ("-m", DISTRIBUTION) or started.resolve() == ROOT / "ops" / "__main__.py":
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(problem)


def _starts_command() -> bool:
    """Whether Python is about to start a command of the toolkit, and not another module that imports a package."""
    if Path(sys.argv[0]).name == "-m" and "-m" in sys.orig_argv:
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
        return module.partition(".")[0] in PACKAGES
    return Path(sys.argv[0]).name == DISTRIBUTION


def _end(number: int, frame: object) -> None:
    """Handles Ctrl-C during imports, in which libraries turn KeyboardInterrupt into other errors, or ignore it."""
    os.write(2, b"stopped\n")
    os._exit(128 + number)


def own_version() -> str | None:
    """The installed version of the toolkit; None for a checkout that was not installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def without_directory() -> str | None:
    """A sentence on a current directory that does not exist, in which torch's libraries end the process."""
    try:
        os.getcwd()
    except OSError as error:
        return (
            f"the current directory cannot be used ({error.strerror}); it may have been deleted: change to another one"
        )
    return None


def elsewhere() -> str | None:
    """A sentence on a package that Python finds elsewhere than next to this one, or nowhere."""
    for name in PACKAGES:
        found = find_spec(name)
        if found is None or found.origin is None:
            return f"the package {name} is missing in {ROOT}; {ADVICE}"
        origin = Path(found.origin).resolve()
        if origin != ROOT / name / "__init__.py":
            place = origin.parent if origin.name == "__init__.py" else origin  # a file NAME.py is a module, too
            return (
                f"{place} is another project's package {name}, which Python finds before that of twelve-in-one in "
                f"{ROOT}; {ADVICE}, and run it in another directory"
            )
    return None


def overwritten() -> str | None:
    """A sentence on a package whose __init__.py another project's installation has replaced."""
    files = recorded_files(DISTRIBUTION)
    for path in (f"{name}/__init__.py" for name in PACKAGES):
        if path in files and files[path] != recorded_hash(ROOT / path):
            others = [each.name for each in metadata.distributions(path=[str(ROOT)]) if each.name != DISTRIBUTION]
            owners = [other for other in others if path in recorded_files(other)]
            by = f"the package {' or '.join(owners)}" if owners else "something else"
            return f"{ROOT / path} was replaced by {by} after twelve-in-one was installed; {ADVICE}"
    return None


def recorded_files(distribution: str) -> dict[str, str]:
    """Path in ROOT -> hash of the files that pip has installed there for a distribution; empty in a clone."""
    found = next(iter(metadata.distributions(name=distribution, path=[str(ROOT)])), None)
    record = found.read_text("RECORD") if found else None  # lines of path, hash and size; none in the folder of a clone
    lines = (record or "").splitlines()
    return {path: value for path, value, _ in (line.rsplit(",", 2) for line in lines)}


def recorded_hash(path: Path) -> str:
    """The hash of a file as RECORD has it: in base64 for URLs, without padding."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=")
