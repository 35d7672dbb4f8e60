"""Attention on packed rows: the plain torch version, and the Triton kernels under Triton's interpreter or on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ops import packed_cross_attention, packed_self_attention, short_attention
from ops.pure_torch import _mix
from ops.short_attention import kernel_available, short_attention_reference

ROOT = Path(__file__).parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPES = (torch.float32, torch.float16, torch.bfloat16)
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
GOLDEN, MULTIPLIER1, MULTIPLIER2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_kernels_in_the_interpreter")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a GPU")


def side(lengths, seed=0, spare=0, device="cpu"):
    """(starts, row keys, longest) of sequences with these lengths and `spare` rows behind them."""
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    keys = torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63, int(starts[-1]) + spare))
    return starts.to(device), keys.to(device), max([1, *lengths])


def rows(count, width, dtype=torch.float32, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator).to(device, dtype).requires_grad_()


def arguments(query_side, key_side, heads, site=3, p=0.1):
    return (query_side[0], key_side[0], query_side[1], key_side[1], heads, site, p, query_side[2], key_side[2])


def results(function, inputs, dtype=None):
    """Outputs and gradients of the inputs under fixed weights; dtype: of copies of the inputs to use instead."""
    if dtype is not None:
        inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [rows(*y.shape, torch.float32, 90 + n, y.device).detach().to(y.dtype) for n, y in enumerate(outputs)]
    gradients = torch.autograd.grad(outputs, inputs, weights)
    return [y.detach() for y in outputs] + list(gradients)


def compare(function, reference, inputs):
    """Outputs and gradients against the reference in float64; returns what was found."""
    found, expected = results(function, inputs), results(reference, inputs, torch.float64)
    bound = BOUNDS[inputs[0].dtype]
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == inputs[0].dtype and one.shape == other.shape
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        torch.testing.assert_close(
            one.double(), other, rtol=bound, atol=bound * scale, msg=lambda text, n=number: f"result {n}: {text}"
        )
    return found


@pytest.fixture(autouse=True, scope="module")
def interpreter_multiplies_bfloat16():
    """Triton 3.6's interpreter keeps bfloat16 as uint16 and multiplies matrices of these integers."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    def as_float(x):
        if x.dtype.scalar != interpreter.tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), interpreter.tl.float32)

    dot = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, as_float(a), as_float(b), *rest)
    yield
    interpreter.InterpreterBuilder.create_dot = dot


# Plain torch


def test_reference_equals_scaled_dot_product_attention():
    lengths = [5, 1, 7, 3]
    q_side, k_side = side(lengths, spare=2), side([2, 6, 1, 9])
    inputs = [rows(18, 24, torch.float64, 1), rows(18, 24, torch.float64, 2), rows(18, 24, torch.float64, 3)]
    out = short_attention_reference(*inputs, *arguments(q_side, k_side, 3, p=0.0))
    for b in range(4):
        q = inputs[0][q_side[0][b] : q_side[0][b + 1]].unflatten(1, (3, 8)).transpose(0, 1)
        k, v = (x[k_side[0][b] : k_side[0][b + 1]].unflatten(1, (3, 8)).transpose(0, 1) for x in inputs[1:])
        expected = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        torch.testing.assert_close(out[q_side[0][b] : q_side[0][b + 1]], expected)
    assert (out[16:] == 0).all()


def numpy_mix(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MULTIPLIER1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MULTIPLIER2)
    return x ^ (x >> np.uint64(31))


def numpy_kept(query_keys, key_keys, head, heads, site, p):
    """The definition in the module's docstring, in uint64."""
    add = np.uint64((site * heads + head + 1) * GOLDEN % 2**64)
    a = numpy_mix(query_keys.numpy().view(np.uint64) + add)
    return numpy_mix(a[:, None] + key_keys.numpy().view(np.uint64)) >> np.uint64(40) >= np.uint64(round(p * 2**24))


def dropped_probabilities(function, q_side, k_side, heads, site, p):
    """Zero queries give equal probabilities, and unit values return them: (n_q, heads, d) with d >= every n_k."""
    d = 64
    values = torch.zeros(len(k_side[1]), heads, d)
    for begin, end in zip(k_side[0][:-1].tolist(), k_side[0][1:].tolist(), strict=True):
        values[range(begin, end), :, range(end - begin)] = 1.0
    q, k = torch.zeros(len(q_side[1]), heads * d), torch.zeros(len(k_side[1]), heads * d)
    out = function(q, k, values.flatten(1), *arguments(q_side, k_side, heads, site, p))
    return out.unflatten(1, (heads, d))


def check_mask(function):
    heads, site, p = 3, 7, 0.3
    lengths = [(19, 33), (64, 64), (1, 5)]
    q_side, k_side = side([q for q, _ in lengths], 4), side([k for _, k in lengths], 5)
    found = dropped_probabilities(function, q_side, k_side, heads, site, p)
    share = 0.0
    for b, (_, n_k) in enumerate(lengths):
        q_keys, k_keys = (keys[starts[b] : starts[b + 1]] for starts, keys, _ in (q_side, k_side))
        for head in range(heads):
            kept = torch.from_numpy(numpy_kept(q_keys, k_keys, head, heads, site, p))
            expected = kept / n_k * (2**24 / (2**24 - round(p * 2**24)))
            torch.testing.assert_close(found[q_side[0][b] : q_side[0][b + 1], head, :n_k], expected)
            share += float(kept.sum())
    assert abs(share / (heads * sum(q * k for q, k in lengths)) - 0.7) < 0.02


def test_reference_drops_what_the_definition_says():
    check_mask(short_attention_reference)


def test_mix_is_the_one_of_hashing():
    from shards.common.counter_rng import mix

    keys = side([100])[1]
    assert torch.equal(_mix(keys), mix(keys))


def test_reference_of_empty_sequences_is_zero_and_has_gradients():
    q_side, k_side = side([0, 3, 2, 0], spare=1), side([2, 0, 4, 0], spare=2)
    inputs = [rows(6, 16, seed=1), rows(8, 16, seed=2), rows(8, 16, seed=3)]
    found = results(lambda *x: short_attention_reference(*x, *arguments(q_side, k_side, 2)), inputs)
    assert all(x.isfinite().all() for x in found)
    out, dq, dk, dv = found
    assert (out[:3] == 0).all() and (out[5:] == 0).all() and (out[3:5] != 0).all()
    assert (dq[:3] == 0).all() and (dk[:2] == 0).all() and (dv[:2] == 0).all() and (dk[6:] == 0).all()
    for shape in ((0, 8), (6, 0)):
        inputs = [rows(shape[0], 16), rows(shape[1], 16), rows(shape[1], 16)]
        empty = side([0, 0], spare=shape[0]), side([0, 0], spare=shape[1])
        found = results(lambda *x, empty=empty: short_attention_reference(*x, *arguments(*empty, 2)), inputs)
        assert all((x == 0).all() for x in found)


def test_reference_of_packed_projections_under_compile():
    q_side, k_side = side([5, 2, 9], 1), side([3, 8, 1], 2)
    inputs = [rows(16, 3 * 32, seed=1), rows(12, 3 * 32, seed=2)]

    def both(a, b):
        a_out, b_out = packed_cross_attention(a, b, *sides, 2, 4, 0.1, 0.2, 9, 8)
        return a_out * 2, b_out, packed_self_attention(a, q_side[0], q_side[1], 2, 6, 0.1, 9)

    sides = q_side[0], k_side[0], q_side[1], k_side[1]
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for one, other in zip(results(compiled, inputs), results(both, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query": torch.zeros(5, 33)}, "query should be floating point"),
        ({"key": torch.zeros(6, 32, dtype=torch.float16)}, "key should be torch.float32"),
        ({"value": torch.zeros(5, 32)}, "value should be"),
        ({"query_starts": torch.tensor([0, 5])}, "starts of query should be contiguous int32"),
        ({"key_starts": torch.tensor([0, 2, 6], dtype=torch.int32)}, "the same number of sequences"),
        ({"key_keys": torch.zeros(5, dtype=torch.int64)}, "row keys of key should be"),
        ({"max_query": 129}, "should be 1 to 128"),
        ({"max_query": 4}, "should have 0 to 4 rows"),
        ({"p": 1.0}, "p should be"),
    ],
)
def test_wrong_arguments_are_refused(change, words):
    starts = {"query_starts": torch.tensor([0, 5], dtype=torch.int32), "key_starts": torch.tensor([0, 6]).int()}
    keys = {"query_keys": torch.zeros(5, dtype=torch.int64), "key_keys": torch.zeros(6, dtype=torch.int64)}
    right = {"query": torch.zeros(5, 32), "key": torch.zeros(6, 32), "value": torch.zeros(6, 32), **starts, **keys}
    right |= {"heads": 2, "site": 0, "p": 0.1, "max_query": 5, "max_key": 6}
    assert short_attention(**right).shape == (5, 32)
    with pytest.raises(ValueError, match=words):
        short_attention(**(right | change))


def test_ops_imports_without_triton():
    code = "import sys; sys.modules['triton'] = None; import ops.short_attention"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# The kernels, in Triton's interpreter. TRITON_INTERPRET is read when triton is imported, so a process of its own.


def test_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    if INTERPRETED:
        pytest.skip("this is the process in the interpreter")
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "interpreted", __file__)
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def check_one(q_lengths, k_lengths, heads, d, dtype, p, device="cpu", spare=(3, 20)):
    q_side, k_side = side(q_lengths, 1, spare[0], device), side(k_lengths, 2, spare[1], device)
    n_q, n_k = len(q_side[1]), len(k_side[1])
    inputs = [rows(n, heads * d, dtype, seed, device) for seed, n in ((1, n_q), (2, n_k), (3, n_k))]
    for x in inputs:
        with torch.no_grad():  # rows behind the last sequence may hold anything
            x[int((q_side if x is inputs[0] else k_side)[0][-1]) :] = float("nan")
    call = arguments(q_side, k_side, heads, 5, p)
    assert kernel_available(inputs[0], heads)
    found = compare(lambda *x: short_attention(*x, *call), lambda *x: short_attention_reference(*x, *call), inputs)
    for x, s in zip(found, (q_side, q_side, k_side, k_side), strict=True):
        assert (x[int(s[0][-1]) :] == 0).all()


def check_self(lengths, heads, d, dtype, p, device="cpu", spare=2):
    starts, keys, longest = side(lengths, 1, spare, device)
    qkv = rows(len(keys), 3 * heads * d, dtype, 1, device)

    def reference(x):
        call = starts, starts, keys, keys, heads, 5, p, longest, longest
        return short_attention_reference(*x.chunk(3, -1), *call)

    found = compare(lambda x: packed_self_attention(x, starts, keys, heads, 5, p, longest), reference, [qkv])
    assert all((x[int(starts[-1]) :] == 0).all() for x in found)


def check_cross(a_lengths, b_lengths, heads, d, dtype, p, device="cpu", spare=(2, 1)):
    a, b = side(a_lengths, 1, spare[0], device), side(b_lengths, 2, spare[1], device)
    inputs = [rows(len(s[1]), 3 * heads * d, dtype, seed, device) for seed, s in enumerate((a, b))]

    def both(x, y):
        return packed_cross_attention(x, y, a[0], b[0], a[1], b[1], heads, 5, p, p / 2, a[2], b[2])

    def reference(x, y):
        (q1, k1, v1), (q2, k2, v2) = x.chunk(3, -1), y.chunk(3, -1)
        first = short_attention_reference(q1, k2, v2, *arguments(a, b, heads, 5, p))
        return first, short_attention_reference(q2, k1, v1, *arguments(b, a, heads, 6, p / 2))

    found = compare(both, reference, inputs)
    assert all((x[int(s[0][-1]) :] == 0).all() for x, s in zip(found, (a, b, a, b), strict=True))


EDGES = [0, 1, 16, 17, 37, 0]
TURNED = [5, 0, 17, 16, 1, 0]


@needs_interpreter
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", TYPES)
def test_interpreted_types(dtype, p):
    check_one(EDGES, TURNED, 2, 32, dtype, p)
    check_one(TURNED, EDGES, 2, 32, dtype, p)


@needs_interpreter
@pytest.mark.parametrize("d", [16, 64, 128])
def test_interpreted_head_sizes(d):
    check_one([3, 20], [18, 7], 1, d, torch.bfloat16, 0.1)
    check_self([3, 20], 2, d, torch.float32, 0.1)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interpreted_longest(dtype):
    check_one([128, 5], [37, 128], 1, 16, dtype, 0.1)
    check_self([128, 101, 1], 1, 16, dtype, 0.1)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interpreted_packed(dtype):
    check_self([1, 16, 36, 0, 17], 3, 16, dtype, 0.1)
    check_cross([37, 37, 0, 20], [5, 16, 9, 36], 2, 32, dtype, 0.1)
    check_cross([5, 16, 9, 36], [37, 37, 0, 20], 2, 32, dtype, 0.1)


@needs_interpreter
def test_interpreted_mask():
    check_mask(short_attention)


@needs_interpreter
def test_interpreted_nothing_at_all():
    check_one([0, 0], [3, 2], 2, 16, torch.float32, 0.1, spare=(0, 0))
    check_one([3, 2], [0, 0], 2, 16, torch.float32, 0.1, spare=(0, 0))
    starts, keys, _ = side([], spare=4)
    assert (packed_self_attention(rows(4, 96), starts, keys, 2, 0, 0.1, 8) == 0).all()


@needs_interpreter
def test_interpreted_strided_views():
    starts, keys, longest = side([4, 17])
    wide = rows(21, 200)
    q, k, v = wide[:, 1:33], wide[:, 40:72], wide.t().contiguous().t()[:, 80:112]  # v: its columns lie apart
    call = starts, starts, keys, keys, 2, 1, 0.1, longest, longest
    found = short_attention(q, k, v, *call)
    torch.testing.assert_close(found, short_attention_reference(q, k, v, *call), rtol=1e-5, atol=1e-5)
    (one,) = torch.autograd.grad(found.sum(), wide)  # an expanded gradient
    (other,) = torch.autograd.grad(short_attention_reference(q, k, v, *call).sum(), wide)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def check_permutation(device="cpu", heads=2, d=32, lengths=(5, 37, 16, 1, 30), dtype=torch.bfloat16):
    """Another order of the sequences, or another capacity, gives the same numbers, bit for bit."""
    starts, keys, longest = side(lengths, 1, 0, device)
    qkv = rows(len(keys), 3 * heads * d, dtype, 1, device)
    order = np.random.default_rng(3).permutation(len(lengths))
    index = torch.cat([torch.arange(starts[b], starts[b + 1]) for b in order]).to(device)
    turned = side([lengths[b] for b in order], device=device)[0]
    spare = torch.zeros(7, dtype=torch.int64, device=device)

    def plain(x):
        return packed_self_attention(x, starts, keys, heads, 5, 0.1, longest)[index]

    def permuted(x):
        x = torch.cat([x[index], x[:7]])
        out = packed_self_attention(x, turned, torch.cat([keys[index], spare]), heads, 5, 0.1, longest)
        assert (out[len(index) :] == 0).all()
        return out[: len(index)]

    for one, other in zip(results(plain, [qkv]), results(permuted, [qkv]), strict=True):
        assert torch.equal(one, other)


@needs_interpreter
def test_interpreted_batch_composition_does_not_matter():
    check_permutation()


@needs_interpreter
def test_interpreted_opcheck():
    starts, keys, longest = side([3, 5])
    operator = torch.ops.twelve_in_one
    x, y = rows(8, 48, seed=1), rows(8, 48, seed=2)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        operator.packed_self_attention.default, (x, starts, keys, 1, 2, 0.1, longest), test_utils=checks
    )
    call = starts, starts, keys, keys, 1, 2, 0.1, 0.2, longest, longest
    torch.library.opcheck(operator.packed_cross_attention.default, (x, y, *call), test_utils=checks)
    inputs = [rows(8, 16, seed=seed) for seed in range(3)]
    call = starts, starts, keys, keys, 1, 2, 0.1, longest, longest
    torch.library.opcheck(operator.short_attention.default, (*inputs, *call), test_utils=checks)


# On a GPU


@needs_gpu
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("d", [16, 32, 64, 128])
def test_gpu_kernels_equal_the_reference(d, dtype, p):
    edges = [0, 1, 16, 17, 37, 32, 33, 64, 128, 101]
    for longest in (16, 32, 64, 128):
        lengths = [n for n in edges if n <= longest]
        check_one(lengths, lengths[::-1], 3, d, dtype, p, "cuda", spare=(40, 700))
        check_self(lengths, 3, d, dtype, p, "cuda", spare=100)
    check_cross([37] * 9, [5, 16, 17, 36, 12, 32, 33, 8, 0], 3, d, dtype, p, "cuda")
    check_cross([20, 56, 33, 1], [101, 101, 70, 0], 3, d, dtype, p, "cuda")


@needs_gpu
@pytest.mark.parametrize("heads, d, images, text", [(8, 128, 37, 36), (12, 64, 37, 36), (8, 128, 101, 56)])
def test_gpu_kernels_equal_the_reference_at_real_sizes(heads, d, images, text):
    lengths = np.random.default_rng(0).integers(5, text + 1, 128).tolist()
    check_self([images] * 128, heads, d, torch.bfloat16, 0.1, "cuda")
    check_self(lengths, heads, d, torch.bfloat16, 0.1, "cuda", spare=300)
    check_cross([images] * 128, lengths, heads, d, torch.bfloat16, 0.1, "cuda", spare=(0, 300))


@needs_gpu
def test_gpu_mask_is_that_of_the_cpu():
    def on_gpu(*inputs):
        return short_attention(*(x.cuda() if isinstance(x, torch.Tensor) else x for x in inputs)).cpu()

    check_mask(on_gpu)


@needs_gpu
def test_gpu_results_are_deterministic_whatever_the_batch():
    lengths = np.random.default_rng(0).integers(0, 37, 300).tolist()
    check_permutation("cuda", 8, 128, lengths)
    check_permutation("cuda", 12, 64, lengths)


@needs_gpu
def test_gpu_compiled_and_in_a_cuda_graph():
    starts, keys, longest = side([37] * 8, device="cuda")
    qkv = rows(len(keys), 3 * 256, torch.bfloat16, 1, "cuda")

    def attention(x):
        return packed_self_attention(x * 1.0, starts, keys, 4, 5, 0.1, longest) * 2

    expected = results(attention, [qkv])
    for one, other in zip(results(torch.compile(attention, fullgraph=True), [qkv]), expected, strict=True):
        torch.testing.assert_close(one, other)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = attention(qkv)
    graph.replay()
    assert torch.equal(out, expected[0])
