"""Starting pretraining in several processes, as torchrun would, and with faults."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import fork_server
from fork_server import ForkedProcess
from safetensors.torch import load_file

SABOTAGE = Path(__file__).parent / "sabotage.py"


def python(*arguments, **options) -> subprocess.CompletedProcess:
    """`python -m ARGUMENTS` in a process of one thread, to its end. options: those of fork_server.start."""
    process = fork_server.start("-m", *arguments, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(count: int, *arguments, script=("-m", "pretrain.run"), **environment) -> list[ForkedProcess]:
    """`count` ranks of a command on this machine."""
    place = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": 1}
    return [
        fork_server.start(*script, *arguments, **place | {"RANK": n, "LOCAL_RANK": n} | environment)
        for n in range(count)
    ]


IN_ITS_FOLDER = """
import os, runpy, sys
module, folder = sys.argv.pop(1), sys.argv.pop(1)
os.chdir(f"{folder}{os.environ['RANK']}")
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run_ranks_apart(module: str, folder, *arguments) -> list[tuple[int, str, str]]:
    """Two ranks of a command, each in a directory of its own, FOLDER0 and FOLDER1: paths name other files for each."""
    return run_ranks(2, module, folder, *arguments, script=("-c", IN_ITS_FOLDER), PYTHONPATH=os.getcwd())


def finish(processes: list[ForkedProcess], timeout: float = 180) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of every process; what does not end in time is killed, and the test fails."""
    try:
        results = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *result) for process, result in zip(processes, results, strict=True)]


def run_ranks(count: int, *arguments, **options) -> list[tuple[int, str, str]]:
    return finish(start_ranks(count, *arguments, **options))


def torchrun(count: int, restarts: int, *arguments, **environment) -> subprocess.CompletedProcess:
    """A command that may be sabotaged (sabotage.py) under torchrun, which starts all ranks again when one dies."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, "--max-restarts", restarts]
    command = [sys.executable, *map(str, [*launcher, "--monitor-interval", 0.1, SABOTAGE, *arguments])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in environment.items()}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def lines_of(run, kind="train") -> list[dict]:
    """The lines of a kind in a run's log, without the times of validations, which differ from run to run."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in [name for name in line if name.endswith("validation_seconds")]:
            del line[name]
    return [line for line in lines if line.pop("kind") == kind]


def weights_of(run, step: int) -> dict:
    return load_file(Path(run) / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
