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
KERNELS = ("overlap_cuda.cu", "regions_cuda.cu", "dropout_cuda.cu", "layer_norm_cuda.cu")
TYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of Number in number.h
ALL_TYPES = (*TYPES, torch.float64)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


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
    flags = ["-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-fsanitize=thread", "-Wno-unknown-pragmas", "-pthread"]
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


@pytest.mark.parametrize(("batch", "n"), [(9, 36), slow(5, 100), slow(2, 300), (3, 1)])
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


def random_keys(*shape):
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ALL_TYPES)
@pytest.mark.parametrize(("n", "h"), [(9, 48), (5, 7), (2, 1030), (300, 1)])
def test_the_dropout_kernel_gives_the_bits_of_the_cpu(emulated, n, h, kind):
    x, keys = torch.randn(n, h).to(kind), random_keys(n)
    found = emulated("dropout", n, h, ALL_TYPES.index(kind), 3, 0.3, tensors=(x, keys), dtype=kind).view(n, h)
    assert torch.equal(found, ops.dropout(x, keys, 3, 0.3))


@pytest.mark.parametrize("kind", ALL_TYPES)
@pytest.mark.parametrize(("queries", "keys"), [(5, 24), (3, 37), (1, 1)])
def test_the_attention_dropout_kernel_gives_the_bits_of_the_cpu(emulated, queries, keys, kind):
    shape = 3, 4, queries, keys
    probs, query_keys, key_keys = torch.rand(shape).to(kind), random_keys(3, queries), random_keys(3, keys)
    numbers = (*shape, ALL_TYPES.index(kind), 2, 0.3)
    found = emulated("attention", *numbers, tensors=(probs, query_keys, key_keys), dtype=kind).view(shape)
    assert torch.equal(found, ops.attention_dropout(probs, query_keys, key_keys, 2, 0.3))


FLOAT, HALF, BFLOAT, DOUBLE = ALL_TYPES


@pytest.mark.parametrize(
    ("n", "h", "x", "residual", "out", "p"),
    [
        slow(37, 128, BFLOAT, BFLOAT, BFLOAT, 0.1),  # one warp for a row in backward
        (37, 256, FLOAT, FLOAT, FLOAT, 0.1),
        (21, 264, HALF, HALF, HALF, 0.5),  # three warps
        slow(21, 768, BFLOAT, FLOAT, BFLOAT, 0.1),
        (21, 772, FLOAT, FLOAT, BFLOAT, 0.1),  # four warps
        slow(21, 1024, BFLOAT, BFLOAT, FLOAT, 0.1),
        slow(21, 768, FLOAT, None, FLOAT, 0.1),
        (21, 768, BFLOAT, BFLOAT, BFLOAT, 0.0),
        slow(1, 1024, HALF, FLOAT, HALF, 0.1),
        (20, 7, FLOAT, FLOAT, FLOAT, 0.1),  # kernels of any width
        slow(20, 1030, BFLOAT, FLOAT, BFLOAT, 0.1),
        slow(20, 64, FLOAT, BFLOAT, HALF, 0.1),
        slow(20, 64, DOUBLE, DOUBLE, DOUBLE, 0.1),
        (20, 64, DOUBLE, None, DOUBLE, 0.0),
    ],
)
def test_the_layer_norm_kernels_agree_with_the_cpu(emulated, n, h, x, residual, out, p):
    generator = torch.Generator().manual_seed(0)
    statistics = DOUBLE if x == DOUBLE else FLOAT
    values, gradient = (torch.randn(n, h, generator=generator).to(kind) for kind in (x, out))
    added = torch.randn(n, h, generator=generator).to(residual or x)
    weight, bias = (torch.randn(h, generator=generator).to(statistics) for _ in range(2))
    keys = random_keys(n)
    kinds = [ALL_TYPES.index(kind) for kind in (x, added.dtype, out)]
    numbers = (n, h, *kinds, int(residual is not None), 5, p)
    tensors = (values, added, weight, bias, keys, gradient)
    found = emulated("layer_norm", *numbers, tensors=tensors, dtype=torch.uint8)

    operators = torch.ops.twelve_in_one
    given = added if residual else None
    forward = operators.dropout_add_layer_norm(values, given, weight, bias, keys, 5, p, 1e-12, out)
    slopes = operators.dropout_add_layer_norm_backward(gradient, values, given, weight, keys, *forward[1:], 5, p)
    if residual is None:
        slopes = slopes[0], torch.zeros_like(added), *slopes[2:]
    rounding = {FLOAT: 1e-5, HALF: 2e-3, BFLOAT: 1.6e-2, DOUBLE: 1e-12}
    parts = split_bytes(found, *forward, *slopes)
    assert torch.equal(parts[3] == 0, slopes[0] == 0)  # the mask
    for expected, part in zip((*forward, *slopes), parts, strict=True):
        error = rounding[expected.dtype]
        torch.testing.assert_close(part, expected, rtol=error, atol=error if expected.dtype == DOUBLE else 1e-4)


def split_bytes(data, *like):
    """Tensors of these types and shapes, one after another in `data`."""
    parts = data.split([tensor.nbytes for tensor in like])
    return [part.clone().view(tensor.dtype).view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


@pytest.mark.parametrize("architecture", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "norm" in name else name for name in KERNELS]
)
def test_a_kernel_compiles_without_torch(tmp_path, name, architecture):
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc here")
    command = ["nvcc", "-cubin", "-O3", "-fmad=false", f"-arch={architecture}", "-o", tmp_path / "kernel.cubin"]
    done = subprocess.run([*command, SOURCES / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernel.cubin").stat().st_size > 1000
