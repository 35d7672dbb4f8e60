"""What all stages share: the device, timing, and the record that they write."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if ON_GPU else "cpu")
BATCH_SIZE = 512 if ON_GPU else 6


def wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def timed(function: Callable, repeats: int = 10, warmup: int = 3) -> tuple[float, float]:
    """Seconds per call, and the host's part of them: the median of three rounds of `repeats` calls.

    The device is waited for at the end of a round only, so that calls overlap as they do in training.
    """
    repeats, warmup = (repeats, warmup) if ON_GPU else (1, 1)
    for _ in range(warmup):
        function()
    wait()
    rounds = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        host = time.perf_counter() - began
        wait()
        rounds.append(((time.perf_counter() - began) / repeats, host / repeats))
    return sorted(rounds)[1]


def matrix_rate() -> float:
    """FLOP/s of one large dense bf16 matrix product on random numbers."""
    size = 8192 if ON_GPU else 256
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b)[0]


def copy_rate() -> float:
    """Bytes per second, read and written, of a copy on the device that exceeds the caches."""
    source = torch.empty(1 << (30 if ON_GPU else 20), device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / timed(lambda: target.copy_(source))[0]


@dataclass
class Record:
    """Appends results to a file of JSON lines, each with the device, torch and the commit."""

    path: Path
    stage: str = ""

    def add(self, **values) -> None:
        device = torch.cuda.get_device_name() if ON_GPU else "cpu (dry run)"
        told = {"stage": self.stage, "device": device, "torch": torch.__version__, "commit": commit()}
        line = json.dumps(told | values)
        print(line, flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def commit() -> str:
    """The commit of the tree; from the file COMMIT if the tree is a copy without git."""
    named = os.environ.get("COMMIT")
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return named or subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"
