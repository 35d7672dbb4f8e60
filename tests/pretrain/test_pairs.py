"""Which pairs are held out, and which captions are swapped."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import masking
from pretrain.pairs import Captions, Swaps, split_pairs
from shards.errors import UserError


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=300), st.integers(0, 100))
def test_no_text_is_on_both_sides_and_no_pair_is_lost(texts, wanted):
    captions = Captions([f"caption {text}" if text else "" for text in texts])
    training, validation = split_pairs(captions, wanted, len(texts))
    together = sorted([*training.tolist(), *validation.tolist()])
    assert together == [number for number, text in enumerate(texts) if text]
    assert not {texts[n] for n in training} & {texts[n] for n in validation}
    most = max(Counter(t for t in texts if t).values(), default=0)
    assert len(validation) <= min(wanted, len(together) // 10) + most


def test_case_and_spaces_make_no_other_text():
    captions = Captions(["A cat", "a  CAT ", "a dog"])
    assert captions.text_ids[0] == captions.text_ids[1] != captions.text_ids[2]


def test_about_as_many_as_asked_are_held_out_whatever_the_order():
    texts = [f"number {n}" for n in range(2000)]
    held = {texts[n] for n in split_pairs(Captions(texts), 100, 2000)[1]}
    assert len(held) == 100
    backwards = texts[::-1]
    assert {backwards[n] for n in split_pairs(Captions(backwards), 100, 2000)[1]} == held


def test_held_out_pairs_of_a_part_leave_their_texts_nowhere():
    texts = [f"number {n % 100}" for n in range(300)]
    training, validation = split_pairs(Captions(texts), 10, 100)
    assert len(validation) == 10 and validation.max() < 100
    assert len(training) == 270
    assert not {texts[n] for n in training} & {texts[n] for n in validation}


def test_few_texts_are_not_split():
    training, validation = split_pairs(Captions(["a", "b"] * 50), 10, 100)
    assert len(training) == 100 and len(validation) == 0


def test_a_partner_has_another_text_and_every_other_caption_is_as_likely():
    texts = ["a"] * 30 + ["b"] * 10 + ["c"] * 5 + ["d"]
    captions = Captions(texts)
    swaps = Swaps(captions, np.arange(len(texts) - 1))  # d is held out
    keys = masking.sample_keys(0, 0, np.arange(3000)).tolist()
    partners = Counter(texts[swaps.partner(0, key)] for key in keys)
    assert set(partners) == {"b", "c"}
    assert abs(partners["b"] / 3000 - 2 / 3) < 0.03


def test_a_partner_is_found_among_thousands_of_equal_captions():
    captions = Captions(["a"] * 5000 + ["b"])
    swaps = Swaps(captions, np.arange(5001))
    assert {swaps.partner(0, key) for key in masking.sample_keys(0, 0, np.arange(20)).tolist()} == {5000}


def test_all_captions_the_same_is_an_error():
    with pytest.raises(UserError, match="at least two different"):
        Swaps(Captions(["a"] * 9), np.arange(9))
