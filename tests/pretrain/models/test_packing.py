"""States without their padding: the same numbers, for the work of the positions that are there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretrain.models.model_config import TINY
from pretrain.models.packing import lay_out
from pretrain.models.vilbert import TwoStream

SIZES = TINY.replace(
    vocab_size=40, v_feature_size=12, hidden_size=32, v_hidden_size=32, bi_hidden_size=32, task_tokens=3
)


def mask_of(lengths, longest=None):
    return torch.arange(longest or max(lengths)) < torch.tensor(lengths)[:, None]


def make_inputs(lengths, regions):
    generator = torch.Generator().manual_seed(0)
    size, words, rows = len(lengths), max(lengths), max(regions)
    return {
        "input_ids": torch.randint(5, 40, (size, words), generator=generator),
        "text_mask": mask_of(lengths),
        "features": torch.rand(size, rows, 12, generator=generator, dtype=torch.float64),
        "locations": torch.rand(size, rows, 5, generator=generator, dtype=torch.float64),
        "image_mask": mask_of(regions),
    }


def counts_of(inputs):
    return {"text_count": int(inputs["text_mask"].sum()), "image_count": int(inputs["image_mask"].sum())}


def make_model():
    torch.manual_seed(0)
    return TwoStream(SIZES.with_dropout(0)).double()


def states_and_gradients(model, inputs, **options):
    """States where something is, and gradients of a loss of all of them."""
    model.zero_grad()
    encoded = model(**inputs, **options)
    text_mask = inputs["text_mask"]
    if "task_ids" in options:
        text_mask = torch.cat([text_mask[:, :1], text_mask], 1)
    states = [encoded.text[text_mask], encoded.image[inputs["image_mask"]], model.fuse(encoded)]
    sum((state * torch.arange(state.shape[-1])).sin().sum() for state in states).backward()
    return [*(s.detach() for s in states), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=30)
@given(lengths, st.booleans(), st.booleans())
def test_states_and_gradients_are_those_with_padding(lengths, tokens, recompute):
    model, inputs = make_model(), make_inputs(*zip(*lengths, strict=True))
    options = {"task_ids": torch.arange(len(lengths)) % 3} if tokens else {}
    theirs = states_and_gradients(model, inputs, **options)
    model.activation_checkpointing = recompute
    ours = states_and_gradients(model, inputs, **options, **counts_of(inputs))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_no_layer_works_on_padding():
    """But for the attention itself: every Linear of the two streams sees the rows that are there, and no more."""
    model = make_model()
    inputs = make_inputs([9, 3, 2, 4], [2, 7, 3, 2])
    seen, linear = {}, {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, module in linear.items():
        module.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].shape[:-1].numel()}))
    model(**inputs, **counts_of(inputs))
    assert seen == {name: 4 if "pooler" in name else 14 if "image" in name else 18 for name in linear}


@pytest.mark.parametrize("what", ["features", "locations"])
def test_what_lies_in_the_padding_does_not_matter(what):
    model, inputs = make_model(), make_inputs([4, 4], [2, 7])
    clean = states_and_gradients(model, inputs, **counts_of(inputs))
    inputs[what][~inputs["image_mask"]] = float("nan")
    for one, other in zip(states_and_gradients(model, inputs, **counts_of(inputs)), clean, strict=True):
        assert torch.equal(one, other)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(9, 12))
def test_padding_comes_back_as_zeros(lengths, longest):
    mask = mask_of(lengths, longest)
    one = lay_out(mask, int(mask.sum()))
    x = torch.randn(*mask.shape, 3)
    padded = one.pad(one.pack(x))
    assert torch.equal(padded, x if one.index is None else x * mask[..., None])
    if one.index is not None:
        assert torch.equal(one.pack(x), x[mask])


def test_little_padding_and_unknown_padding_stay():
    assert lay_out(mask_of([8, 7]), 15).index is None
    assert lay_out(mask_of([8, 2]), None).index is None
    assert lay_out(mask_of([8, 2]), 10).index is not None
