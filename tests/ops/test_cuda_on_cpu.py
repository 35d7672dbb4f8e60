"""The CUDA kernels without a GPU: run by threads of the CPU under the thread sanitizer, and compiled by nvcc."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from box_cases import random_case

import ops

SOURCES = Path(__file__).parents[2] / "ops" / "csrc"
EMULATION = Path(__file__).parent / "cuda_on_cpu"
KERNELS = ("overlap_cuda.cu", "regions_cuda.cu")
TYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of Number in number.h

LAUNCH = re.compile(r"(\w+(?:<[\w, ]+>)?)<<<([^,]+), ([^,]+), 0, (.+?)>>>\((.*?)\);", re.DOTALL)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Calls a kernel with tensors and gives the bytes of its result."""
    if not shutil.which("g++"):
        pytest.skip("no g++ here")
    folder = tmp_path_factory.mktemp("emulated")
    for name in KERNELS:
        text, launches = LAUNCH.subn(r"emulate(\2, \3, [&] { \1(\5); });", (SOURCES / name).read_text())
        assert launches >= 1
        (folder / name.replace(".cu", ".cpp")).write_text(text)
    flags = ["-std=c++20", "-O1", "-g", "-ffp-contract=off", "-fsanitize=thread", "-Wno-unknown-pragmas", "-pthread"]
    sources = [EMULATION / "main.cpp", *folder.glob("*.cpp")]
    build = ["g++", *flags, f"-I{EMULATION}", f"-I{SOURCES}", *sources, "-o", folder / "kernels"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def call(name, *numbers, tensors, dtype):
        data = b"".join(bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()) for tensor in tensors)
        done = subprocess.run([folder / "kernels", name, *map(str, numbers)], input=data, capture_output=True)
        assert done.returncode == 0 and done.stderr == b"", done.stderr.decode()
        return torch.frombuffer(bytearray(done.stdout), dtype=dtype)

    return call


@pytest.mark.parametrize(("batch", "n"), [(9, 36), (5, 100), (2, 300), (3, 1)])
def test_the_overlap_kernel_gives_the_bits_of_the_cpu(emulated, batch, n):
    boxes, seeds, valid = random_case(batch, n)
    found = emulated("overlap", batch, n, 0.4, tensors=(boxes, seeds, valid), dtype=torch.bool).view(batch, n)
    assert torch.equal(found, ops.mask_overlapping(boxes, seeds, valid))


@pytest.mark.parametrize("to", TYPES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("size", [24, 7], ids=["whole packs", "single numbers"])
def test_the_regions_kernel_gives_the_bits_of_the_cpu(emulated, size, kind, to):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 13, size, generator=generator).to(kind)
    visible = torch.rand(5, 13, generator=generator) < 0.7
    visible[2] = False
    numbers = (5, 13, size, TYPES.index(kind), TYPES.index(to))
    found = emulated("regions", *numbers, tensors=(features, visible), dtype=to).view(5, 14, size)
    assert torch.equal(found, ops.mask_regions(features, visible, to))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_without_torch(tmp_path, name, architecture):
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc here")
    command = ["nvcc", "-cubin", "-O3", "-fmad=false", f"-arch={architecture}", "-o", tmp_path / "kernel.cubin"]
    done = subprocess.run([*command, SOURCES / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernel.cubin").stat().st_size > 1000
