"""Which pairs are held out, and which captions are misaligned."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data import random_choices
from pretrain.data.caption_pairs import Captions, MisalignedCaptions, linked_texts, split_pairs
from shards.common.errors import UserError


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
    negatives = MisalignedCaptions(captions, np.arange(len(texts) - 1))  # d is held out
    keys = random_choices.sample_keys(0, 0, np.arange(3000)).tolist()
    partners = Counter(texts[negatives.partner(0, key)] for key in keys)
    assert set(partners) == {"b", "c"}
    assert abs(partners["b"] / 3000 - 2 / 3) < 0.03


def test_a_partner_is_found_among_thousands_of_equal_captions():
    captions = Captions(["a"] * 5000 + ["b"])
    negatives = MisalignedCaptions(captions, np.arange(5001))
    assert {negatives.partner(0, key) for key in random_choices.sample_keys(0, 0, np.arange(20)).tolist()} == {5000}


def test_all_captions_the_same_is_an_error():
    with pytest.raises(UserError, match="alignment needs different captions of at least two images"):
        MisalignedCaptions(Captions(["a"] * 9), np.arange(9))


def several(lists) -> Captions:
    """Captions of images from numbers of texts."""
    return Captions([[f"caption {text}" for text in texts] for texts in lists])


def joined_by_hand(lists) -> list[set[int]]:
    """Sets of images that share a text, directly or through others: sets are merged until none share one."""
    groups = [({image}, set(texts)) for image, texts in enumerate(lists) if texts]
    while True:
        for a in groups:
            other = next((b for b in groups if b is not a and a[1] & b[1]), None)
            if other:
                groups = [g for g in groups if g is not a and g is not other] + [(a[0] | other[0], a[1] | other[1])]
                break
        else:
            return [images for images, _ in groups]


IMAGES = st.lists(st.lists(st.integers(0, 150), max_size=4), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(IMAGES)
def test_images_are_linked_by_equal_texts(lists):
    captions = several(lists)
    groups = linked_texts(captions)
    for number in np.flatnonzero(captions.text_ids < 0):
        assert groups[number] == -1
    found = {}
    for number in np.flatnonzero(captions.text_ids >= 0):
        found.setdefault(int(groups[number]), set()).add(int(captions.images_of(number)))
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, joined_by_hand(lists)))
    assert set(found) <= set(captions.text_ids.tolist())


@settings(max_examples=60, deadline=None)
@given(IMAGES, st.integers(0, 60), st.integers(0, 80))
def test_neither_an_image_nor_a_text_is_on_both_sides(lists, wanted, near):
    captions = several(lists)
    among = int(captions.begins[min(near, len(lists))])
    training, validation = split_pairs(captions, wanted, among)
    sides = [{int(captions.images_of(n)) for n in side} for side in (training, validation)]
    assert not sides[0] & sides[1]
    assert not {captions[n] for n in training} & {captions[n] for n in validation}
    assert (validation < among).all()
    for side, images in zip((training, validation), sides, strict=True):
        assert side.tolist() == [n for image in sorted(images) for n in captions.of_image(image)]
    if among == len(captions.texts):
        assert len(training) + len(validation) == sum(map(len, lists))


def test_many_images_linked_in_a_chain_are_trained_on():
    """Half of 400 images are one chain by their second captions."""
    captions = several(
        [[n, 1000 + n + (n >= 200), 1000 + n + 1] for n in range(200)] + [[2000 + n] for n in range(200)]
    )
    for wanted in (20, 50):
        training, validation = split_pairs(captions, wanted, len(captions.texts))
        assert set(range(600)) <= set(training.tolist()) and len(validation) == wanted


def test_linked_images_are_as_likely_to_be_held_out_as_others():
    """By the smallest of their texts' hashes, images of many texts would come first."""
    lists = [[10 * n + k for k in range(9)] for n in range(1000)] + [[10_000 + n] for n in range(1000)]
    captions = several(lists)
    validation = split_pairs(captions, 1000, len(captions.texts))[1]
    images = np.unique(captions.images_of(validation))
    assert 70 < (images < 1000).sum() < 130 and 70 < (images >= 1000).sum() < 130


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=2, max_size=8))
def test_a_partner_is_none_of_the_images_own_captions(lists):
    captions = several(lists)
    numbers = np.arange(len(captions.texts))
    everything = {text for texts in lists for text in texts}
    if any(everything <= set(texts) for texts in lists):
        with pytest.raises(UserError, match="alignment needs different captions of at least two images"):
            MisalignedCaptions(captions, numbers)
        return
    negatives = MisalignedCaptions(captions, numbers)
    for number in numbers.tolist():
        image = int(captions.images_of(number))
        for key in random_choices.sample_keys(0, 0, np.arange(20)).tolist():
            assert captions[negatives.partner(number, key)] not in {f"caption {text}" for text in lists[image]}


def test_an_image_gets_each_of_its_captions_about_as_often():
    captions = several([[0, 1, 2], [3], [4, 5]])
    images = np.tile([0, 1, 2], 3000)
    drawn = captions.drawn(images, random_choices.sample_keys(5, 7, np.arange(len(images))))
    assert (captions.images_of(drawn) == images).all()
    counts = np.bincount(drawn, minlength=6) / 3000
    assert np.abs(counts - [1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2]).max() < 0.03


def test_the_caption_does_not_depend_on_whether_the_pair_is_misaligned():
    keys = random_choices.sample_keys(0, 0, np.arange(20_000))
    misaligned = random_choices.misaligned(keys)
    picks = random_choices.choose_captions(keys, np.full(len(keys), 5))
    shares = [np.bincount(picks[side], minlength=5) / side.sum() for side in (misaligned, ~misaligned)]
    assert np.abs(np.array(shares) - 1 / 5).max() < 0.02
