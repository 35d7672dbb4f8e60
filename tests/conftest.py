"""What many tests share: the parity files, the real data where it is, and small data sets made on the spot."""

import contextlib
import fcntl
import functools
import http.server
import os
import signal
import sys
import threading
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; no test may wait for the network

import hypothesis
import pytest
import torch
from data_sets import make_dataset
from launching import python
from safetensors.torch import load_file

from shards.common import process_pool
from shards.storage.stream import RETRY_AFTER

PARITY = Path(__file__).parent / "parity"
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"

torch.set_num_threads(1)
hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one takes longer than the 200 ms
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser):
    parser.addoption("--seeds", type=int, default=50, help="mutations per format in tests/fuzz, slow")


@pytest.fixture(scope="session")
def parity():
    """The published implementation's inputs, outputs and weights on small random models."""
    return {path.stem: load_file(path) for path in PARITY.glob("*.safetensors")}


@pytest.fixture(scope="session")
def real_data():
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real data is not there ({REAL_DATA})")
    return REAL_DATA


WORLD = ("--pairs", "60", "--examples", "80", "--evaluation", "20", "--one_in", "100000")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(NAME, MODULE, *FLAGS): the folder that a command makes, once for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    place = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, module: str, *flags) -> Path:
        folder, complete = place / name, place / f"{name}.complete"
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not complete.exists():
                done = python(module, *flags, "--out", folder)
                assert done.returncode == 0, done.stderr
                complete.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def world(made_once):
    """A small world. Tests only read it, except for DATA/prepared."""
    return made_once("world", "shards.world", *WORLD)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Streams that break off are tried again as often, but sooner."""
    monkeypatch.setattr("shards.storage.stream.RETRY_AFTER", (0.01,) * len(RETRY_AFTER))


@pytest.fixture(scope="session", autouse=True)
def forked_workers():
    """Pools fork their workers, because importing what they need takes longer than most tasks of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_pool, "START_METHOD", "fork")
        yield


@pytest.fixture
def spawned_workers(monkeypatch):
    """Pools start their workers as they do outside of the tests: what these need must be picklable and importable."""
    monkeypatch.setattr(process_pool, "START_METHOD", "spawn")


@pytest.fixture
def dataset_folder(tmp_path):
    folder = tmp_path / "data"
    make_dataset(folder, (60, 37))
    return folder


@pytest.fixture
def run_command(monkeypatch, capfd):
    """Calls a command's main as `python -m NAME ARGS` would, in this process: (status, stdout, stderr)."""
    import runpy

    def call(name: str, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        imported = sys.modules.pop(name, None)  # runpy warns of a module that is there already
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        if imported:  # whose functions others hold, and send to processes by name
            sys.modules[name] = imported
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return call


@pytest.fixture
def ending(monkeypatch):
    """Ends training in this process; steps count from 0.

    `with ending(before=N):` as a kill would, in place of step N: nothing is saved. `with ending(after=N):` by Ctrl-C.
    """
    from pretrain.engine.step import Engine

    @contextlib.contextmanager
    def patched(before: int | None = None, after: int | None = None):
        def step(engine, number, *rest):
            if number == before:
                raise KeyboardInterrupt
            plain(engine, number, *rest)
            if number == after:
                os.kill(os.getpid(), signal.SIGINT)

        plain = Engine.step
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "step", step)
            yield

    return patched


@pytest.fixture
def http_folder():
    """Serves folders on this machine: http_folder(PATH) -> address."""
    servers = []

    def serve(folder) -> str:
        handler = functools.partial(QuietHandler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
