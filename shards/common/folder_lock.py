"""Locks of output folders, so that only one command writes to a folder at a time.

The lock is an flock on the file .lock, which the system releases when its process ends, also when it is killed. The
content of the file (command, host, process, time) is for error messages and for other ranks.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shards.common.dist_info import Ranks, launch_name
from shards.common.errors import UserError
from shards.common.files import naming

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # the file system does not support locks
NOTICE_AFTER, BETWEEN_TRIES = 5.0, 0.05  # seconds, while waiting for a lock
PAUSE = 0.5  # seconds between checks of the progress of other ranks
SHOWN = ("command", "process", "host", "since")


class FolderLock:
    """The lock of an output folder.

    Args:
        command: name of the command, for error messages of other processes.
        folders: names of subfolders in which temporary files of killed processes are removed too.
    """

    def __init__(self, folder, command: str, folders: tuple[str, ...] = ()):
        self.folder, self.command, self.folders = Path(folder), command, folders
        self._made: list[Path] = []  # folders created for the lock, innermost first
        self._handle: int | None = None

    def acquire(self, wait: bool = False) -> None:
        """Creates the folder if needed, takes the lock, and removes temporary files of killed processes.

        Args:
            wait: wait for another process that has the lock, with a notice on stderr after NOTICE_AFTER seconds.

        Raises:
            UserError: another process has the lock, and `wait` is false.
        """
        parents = [self.folder, *self.folder.parents]
        self._made = [parent for parent in parents if not parent.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        began, noticed = time.monotonic(), False
        while self._handle is None:
            try:
                self._handle = _locked(self.folder / LOCK)
            except BlockingIOError:
                owner = "{command} (process {process} on {host}, since {since})".format_map(
                    dict.fromkeys(SHOWN, "?") | owner_of(self.folder)
                )
                if not wait:
                    raise UserError(
                        f"{self.folder}: {owner} is writing to this folder; wait until it has finished, or use another "
                        "one"
                    ) from None
                if not noticed and time.monotonic() - began > NOTICE_AFTER:
                    print(f"{self.folder}: waiting for {owner}, which is writing to it", file=sys.stderr, flush=True)
                    noticed = True
                time.sleep(BETWEEN_TRIES)
            except FileNotFoundError:  # another process has removed the folder, which was empty
                self.folder.mkdir(parents=True, exist_ok=True)
        os.register_at_fork(after_in_child=self._forget)
        for folder in (self.folder, *(self.folder / name for name in self.folders)):
            remove_leftovers(folder)
        owner = {
            "command": self.command,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
            "launch": launch_name(),
        }
        os.ftruncate(self._handle, 0)
        with naming(self.folder / LOCK):
            os.write(self._handle, json.dumps(owner).encode() + b"\n")

    def release(self) -> None:
        """Releases the lock, and removes the folder if it was created for the lock and is empty."""
        if self._handle is None:
            return
        (self.folder / LOCK).unlink(missing_ok=True)
        self._forget()
        with contextlib.suppress(OSError):  # it is not empty
            for folder in self._made:
                folder.rmdir()

    def _forget(self) -> None:
        """Closes the file. Also called in forked children, which would otherwise hold the lock until they end."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def locked_folder(folder, command: str) -> Iterator[None]:
    """Context manager that locks an output folder; for the arguments see FolderLock."""
    lock = FolderLock(folder, command)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def locked_by_first(folder, command: str, ranks: Ranks, finished: Path | None = None) -> Iterator[None]:
    """Context manager that locks a folder for all ranks: the first rank takes the lock, and the others wait for it.

    finished: a file that exists when there is nothing left to wait for.
    """
    if ranks.first:
        with locked_folder(folder, command):
            yield
        return
    wait_for(lambda: owner_of(folder).get("launch") == launch_name() or (finished is not None and finished.exists()))
    yield


def wait_for(ready: Callable[[], bool]) -> None:
    """Waits for another rank; if a rank fails, torchrun ends all of them."""
    while not ready():
        time.sleep(PAUSE)


def _locked(path: Path) -> int:
    """Opens and locks a file and returns its descriptor; BlockingIOError if another process has the lock."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:  # removed by its owner meanwhile
            pass
        except OSError as error:
            if error.errno in NO_LOCKS:
                print(
                    f"{path.parent}: the file system does not support locks ({error.strerror}); do not write to this "
                    "folder with two commands at a time"
                )
                return handle
            os.close(handle)
            raise
        os.close(handle)


def owner_of(folder) -> dict:
    """The content of the lock file of a folder; empty if there is none or it is being written."""
    try:
        found = json.loads((Path(folder) / LOCK).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files and folders (files.whole_file) of killed processes; only for the owner of the lock."""
    for left in folder.glob(".*.part"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
