"""Memory that a training process on a CPU holds without using it."""

import os
import subprocess
import sys

import pytest
import torch

from pretrain.engine import cpu_memory
from pretrain.engine.cpu_memory import CACHE_CAPACITY, RELEASE_EVERY, CpuMemory

CPU = torch.device("cpu")
# Products of 600 shapes in bf16, as of packed batches; prints the growth of the resident memory in bytes.
SHAPES = """
import os, sys
import torch
from pretrain.engine.cpu_memory import CpuMemory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.set_num_threads(1)
memory = CpuMemory(torch.device("cpu")) if sys.argv[1] == "bounded" else None
layer, before = torch.nn.Linear(384, 1536), resident()
for step in range(1, 601):
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(400 + step, 384)).sum().backward()
    if memory:
        memory.after_step(step)
print(resident() - before)
"""


def test_the_capacity_given_by_the_user_is_kept(monkeypatch):
    monkeypatch.delenv(CACHE_CAPACITY, raising=False)
    CpuMemory(torch.device("cuda"))
    assert CACHE_CAPACITY not in os.environ
    CpuMemory(CPU)
    assert os.environ[CACHE_CAPACITY] == str(cpu_memory.CACHED)
    monkeypatch.setenv(CACHE_CAPACITY, "7")
    CpuMemory(CPU)
    assert os.environ[CACHE_CAPACITY] == "7"


def test_memory_is_released_at_times_and_only_where_the_library_can(monkeypatch):
    calls = []
    memory = CpuMemory(CPU)
    monkeypatch.setattr(memory, "_trim", calls.append)
    for done in range(1, 2 * RELEASE_EVERY + 2):
        memory.after_step(done)
    assert calls == [0, 0]
    monkeypatch.setattr(cpu_memory.ctypes, "CDLL", lambda name: object())  # musl, macOS
    CpuMemory(CPU).after_step(RELEASE_EVERY)


@pytest.mark.slow
@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bf16 products")
def test_products_of_many_shapes_hold_less_than_half_of_the_memory():
    held = {}
    for kind in ("bounded", "as it is"):
        environment = {name: value for name, value in os.environ.items() if name != CACHE_CAPACITY}
        run = subprocess.run(
            [sys.executable, "-c", SHAPES, kind], capture_output=True, text=True, check=True, env=environment
        )
        held[kind] = int(run.stdout)
    assert held["bounded"] < held["as it is"] / 2, held
