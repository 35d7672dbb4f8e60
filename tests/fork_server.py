"""Python processes that begin with torch and this repository imported, as forks of one process that imported them.

The imports take longer than what most tests do in a process. Otherwise the processes are like those of
`python -m MODULE`, `python SCRIPT` and `python -c CODE`, except that variables which the interpreter reads at its start
have no effect, other than PYTHONPATH.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import types
from pathlib import Path

# Commands whose imports the server does in advance, and libraries that these import, some when they need them.
COMMANDS = ("shards.world", "shards.extract", "pretrain.run", "finetune.st", "finetune.mt", "finetune.evaluate")
LIBRARIES = (
    *("torch._dynamo", "torch.distributed", "torch.utils.data", "transformers", "scipy.ndimage", "scipy.stats"),
    *("tensorboardX", "webdataset", "fire", "msgspec"),
)
LARGEST = 1 << 17  # bytes of a request, which has the command and its environment
NUMBER = struct.Struct("i")  # a process id or an exit status


class ForkedProcess:
    """A process that the server started, with the methods of subprocess.Popen that the tests use."""

    def __init__(self, out: int, err: int, status: int):
        """out, err, status: descriptors from which stdout, stderr, and the process id and exit status are read."""
        self._texts, self._status, self.returncode = {out: b"", err: b""}, status, None
        (self.pid,) = NUMBER.unpack(os.read(status, NUMBER.size))

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        if self.returncode is None and self._readable([self._status], 0):
            (self.returncode,) = NUMBER.unpack(os.read(self._status, NUMBER.size))
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """stdout and stderr, when this process and those that inherited them have ended."""
        until, unfinished = time.monotonic() + (timeout or 3600), list(self._texts)
        while unfinished or self.poll() is None:
            ready = self._readable(unfinished or [self._status], until - time.monotonic())
            if not ready:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            for descriptor in filter(unfinished.__contains__, ready):
                part = os.read(descriptor, 1 << 16)
                self._texts[descriptor] += part
                if not part:
                    os.close(descriptor)
                    unfinished.remove(descriptor)
        out, err = (text.decode() for text in self._texts.values())
        return out, err

    @staticmethod
    def _readable(descriptors: list[int], timeout: float) -> list[int]:
        with selectors.DefaultSelector() as selector:
            for descriptor in descriptors:
                selector.register(descriptor, selectors.EVENT_READ)
            return [key.fd for key, _ in selector.select(max(timeout, 0))]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(*command, cwd=None, libraries_only=False, **environment) -> ForkedProcess:
    """Starts `python *command` with one thread, where the command begins with -m, -c or the path of a script.

    Args:
        libraries_only: the process has not imported this repository; it may import a copy of it.
        environment: variables in addition to those of this process.
    """
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in environment.items()}
    request = {"command": list(map(str, command)), "environment": variables, "folder": str(cwd or os.getcwd())}
    begins, ends = zip(*(os.pipe() for _ in range(3)), strict=True)
    socket.send_fds(_server(libraries_only), [json.dumps(request).encode()], ends)
    for end in ends:
        os.close(end)
    return ForkedProcess(*begins)


@functools.cache
def _server(libraries_only: bool) -> socket.socket:
    """The connection to a server, which ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, str(theirs.fileno()), *(() if libraries_only else COMMANDS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdout=subprocess.DEVNULL)
    theirs.close()

    @atexit.register
    def end() -> None:
        ours.shutdown(socket.SHUT_RDWR)  # closing it is not enough if a process that was forked here has it too
        process.wait()

    return ours


def serve(requests: socket.socket) -> dict:
    """Forks a process for every request and returns the request in it. Exits when the connection is closed."""
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not requests:
                _report(*key.data)
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                continue
            request, descriptors, _, _ = socket.recv_fds(requests, LARGEST, 3)
            if not request:
                sys.exit()
            out, err, status = descriptors
            pid = os.fork()
            if not pid:
                for descriptor, number in ((out, 1), (err, 2)):
                    os.dup2(descriptor, number)
                inherited = [other.fd for other in selector.get_map().values() if other.fileobj is not requests]
                # The objects, not their descriptors: collected later, they would close others with the same numbers.
                selector.close()
                requests.close()
                for descriptor in (out, err, status, *inherited):
                    os.close(descriptor)
                return json.loads(request)
            os.write(status, NUMBER.pack(pid))
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
            os.close(out)
            os.close(err)


def _report(pid: int, status: int) -> None:
    """Sends the exit status of a process that has ended, unless nobody waits for it any more."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(status, NUMBER.pack(code))
    os.close(status)


def run(command: list[str], environment: dict[str, str], folder: str) -> None:
    """Does in this process what `python *command` would do."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if these tests run in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    kind, *arguments = command
    if kind == "-m":
        sys.path[0], sys.argv = folder, arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0], sys.argv = "", ["-c", *arguments[1:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(arguments[0], vars(sys.modules["__main__"]))
    else:
        sys.path[0], sys.argv = str(Path(kind).parent), command
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # not this folder, whose names hide those of the packages
    commands = sys.argv[2:]
    for name in (*commands, *LIBRARIES):
        importlib.import_module(name)
    for name in commands:
        del sys.modules[name]  # a command is run as the main module
    if commands:
        importlib.import_module("shards.common.process_pool").START_METHOD = "fork"  # as in the tests' own process
    gc.freeze()
    run(**serve(socket.socket(fileno=int(sys.argv[1]))))
