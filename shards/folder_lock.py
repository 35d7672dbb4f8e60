"""One command at a time writes a folder: a lock in it, with the host, the process and the time of its owner.

The lock is the system's (flock), held on the file .lock: it ends with the process that holds it, however that ends, so
that the lock of a process that was killed is taken over. What the file says is for messages, and for other ranks.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from shards.errors import UserError
from shards.files import naming
from shards.ranks import launch_name

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that is mounted without
SHOWN = ("command", "process", "host", "since")


class FolderLock:
    """The lock of a folder that a command writes.

    command: what the owner is called in the messages of others; folders: names of those inside it whose leftovers are
    removed too.
    """

    def __init__(self, folder, command: str, folders: tuple[str, ...] = ()):
        self.folder, self.command, self.folders = Path(folder), command, folders
        self._made: list[Path] = []  # folders that did not exist before, the innermost first
        self._handle: int | None = None

    def acquire(self) -> None:
        """Takes the lock, of a folder that is made where there is none, and removes what killed writers left in it.

        Raises:
            UserError: another process has it.
        """
        parents = [self.folder, *self.folder.parents]
        self._made = [parent for parent in parents if not parent.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._handle = _locked(self.folder / LOCK)
        except BlockingIOError:
            owner = "{command} (process {process} on {host}, since {since})".format_map(
                dict.fromkeys(SHOWN, "?") | owner_of(self.folder)
            )
            raise UserError(
                f"{self.folder}: {owner} is writing this folder; wait until it has ended, or give another one"
            ) from None
        os.register_at_fork(after_in_child=self._forget)
        for folder in (self.folder, *(self.folder / name for name in self.folders)):
            remove_leftovers(folder)
        facts = {
            "command": self.command,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
            "launch": launch_name(),
        }
        os.ftruncate(self._handle, 0)
        with naming(self.folder / LOCK):
            os.write(self._handle, json.dumps(facts).encode() + b"\n")

    def release(self) -> None:
        """Gives the lock back, and removes the folder where it was made for the lock and is empty."""
        if self._handle is None:
            return
        (self.folder / LOCK).unlink(missing_ok=True)
        self._forget()
        with contextlib.suppress(OSError):  # it is not empty
            for folder in self._made:
                folder.rmdir()

    def _forget(self) -> None:
        """Closes the file. A forked child would hold the lock for as long as it lives."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def locked_folder(folder, command: str) -> Iterator[None]:
    """A block in which this process alone writes a folder; for the arguments see FolderLock."""
    lock = FolderLock(folder, command)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _locked(path: Path) -> int:
    """A handle of a file that this process has locked; BlockingIOError where another has."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:  # its owner removed it meanwhile
            pass
        except OSError as error:
            if error.errno in NO_LOCKS:
                print(f"{path.parent}: its file system has no locks ({error.strerror}); see that one command writes it")
                return handle
            os.close(handle)
            raise
        os.close(handle)


def owner_of(folder) -> dict:
    """What the lock of a folder says of its owner; nothing where there is none, or it is just being written."""
    try:
        found = json.loads((Path(folder) / LOCK).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remove_leftovers(folder: Path) -> None:
    """Removes files and folders that were written under a temporary name (files.whole_file) and never renamed.

    Only for the owner of a folder: others may be writing theirs.
    """
    for left in folder.glob(".*.part"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
