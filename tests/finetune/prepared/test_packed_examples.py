"""Packed examples are the examples that were packed."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.annotations.example import Example
from finetune.prepared.packed_examples import PackedExamples
from shards.common.errors import UserError

TEXT = st.text(max_size=12)
INTEGER = st.integers(-(2**63), 2**63 - 1)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), INTEGER, st.floats(allow_nan=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)),
    max_leaves=5,
)
BOX = st.tuples(*[st.floats(-10, 1000)] * 4)
EXAMPLES = st.builds(
    Example,
    id=st.one_of(INTEGER, TEXT),
    text=TEXT,
    images=st.lists(TEXT, max_size=2).map(tuple),
    target=st.one_of(st.none(), st.integers(0, 9), BOX, st.dictionaries(TEXT, st.floats(0, 1), max_size=3)),
    candidates=st.lists(BOX, max_size=3).map(tuple),
    candidate_ids=st.lists(TEXT, max_size=3).map(tuple),
    facts=st.dictionaries(TEXT, VALUE, max_size=3),
)


@given(st.lists(EXAMPLES, max_size=8), st.slices(8))
def test_packing_loses_nothing(examples, part):
    packed = PackedExamples.of(examples)
    assert list(packed) == examples and len(packed) == len(examples)
    assert packed[part] == examples[part]
    assert [packed[n] for n in range(-len(examples), len(examples))] == examples * 2
    for beyond in (len(examples), -len(examples) - 1):
        with pytest.raises(IndexError):
            packed[beyond]
    assert list(pickle.loads(pickle.dumps(packed))) == examples


def alike(one, other) -> bool:
    """Equal, and of equal types all the way down: 1, 1.0 and True are not alike, nor are a list and a tuple."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


@given(EXAMPLES)
def test_types_are_kept(example):
    [found] = PackedExamples.of([example])
    assert all(alike(getattr(found, name), value) for name, value in vars(example).items())


@given(st.lists(EXAMPLES, min_size=1, max_size=8), st.data())
def test_images_of_a_selection_are_those_of_its_examples(examples, data):
    numbers = np.array(data.draw(st.lists(st.integers(0, len(examples) - 1), max_size=8)), np.int64)
    chosen, packed = [examples[n] for n in numbers], PackedExamples.of(examples).select(numbers)
    assert packed == chosen
    sets, places = packed.images()
    assert sets == list(dict.fromkeys(e.images for e in chosen))
    assert [sets[place] for place in places] == [e.images for e in chosen]
    assert packed.image_counts() == Counter(e.images for e in chosen)
    mask = np.array([len(e.text) > 3 for e in chosen], bool)
    assert packed.select(mask) == [e for e in chosen if len(e.text) > 3]


def test_the_digest_is_of_the_examples_and_their_order():
    examples = [Example(n, str(n), (str(n % 2),)) for n in range(5)]
    packed, again = PackedExamples.of(examples), PackedExamples.of(examples)
    different = [PackedExamples.of(examples[:4]), packed[:4], packed[::-1], PackedExamples.of(examples[::-1])]
    assert packed.digest() == again.digest() and packed[:4].digest() == again[:4].digest()
    assert len({packed.digest(), *(one.digest() for one in different)}) == 5


def test_a_value_that_cannot_be_stored_is_named():
    with pytest.raises(UserError, match=r"^DATA/vqa, train, example 7: cannot be stored \("):
        PackedExamples.of([Example(7, "", (), facts={"large": 2**64})], "DATA/vqa, train")
