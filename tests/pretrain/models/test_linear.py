"""The linear layer of mixed precision against torch's own."""

import pytest
import torch
from torch import nn

from ops import column_sum
from pretrain.models.linear import Linear, MixedLinear, NarrowWeights

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU, id="gpu")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(300, 24), (7, 5, 24), (0, 24)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_torch(device, shape, kind):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40).to(device), torch.randn(*shape, device=device).to(kind)
    weights = torch.randn(*shape[:-1], 40, device=device)
    found = []
    for own in (True, False):
        layer.zero_grad()
        given = x.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            narrow = layer.weight.bfloat16(), layer.bias.bfloat16()
            out = MixedLinear.apply(given, layer.weight, layer.bias, *narrow) if own else layer(given)
        (out.float() * weights).sum().backward()
        found.append((out, given.grad, layer.weight.grad, layer.bias.grad))
    for mine, torchs in zip(*found, strict=True):
        assert mine.dtype == torchs.dtype
        torch.testing.assert_close(mine, torchs, rtol=2e-2, atol=2e-2 * max(1.0, len(x) ** 0.5))
    # of the float32 sums nothing is rounded away
    narrow = x.bfloat16().flatten(0, -2).double()
    exact = weights.bfloat16().flatten(0, -2).double().T @ narrow
    torch.testing.assert_close(found[0][2].double(), exact, rtol=1e-5, atol=1e-4)


def test_a_layer_computes_with_its_narrow_weights_in_training_under_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(Linear(8, 8), nn.Linear(8, 8), Linear(8, 3))
    weights, x = NarrowWeights(model, torch.bfloat16), torch.randn(5, 8)

    def out():
        with torch.autocast("cpu", torch.bfloat16):  # keeps its own copies of the weights to its end
            return model(x)

    expected = out()
    weights.refresh()
    assert torch.equal(out(), expected) and "MixedLinear" in type(out().grad_fn).__name__
    with torch.no_grad():
        model[0].weight += 1
    weights.refresh()
    changed = out()
    model.eval()
    assert torch.equal(changed, out()) and not torch.equal(changed, expected)
    assert "MixedLinear" not in type(model.train()(x).grad_fn).__name__


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(18944, 768), (1000, 3072), (33, 130), (1, 7), (0, 5), (4, 0)])
def test_column_sums(device, dtype, shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = x.double().sum(0)
    found = column_sum(x.to(device))
    assert found.dtype == torch.float32 and found.shape == expected.shape
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-4, atol=1e-2)
    both = torch.cat([x, x], 1).to(device)[:, shape[1] :]  # a part of wider rows
    torch.testing.assert_close(column_sum(both).cpu().double(), expected, rtol=1e-4, atol=1e-2)


def test_column_sum_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"x should be floating point \(n, h\)"):
        column_sum(torch.zeros(3))
