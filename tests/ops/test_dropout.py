"""dropout and attention_dropout, compiled and pure, against the definition of their random function."""

import pytest
import torch
from dropout_cases import TYPES, column_lanes, kept_columns, kept_pairs, normal, pair_bits, random_keys, scale_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import ops
from ops import pure_torch
from shards.common import counter_rng

dropouts = pytest.mark.parametrize("dropout", [ops.dropout, pure_torch.dropout], ids=["as installed", "pure torch"])
attention_dropouts = pytest.mark.parametrize(
    "attention_dropout", [ops.attention_dropout, pure_torch.attention_dropout], ids=["as installed", "pure torch"]
)


@dropouts
@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(0, 5),
    h=st.integers(0, 70) | st.sampled_from([128, 130, 768, 1030]),
    site=st.integers(0, 60),
    p=st.sampled_from([1e-6, 0.1, 0.5, 0.9]),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 99),
)
def test_equals_the_definition(dropout, n, h, site, p, dtype, seed):
    x, keys = normal(n, h, dtype=dtype, seed=seed), random_keys(n, seed=seed)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    scaled = (x.to(compute) * torch.tensor(scale_of(p), dtype=compute)).to(dtype)
    found = dropout(x, keys, site, p)
    assert found.dtype == dtype and torch.equal(found, scaled.masked_fill(~kept_columns(keys, site, h, p), 0))


@attention_dropouts
@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9), st.integers(0, 40)),
    site=st.integers(0, 60),
    p=st.sampled_from([1e-9, 0.1, 0.5, 0.9]),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 99),
)
def test_attention_equals_the_definition(attention_dropout, shape, site, p, dtype, seed):
    batch, heads, queries, columns = shape
    probs = normal(*shape, dtype=dtype, seed=seed)
    keys = random_keys(batch, queries, seed=seed), random_keys(batch, columns, seed=seed + 100)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    scaled = (probs.to(compute) * torch.tensor(scale_of(p, 24), dtype=compute)).to(dtype)
    expected = scaled.masked_fill(~kept_pairs(*keys, site, heads, p), 0)
    found = attention_dropout(probs, *keys, site, p)
    assert found.dtype == dtype and torch.equal(found, expected)


@dropouts
@pytest.mark.parametrize("column", [0, 1, 6, 11])
def test_bits_at_the_threshold_are_kept(dropout, column):
    keys = random_keys(1)
    lane = int(column_lanes(keys, 0, 12)[0, column])
    assert dropout(torch.ones(1, 12), keys, 0, lane / 65536)[0, column] > 0
    assert dropout(torch.ones(1, 12), keys, 0, (lane + 1) / 65536)[0, column] == 0


@attention_dropouts
def test_attention_bits_at_the_threshold_are_kept(attention_dropout):
    keys = random_keys(1, 1)
    bits = int(pair_bits(keys, keys, 3, 1)[0, 0, 0, 0])
    assert attention_dropout(torch.ones(1, 1, 1, 1), keys, keys, 3, bits / 2**24) > 0
    assert attention_dropout(torch.ones(1, 1, 1, 1), keys, keys, 3, (bits + 1) / 2**24) == 0


def test_a_row_starts_from_the_random_number_of_its_key_and_site():
    """The function is the one of shards.common.counter_rng: checked here since this package cannot import it."""
    keys = random_keys(5)
    starts = counter_rng.draw(keys, torch.tensor(7))
    bits = counter_rng.draw(starts[:, None], torch.arange(3))
    lanes = bits[..., None] >> torch.arange(0, 64, 16) & 0xFFFF
    assert torch.equal(ops.dropout(torch.ones(5, 12), keys, 7, 0.25) > 0, lanes.flatten(1) >= 0.25 * 65536)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_rate_and_independence(p):
    """Rate and pairwise agreement of columns, neighbouring rows and sites, to five standard errors."""
    keys = torch.arange(1000)  # keys that differ in few bits
    masks = [(ops.dropout(torch.ones(1000, 1024), keys, site, p) == 0).double() for site in (0, 1)]
    deviation = (p * (1 - p)) ** 0.5
    for dims, number in (((0, 1), 1000 * 1024), ((0,), 1000), ((1,), 1024)):
        assert abs(masks[0].mean(dims) - p).max() < 5 * deviation / number**0.5
    error = 5 * deviation**2 / (1000 * 1024) ** 0.5
    first = masks[0] - p
    others = {"site": masks[1] - p, "row": first.roll(1, 0)} | {s: first.roll(s, 1) for s in (1, 2, 3, 4, 8)}
    for name, other in others.items():
        assert abs((first * other).mean()) < error, name


def test_attention_rate_and_independence():
    keys = torch.arange(64).view(1, 64)
    dropped = (ops.attention_dropout(torch.ones(1, 12, 64, 64), keys, keys, 0, 0.1) == 0).double() - 0.1
    assert abs(dropped.mean()) < 5 * 0.3 / dropped.numel() ** 0.5
    error = 5 * 0.3**2 / dropped.numel() ** 0.5
    dropped[..., range(64), range(64)] = 0  # a pair of a row with itself is its own transpose
    others = {dim: dropped.roll(1, dim) for dim in (1, 2, 3)} | {"transposed": dropped.transpose(2, 3)}
    for name, other in others.items():
        assert abs((dropped * other).mean()) < error * (2 if name == "transposed" else 1), name  # pairs come twice


def test_a_row_has_the_same_mask_in_any_batch():
    x, keys = normal(40, 96), random_keys(40)
    whole = ops.dropout(x, keys, 2, 0.3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.dropout(x[order], keys[order], 2, 0.3), whole[order])
    assert torch.equal(torch.cat([ops.dropout(x[i : i + 7], keys[i : i + 7], 2, 0.3) for i in range(0, 40, 7)]), whole)


def test_a_probability_has_the_same_mask_wherever_its_rows_are():
    probs, queries, keys = normal(6, 3, 8, 10), random_keys(6, 8), random_keys(6, 10, seed=1)
    whole = ops.attention_dropout(probs, queries, keys, 2, 0.3)
    rows, columns, images = torch.randperm(8), torch.randperm(10), torch.tensor([4, 1])
    found = ops.attention_dropout(probs[:, :, rows], queries[:, rows], keys, 2, 0.3)
    assert torch.equal(found, whole[:, :, rows])
    found = ops.attention_dropout(probs[..., columns], queries, keys[:, columns], 2, 0.3)
    assert torch.equal(found, whole[..., columns])
    found = ops.attention_dropout(probs[images], queries[images], keys[images], 2, 0.3)
    assert torch.equal(found, whole[images])


def test_dropped_values_do_not_matter():
    keys = random_keys(4)
    x = torch.where(kept_columns(keys, 0, 50, 0.5), 1.0, float("nan"))
    assert not ops.dropout(x, keys, 0, 0.5).isnan().any()


def test_p_of_zero_returns_the_input_itself():
    x, probs, keys = normal(3, 5), normal(2, 2, 3, 4), random_keys(2, 4)
    assert ops.dropout(x, random_keys(3), 0, 0.0) is x
    assert ops.attention_dropout(probs, keys[:, :3], keys, 0, 0.0) is probs
    assert torch.equal(torch.ops.twelve_in_one.dropout(x, random_keys(3), 0, 0.0), x)


def test_inputs_need_not_be_contiguous():
    x, keys = normal(20, 30), random_keys(20)
    expected = ops.dropout(x, keys, 1, 0.4)
    assert torch.equal(ops.dropout(x.t().contiguous().t()[::2], keys[::2], 1, 0.4), expected[::2])
    assert torch.equal(ops.dropout(x[:, :7], keys, 1, 0.4), expected[:, :7])
    probs, queries, columns = normal(3, 2, 6, 8), random_keys(3, 6), random_keys(3, 8)
    found = ops.attention_dropout(probs.transpose(1, 2).contiguous().transpose(1, 2), queries, columns, 1, 0.4)
    assert torch.equal(found, ops.attention_dropout(probs, queries, columns, 1, 0.4))


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same(threads):
    x, keys = normal(5000, 300), random_keys(5000)
    expected = ops.dropout(x, keys, 1, 0.4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(ops.dropout(x, keys, 1, 0.4), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_gradient_has_the_same_mask(dtype):
    x, keys = normal(6, 21, dtype=dtype).requires_grad_(), random_keys(6)
    weights = normal(6, 21, dtype=dtype, seed=1)
    (gradient,) = torch.autograd.grad(ops.dropout(x, keys, 4, 0.3), x, weights)
    assert gradient.dtype == dtype and torch.equal(gradient, ops.dropout(weights, keys, 4, 0.3))
    probs, queries, columns = normal(2, 3, 4, 5, dtype=dtype).requires_grad_(), random_keys(2, 4), random_keys(2, 5)
    weights = normal(2, 3, 4, 5, dtype=dtype, seed=1)
    (gradient,) = torch.autograd.grad(ops.attention_dropout(probs, queries, columns, 4, 0.3), probs, weights)
    assert torch.equal(gradient, ops.attention_dropout(weights, queries, columns, 4, 0.3))


def test_gradcheck():
    x, keys = normal(4, 6, dtype=torch.float64).requires_grad_(), random_keys(4)
    assert torch.autograd.gradcheck(lambda x: ops.dropout(x, keys, 1, 0.3), (x,))
    assert torch.autograd.gradgradcheck(lambda x: ops.dropout(x, keys, 1, 0.3), (x,))
    probs = normal(2, 2, 2, 3, dtype=torch.float64).requires_grad_()
    queries, columns = random_keys(2, 2), random_keys(2, 3)
    assert torch.autograd.gradcheck(lambda x: ops.attention_dropout(x, queries, columns, 1, 0.3), (probs,))


@pytest.mark.parametrize("dtype", TYPES)
def test_opcheck(dtype):
    operators = torch.ops.twelve_in_one
    x = normal(3, 5, dtype=dtype).requires_grad_()
    torch.library.opcheck(operators.dropout.default, (x, random_keys(3), 2, 0.3))
    probs = normal(2, 3, 4, 5, dtype=dtype).requires_grad_()
    torch.library.opcheck(operators.attention_dropout.default, (probs, random_keys(2, 4), random_keys(2, 5), 2, 0.3))


def test_under_compile_without_a_graph_break():
    """Every site is a constant of the graph, and the mask is the one of eager mode in forward and backward."""
    keys = random_keys(6)

    def twice(x, keys, site):
        return ops.dropout(torch.sin(ops.dropout(x * 2.0, keys, site, 0.3)), keys, site + 1, 0.5).sum(1)

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    for site in (0, 3, 9):
        x = normal(6, 20).requires_grad_()
        expected, found = twice(x, keys, site), compiled(x, keys, site)
        assert torch.equal(found, expected)
        (a,), (b,) = (torch.autograd.grad(out.square().sum(), x) for out in (found, expected))
        torch.testing.assert_close(a, b)


def test_activation_checkpointing_gives_the_same_gradient():
    x, keys = normal(6, 20).requires_grad_(), random_keys(6)

    def block(x):
        return ops.dropout(torch.tanh(x), keys, 3, 0.4).square()

    (expected,) = torch.autograd.grad(block(x).sum(), x)
    (found,) = torch.autograd.grad(checkpoint(block, x, use_reentrant=False, preserve_rng_state=False).sum(), x)
    assert torch.equal(found, expected)


def test_fake_tensors():
    with FakeTensorMode():
        x, keys = torch.empty(4, 6, dtype=torch.bfloat16), torch.empty(4, dtype=torch.int64)
        out = ops.dropout(x, keys, 0, 0.1)
        assert out.shape == (4, 6) and out.dtype == torch.bfloat16
        probs = torch.empty(2, 3, 4, 5)
        out = ops.attention_dropout(probs, torch.empty(2, 4).long(), torch.empty(2, 5).long(), 0, 0.1)
        assert out.shape == (2, 3, 4, 5)


X, KEYS = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(3, 4, 5), KEYS, 0, 0.1), "x should be floating point"),
        ((torch.zeros(3, 4).long(), KEYS, 0, 0.1), "x should be floating point"),
        ((X, KEYS[:2], 0, 0.1), r"keys should be int64 \(3,\) on cpu and is torch.int64 \(2,\)"),
        ((X, KEYS.int(), 0, 0.1), "keys should be int64"),
        ((X, KEYS.to("meta"), 0, 0.1), "on cpu and is .* on meta"),
        ((X, KEYS, -1, 0.1), "site should be 0 or more"),
        ((X, KEYS, 0, 1.0), "p should be at least 0"),
        ((X, KEYS, 0, -0.1), "p should be at least 0"),
        ((X, KEYS, 0, 1 - 1e-9), "p should be at least 0"),
        ((X, KEYS, 0, float("nan")), "p should be at least 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ops.dropout(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X, KEYS, KEYS, 0, 0.1), "probs should be floating point"),
        ((torch.zeros(2, 1, 3, 4), torch.zeros(2, 4).long(), torch.zeros(2, 4).long(), 0, 0.1), "query_keys should"),
        ((torch.zeros(2, 1, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), 0, 0.1), "key_keys should"),
        ((torch.zeros(2, 1, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2, 4), 0, 0.1), "key_keys should be int64"),
        ((torch.zeros(2, 1, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2, 4).long(), 0, 2.0), "p should be"),
    ],
)
def test_wrong_arguments_of_attention_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ops.attention_dropout(*arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(6144, 768), (1000, 1024), (50, 1030), (7, 3), (300, 130), (0, 8), (8, 0)])
def test_gpu_and_cpu_agree_to_the_bit(shape, dtype):
    x, keys = normal(*shape, dtype=dtype), random_keys(shape[0])
    assert torch.equal(ops.dropout(x.cuda(), keys.cuda(), 3, 0.1).cpu(), ops.dropout(x, keys, 3, 0.1))
    if x.numel() > 8:  # an address that is no multiple of 16 bytes
        shifted = torch.cat([x.new_zeros(1), x.flatten()]).cuda()[1:].view_as(x)
        assert torch.equal(ops.dropout(shifted, keys.cuda(), 3, 0.1).cpu(), ops.dropout(x, keys, 3, 0.1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(64, 12, 36, 36), (16, 8, 37, 101), (2, 12, 300, 512), (3, 1, 1, 1), (0, 2, 3, 4)])
def test_gpu_and_cpu_attention_agree_to_the_bit(shape, dtype):
    batch, _, queries, columns = shape
    probs = normal(*shape, dtype=dtype)
    keys = random_keys(batch, queries), random_keys(batch, columns, seed=1)
    on_gpu = ops.attention_dropout(probs.cuda(), *(k.cuda() for k in keys), 3, 0.1)
    assert torch.equal(on_gpu.cpu(), ops.attention_dropout(probs, *keys, 3, 0.1))
