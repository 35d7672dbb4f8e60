"""mask_regions, compiled and pure, against a loop, against each other, and its gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ops
from ops import pure_torch

TYPES = (torch.float32, torch.float16, torch.bfloat16)
implementations = pytest.mark.parametrize(
    "mask", [ops.mask_regions, pure_torch.mask_regions], ids=["installed", "pure"]
)


def random_case(batch=6, n=9, size=21, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(batch, n, generator=generator) < 0.7
    return torch.randn(batch, n, size, generator=generator).to(dtype), visible


@implementations
@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(0, 4),
    n=st.integers(0, 6),
    size=st.integers(0, 40),
    dtype=st.sampled_from(TYPES),
    to=st.sampled_from(TYPES),
    seed=st.integers(0, 9),
)
def test_equals_a_loop_over_the_regions(mask, batch, n, size, dtype, to, seed):
    features, visible = random_case(batch, n, size, dtype, seed)
    found = mask(features, visible, to)
    assert found.shape == (batch, n + 1, size) and found.dtype == to
    for image in range(batch):
        seen = [features[image, i].float() for i in range(n) if visible[image, i]]
        mean = torch.stack(seen).mean(0) if seen else torch.zeros(size)
        torch.testing.assert_close(found[image, 0], mean.to(to))
        for i in range(n):
            expected = features[image, i].to(to) if visible[image, i] else torch.zeros(size, dtype=to)
            assert torch.equal(found[image, i + 1], expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("to", TYPES)
def test_every_number_there_is_is_rounded_as_torch_rounds(dtype, to):
    """All 65,536 bit patterns of a half, and float32 numbers around every one of them; NaN stays NaN."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    if dtype == torch.float32:
        near = torch.cat([patterns * 65536 + step for step in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1000, 0x3000)])
        halves = patterns.to(torch.int16).view(torch.float16).float().view(torch.int32)
        values = torch.cat([near, *(halves + step for step in (-1, 1, 0x0FFF, 0x1000, 0x1001))]).view(torch.float32)
    else:
        values = patterns.to(torch.int16).view(dtype)
    visible = torch.ones(1, 1, dtype=torch.bool)
    found = ops.mask_regions(values.view(1, 1, -1), visible, to)[0, 1]
    expected = values.to(to)
    same = (found.view(torch.int32 if to == torch.float32 else torch.int16)) == (
        expected.view(torch.int32 if to == torch.float32 else torch.int16)
    )
    assert (same | (found.isnan() & expected.isnan())).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_compiled_and_pure_agree(dtype):
    features, visible = random_case(64, 36, 300, dtype)
    found, expected = ops.mask_regions(features, visible), pure_torch.mask_regions(features, visible, torch.float32)
    assert torch.equal(found[:, 1:], expected[:, 1:])
    torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-5, atol=1e-6)


@implementations
def test_what_is_hidden_does_not_matter(mask):
    features, visible = random_case()
    wild = torch.where(visible[..., None], features, float("nan"))
    assert torch.equal(mask(wild, visible, torch.float32), mask(features, visible, torch.float32))


def test_float64_is_computed_in_float32():
    features, visible = random_case(dtype=torch.float64)
    found = ops.mask_regions(features, visible, torch.float64)
    assert found.dtype == torch.float64
    assert torch.equal(found.float(), ops.mask_regions(features.float(), visible))


def test_inputs_need_not_be_contiguous():
    features, visible = random_case(8, 10, 16)
    turned = features.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ops.mask_regions(turned[::2], visible[::2]), ops.mask_regions(features, visible)[::2])
    part = ops.mask_regions(features[:, 1:], visible[:, 1:])
    assert torch.equal(part, ops.mask_regions(features[:, 1:].contiguous(), visible[:, 1:].contiguous()))


def test_any_number_of_threads_gives_the_same():
    features, visible = random_case(200, 36, 512)
    expected = ops.mask_regions(features, visible)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(ops.mask_regions(features, visible), expected)
    finally:
        torch.set_num_threads(before)


def test_the_gradient_reaches_visible_features_by_their_row_and_by_the_mean():
    features, visible = random_case(dtype=torch.float32)
    visible[2] = False
    features.requires_grad_()
    weights = torch.randn(6, 10, 21)
    (ops.mask_regions(features, visible) * weights).sum().backward()
    share = visible / visible.sum(1, keepdim=True).clamp(min=1)
    expected = weights[:, 1:] * visible[..., None] + weights[:, :1] * share[..., None]
    torch.testing.assert_close(features.grad, expected)


@pytest.mark.parametrize(
    ("features", "visible", "words"),
    [
        (torch.zeros(3, 4), torch.ones(3, 4, dtype=torch.bool), "features should be"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool), "features should be"),
        (torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool), "visible should be bool"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3), "visible should be bool"),
    ],
)
def test_wrong_shapes_and_types_are_refused(features, visible, words):
    with pytest.raises(ValueError, match=words):
        ops.mask_regions(features, visible)


@pytest.mark.parametrize("to", TYPES)
def test_opcheck(to):
    features, visible = random_case(3, 4, 5)
    operator = torch.ops.twelve_in_one.mask_regions.default
    torch.library.opcheck(operator, (features.requires_grad_(), visible, to))


def test_under_compile_without_a_graph_break():
    features, visible = random_case()

    def rows(features, visible):
        return ops.mask_regions(features * 1.0, visible).sum(1)

    compiled = torch.compile(rows, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(features, visible), rows(features, visible))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(64, 36, 2048), (5, 100, 77), (0, 3, 8), (2, 0, 8)])
def test_gpu_and_cpu_agree_to_the_bit(shape, dtype):
    features, visible = random_case(*shape, dtype)
    for to in TYPES:
        on_gpu = ops.mask_regions(features.cuda(), visible.cuda(), to)
        assert torch.equal(on_gpu.cpu(), ops.mask_regions(features, visible, to))
