"""Packed examples are the examples that were packed."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.annotations.example import Example
from finetune.data.serialized_examples import PackedExamples

TEXT = st.text(max_size=12)
BOX = st.tuples(*[st.floats(-10, 1000)] * 4)
EXAMPLES = st.builds(
    Example,
    id=st.one_of(st.integers(), TEXT),
    text=TEXT,
    images=st.lists(TEXT, max_size=2).map(tuple),
    target=st.one_of(st.none(), st.integers(0, 9), BOX, st.dictionaries(TEXT, st.floats(0, 1), max_size=3)),
    candidates=st.lists(BOX, max_size=3).map(tuple),
    candidate_ids=st.lists(TEXT, max_size=3).map(tuple),
    facts=st.dictionaries(TEXT, st.one_of(st.integers(), TEXT, st.lists(TEXT, max_size=3)), max_size=3),
)


@given(st.lists(EXAMPLES, max_size=8), st.slices(8))
def test_packing_loses_nothing(examples, part):
    packed = PackedExamples(examples)
    assert list(packed) == examples and len(packed) == len(examples)
    assert packed[part] == examples[part]
    assert [packed[n] for n in range(-len(examples), len(examples))] == examples * 2
    for beyond in (len(examples), -len(examples) - 1):
        with pytest.raises(IndexError):
            packed[beyond]
    assert list(pickle.loads(pickle.dumps(packed))) == examples
