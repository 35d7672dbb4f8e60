"""dropout_add_layer_norm, compiled and pure, against torch's own operations and autograd, in values and gradients."""

import pytest
import torch
from dropout_cases import ROUNDING, TYPES, kept_columns, normal, random_keys, slow_layer_norm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import ops
from ops import pure_torch

WIDTHS = (1, 2, 3, 7, 16, 17, 128, 130, 256, 768, 1024, 1030)
HALVES = (torch.float32, torch.float16, torch.bfloat16)
OPERATORS = torch.ops.twelve_in_one


def pure_layer_norm(x, residual, weight, bias, keys, site, p, eps, dtype):
    """The pure version with its own backward, as the registered operator has it."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, residual, weight, bias):
            out, *statistics = pure_torch.dropout_add_layer_norm(x, residual, weight, bias, keys, site, p, eps, dtype)
            ctx.saved = x, residual, weight, keys, *statistics
            return out

        @staticmethod
        def backward(ctx, gradient):
            dx, dresidual, *rest = pure_torch.dropout_add_layer_norm_backward(gradient, *ctx.saved, site, p)
            return dx, None if ctx.saved[1] is None else dresidual, *rest

    return Function.apply(x, residual, weight, bias)


implementations = pytest.mark.parametrize(
    "layer_norm", [ops.dropout_add_layer_norm, pure_layer_norm], ids=["as installed", "pure torch"]
)


def case(n, h, x=torch.float32, residual=torch.float32, seed=0):
    """x, residual, weight and bias that require gradients, and keys."""
    parameter = torch.float64 if x == torch.float64 else torch.float32
    tensors = [
        normal(n, h, dtype=x, seed=seed),
        None if residual is None else normal(n, h, dtype=residual, seed=seed + 1),
        normal(h, dtype=parameter, seed=seed + 2),
        normal(h, dtype=parameter, seed=seed + 3),
    ]
    return [t if t is None else t.requires_grad_() for t in tensors], random_keys(n, seed=seed)


def assert_agree(layer_norm, inputs, keys, site, p, dtype, eps=1e-5, scale=1.0):
    """Output and gradients against the slow version's in float64."""
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    expected = slow_layer_norm(*exact, keys, site, p, eps, torch.float64)
    found = layer_norm(*inputs, keys, site, p, eps, dtype)
    assert found.dtype == dtype and found.shape == inputs[0].shape
    error = scale * ROUNDING[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)
    weights = normal(*found.shape, dtype=dtype, seed=9)
    given = [t for t in inputs if t is not None]
    slopes = torch.autograd.grad(expected, [t for t in exact if t is not None], weights.double())
    for t, a, b in zip(given, torch.autograd.grad(found, given, weights), slopes, strict=True):
        assert a.dtype == t.dtype
        error = scale * ROUNDING[t.dtype] * max(1.0, b.abs().max().item() if b.numel() else 1.0)
        torch.testing.assert_close(a.double(), b, rtol=scale * ROUNDING[t.dtype], atol=error)


@implementations
@pytest.mark.parametrize("h", WIDTHS[1:])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_torch(layer_norm, h, p, dtype):
    inputs, keys = case(37, h, dtype, dtype)
    scale = 10 if h < 4 and dtype == torch.float32 else 1  # two values of one row can be almost equal
    assert_agree(layer_norm, inputs, keys, 3, p, dtype, scale=scale)


@implementations
def test_one_column(layer_norm):
    """Its own mean: the output is the bias, to the rounding of a mean that is exact here."""
    (x, residual, weight, bias), keys = case(5, 1)
    out = layer_norm(x, residual, weight, bias, keys, 0, 0.1, 1e-5, torch.float32)
    assert torch.equal(out, bias.detach().expand(5, 1))


@implementations
@pytest.mark.parametrize("x", HALVES)
@pytest.mark.parametrize("residual", [*HALVES, None])
@pytest.mark.parametrize("to", HALVES)
def test_every_combination_of_types(layer_norm, x, residual, to):
    inputs, keys = case(20, 48, x, residual)
    assert_agree(layer_norm, inputs, keys, 1, 0.2, to)


@pytest.mark.parametrize("x", TYPES)
@pytest.mark.parametrize("residual", [True, False])
@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), h=st.integers(1, 70), p=st.sampled_from([0.0, 0.1, 0.7]), seed=st.integers(0, 99))
def test_compiled_and_pure_agree(x, residual, n, h, p, seed):
    """The same mask and sum, so values differ by the order of a row's additions alone."""
    inputs, keys = case(n, h, x, x if residual else None, seed)
    eps = 0.1  # rows of few columns have variances near zero
    found = OPERATORS.dropout_add_layer_norm(*inputs, keys, 2, p, eps, x)
    expected = pure_torch.dropout_add_layer_norm(*inputs, keys, 2, p, eps, x)
    weights = normal(n, h, dtype=x, seed=seed)
    given, weight, _ = inputs[:2], *inputs[2:]
    slopes = [
        backward(weights, *given, weight, keys, *expected[1:], 2, p)
        for backward in (OPERATORS.dropout_add_layer_norm_backward, pure_torch.dropout_add_layer_norm_backward)
    ]
    for a, b in zip((*found, *slopes[0]), (*expected, *slopes[1]), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        error = ROUNDING[a.dtype]
        torch.testing.assert_close(a, b, rtol=error, atol=10 * error)


def test_rows_of_a_constant_have_no_large_gradient():
    x = torch.full((3, 64), 5.0, requires_grad=True)
    out = ops.dropout_add_layer_norm(x, None, torch.ones(64), torch.zeros(64), None, 0, 0.0, 1e-12, torch.float32)
    assert torch.equal(out, torch.zeros(3, 64))


def test_large_means_do_not_cost_the_variance():
    """Two passes over the row: one pass of sums and squares would lose all digits here."""
    x = normal(4, 768) + 1e4
    found = ops.dropout_add_layer_norm(x, None, torch.ones(768), torch.zeros(768), None, 0, 0.0, 1e-12, torch.float32)
    expected = torch.nn.functional.layer_norm(x.double(), (768,))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-3)


def test_the_mask_is_that_of_dropout():
    (x, residual, weight, bias), keys = case(30, 64)
    found = ops.dropout_add_layer_norm(x, residual, weight, bias, keys, 4, 0.3, 1e-5, torch.float32)
    dropped = ops.dropout(x, keys, 4, 0.3)
    expected = ops.dropout_add_layer_norm(dropped, residual, weight, bias, None, 0, 0.0, 1e-5, torch.float32)
    assert torch.equal(found, expected)
    (dx,) = torch.autograd.grad(found.square().sum(), x)
    assert torch.equal(dx != 0, kept_columns(keys, 4, 64, 0.3))


def test_a_row_has_the_same_output_in_any_batch():
    (x, residual, weight, bias), keys = case(40, 96)
    arguments = weight, bias
    rest = 2, 0.3, 1e-5, torch.float32
    whole = ops.dropout_add_layer_norm(x, residual, *arguments, keys, *rest)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    found = ops.dropout_add_layer_norm(x[order], residual[order], *arguments, keys[order], *rest)
    assert torch.equal(found, whole[order])
    found = ops.dropout_add_layer_norm(x[5:9], residual[5:9], *arguments, keys[5:9], *rest)
    assert torch.equal(found, whole[5:9])


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same_gradients(threads):
    inputs, keys = case(3001, 130)

    def run():
        out = ops.dropout_add_layer_norm(*inputs, keys, 1, 0.1, 1e-5, torch.float32)
        return out, *torch.autograd.grad(out, inputs, normal(3001, 130, seed=9))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run()
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_gradients_do_not_share_memory():
    inputs, _ = case(4, 8)
    out, mean, rstd = OPERATORS.dropout_add_layer_norm(*inputs, None, 0, 0.0, 1e-5, torch.float32)
    slopes = OPERATORS.dropout_add_layer_norm_backward(out.detach(), *inputs[:3], None, mean, rstd, 0, 0.0)
    assert torch.equal(slopes[0], slopes[1])
    assert len({slope.untyped_storage().data_ptr() for slope in slopes}) == 4


def test_only_statistics_of_the_rows_are_saved():
    inputs, keys = case(4, 8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.dropout_add_layer_norm(*inputs, keys, 0, 0.1, 1e-5, torch.float32)
    known = {t.data_ptr() for t in (*inputs, keys)}
    assert [t.shape for t in saved if t.data_ptr() not in known] == [(4,), (4,)]


def test_inputs_need_not_be_contiguous():
    (x, residual, weight, bias), keys = case(20, 32)
    arguments = keys, 1, 0.4, 1e-5, torch.float32
    expected = ops.dropout_add_layer_norm(x, residual, weight, bias, *arguments)
    turned = [t.detach().t().contiguous().t().requires_grad_() for t in (x, residual)]
    strided = torch.stack([weight.detach(), bias.detach()], 1)
    found = ops.dropout_add_layer_norm(*turned, strided[:, 0], strided[:, 1], *arguments)
    assert torch.equal(found, expected)
    a = torch.autograd.grad(found.sum(), turned)  # the gradient of a sum has strides of zero
    b = torch.autograd.grad(expected.sum(), (x, residual))
    assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


@pytest.mark.parametrize("residual", [torch.float64, None])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradcheck(residual, p):
    inputs, keys = case(4, 6, torch.float64, residual)
    given = [t for t in inputs if t is not None]

    def run(*given):
        x, *added, weight, bias = given
        return ops.dropout_add_layer_norm(x, *(added or [None]), weight, bias, keys, 1, p, 1e-5, torch.float64)

    assert torch.autograd.gradcheck(run, given)


@pytest.mark.parametrize("x", TYPES)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("residual", [True, False])
def test_opcheck(x, p, residual):
    inputs, keys = case(3, 5, x, x if residual else None)
    keys = keys if p else None
    torch.library.opcheck(OPERATORS.dropout_add_layer_norm.default, (*inputs, keys, 2, p, 1e-5, x))
    plain = [None if t is None else t.detach() for t in inputs]
    out, mean, rstd = OPERATORS.dropout_add_layer_norm(*plain, keys, 2, p, 1e-5, x)
    torch.library.opcheck(OPERATORS.dropout_add_layer_norm_backward.default, (out, *plain[:3], keys, mean, rstd, 2, p))


def test_under_compile_without_a_graph_break():
    inputs, keys = case(6, 20)

    def block(x, residual, weight, bias, keys):
        out = ops.dropout_add_layer_norm(torch.sin(x), residual, weight, bias, keys, 3, 0.3, 1e-5, torch.float32)
        return ops.dropout_add_layer_norm(out, out, weight, bias, keys, 4, 0.3, 1e-5, torch.float32).sum(1)

    expected, found = block(*inputs, keys), torch.compile(block, fullgraph=True, backend="aot_eager")(*inputs, keys)
    assert torch.equal(found, expected)
    pairs = (torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b)


def test_activation_checkpointing_gives_the_same_gradients():
    inputs, keys = case(6, 20)

    def block(*inputs):
        return ops.dropout_add_layer_norm(*inputs, keys, 3, 0.4, 1e-5, torch.float32).square()

    expected = torch.autograd.grad(block(*inputs).sum(), inputs)
    found = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(found.sum(), inputs), expected, strict=True))


def test_a_second_derivative_is_refused():
    inputs, keys = case(3, 5)
    out = ops.dropout_add_layer_norm(*inputs, keys, 0, 0.1, 1e-5, torch.float32)
    (dx,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dx.sum().backward()


def test_fake_tensors():
    with FakeTensorMode():
        x, residual = (torch.empty(4, 6, dtype=dtype, requires_grad=True) for dtype in (torch.bfloat16, torch.float32))
        weight, bias, keys = torch.ones(6, requires_grad=True), torch.zeros(6), torch.empty(4, dtype=torch.int64)
        out = ops.dropout_add_layer_norm(x, residual, weight, bias, keys, 0, 0.1, 1e-5, torch.float16)
        assert out.shape == (4, 6) and out.dtype == torch.float16
        slopes = torch.autograd.grad(out.sum(), (x, residual, weight))
        assert [(s.shape, s.dtype) for s in slopes] == [(t.shape, t.dtype) for t in (x, residual, weight)]


@pytest.mark.parametrize("n", [0, 1])
def test_no_rows_and_one_row(n):
    inputs, keys = case(n, 8)
    assert_agree(ops.dropout_add_layer_norm, inputs, keys, 0, 0.1, torch.float32)


X, ONE, KEYS = torch.zeros(3, 4), torch.ones(4), torch.zeros(3, dtype=torch.int64)
F32, F64 = torch.float32, torch.float64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(3), X, ONE, ONE, KEYS, 0, 0.1, 1e-5, F32), "x should be floating point"),
        ((X, X[:2], ONE, ONE, KEYS, 0, 0.1, 1e-5, F32), r"residual should be .* \(3, 4\) on cpu and is"),
        ((X, X.double(), ONE, ONE, KEYS, 0, 0.1, 1e-5, F32), "residual should be float32 or float16 or bfloat16"),
        ((X, X, ONE.half(), ONE, KEYS, 0, 0.1, 1e-5, F32), r"weight should be float32 \(4,\)"),
        ((X, X, ONE, ONE[:3], KEYS, 0, 0.1, 1e-5, F32), r"bias should be float32 \(4,\)"),
        ((X.double(), X.double(), ONE, ONE, KEYS, 0, 0.1, 1e-5, F64), "weight should be float64"),
        ((X, X, ONE, ONE, KEYS, 0, 0.1, 1e-5, F64), "dtype should be float32 or float16 or bfloat16"),
        ((X, X, ONE, ONE, None, 0, 0.1, 1e-5, F32), "keys should be int64 .* is None"),
        ((X, X, ONE, ONE, KEYS[:1], 0, 0.1, 1e-5, F32), "keys should be int64"),
        ((X, X, ONE, ONE.to("meta"), KEYS, 0, 0.1, 1e-5, F32), "bias should be .* on cpu and is .* on meta"),
        ((X, X, ONE, ONE, KEYS, -1, 0.1, 1e-5, F32), "site should be 0 or more"),
        ((X, X, ONE, ONE, KEYS, 0, 1.0, 1e-5, F32), "p should be at least 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ops.dropout_add_layer_norm(*arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(
    ("x", "residual", "to", "p"),
    [
        *((dtype, dtype, dtype, 0.1) for dtype in TYPES),
        (torch.bfloat16, torch.float32, torch.float32, 0.0),
        (torch.bfloat16, None, torch.bfloat16, 0.1),
        (torch.float32, torch.bfloat16, torch.float16, 0.1),
    ],
)
@pytest.mark.parametrize(
    ("n", "h"), [(2048, 768), (1000, 1024), (500, 256), (500, 128), (70, 1030), (9, 7), (1, 768), (0, 8)]
)
def test_gpu_and_cpu_agree(n, h, x, residual, to, p):
    inputs, keys = case(n, h, x, residual)
    weights = normal(n, h, dtype=to, seed=9)
    results = []
    for device in ("cpu", "cuda"):
        given = [t if t is None else t.detach().to(device).requires_grad_() for t in inputs]
        out = ops.dropout_add_layer_norm(*given, keys.to(device), 3, p, 1e-5, to)
        slopes = torch.autograd.grad(out, [t for t in given if t is not None], weights.to(device))
        results.append([t.cpu() for t in (out, *slopes)])
    if x != torch.float16:  # whose small gradients are rounded to zero here and not there
        assert torch.equal(results[0][1] == 0, results[1][1] == 0)  # the mask
    for expected, found in zip(*results, strict=True):
        error = 2 * ROUNDING[found.dtype]
        atol = error * max(1.0, expected.abs().max().item() if expected.numel() else 1.0)
        torch.testing.assert_close(found, expected, rtol=error, atol=atol)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_gradients_are_deterministic_and_replayed():
    """The same bits twice, and from a CUDA graph, which has no generator state to advance."""
    inputs, keys = case(2000, 768, torch.bfloat16, torch.bfloat16)
    inputs, keys = [t.detach().cuda().requires_grad_() for t in inputs], keys.cuda()

    def run():
        out = ops.dropout_add_layer_norm(*inputs, keys, 3, 0.1, 1e-5, torch.bfloat16)
        # Detached: a graph of autograd that outlives the call would tie the capture to this stream.
        return out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out))

    expected = run()
    assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for _ in range(2):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
