"""VQA's normalisation and accuracy against the official rules, written out slowly, and vocabularies."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.annotations.answers import (
    CONTRACTIONS,
    AnswerVocabulary,
    build_vocabulary,
    normalise,
    read_vocabulary,
    soft_scores,
    vqa_accuracy,
)
from shards.common.errors import UserError


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Dog.", "dog"),
        ("a red ball", "red ball"),
        ("Two", "2"),
        ("none", "0"),
        ("3.5", "3.5"),
        ("1,000 people", "1000 people"),
        ("black-and-white", "black and white"),
        ("red, white", "red white"),
        ("yes/no", "yes no"),
        ("what?", "what"),
        ("dont", "don't"),
        ("youdve", "youdve"),
        ("youd've", "you'd've"),
        ("somebody'd", "somebodyd"),
        ("twas", "'twas"),
        ("Im", "im"),
        ("  it   is  ", "it is"),
        ("the", ""),
        ("!", ""),
        ("", ""),
    ],
)
def test_normal_forms_worked_by_hand(answer, normal):
    assert normalise(answer) == normal


TOKENIZER = st.sampled_from(
    [*";/[]\"{}()=+\\_-><@`,?!.' ", "a", "the", "two", "none", "dont", "2,000", "3.5", "Red", "dog"]
)
TEXTS = st.lists(TOKENIZER, max_size=6).map("".join)


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_normalisation_follows_the_official_steps_one_by_one(text):
    out = text
    for mark in [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]:
        if mark + " " in text or " " + mark in text or re.search(r"(\d)(,)(\d)", text):
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    out = "".join(c for place, c in enumerate(out) if c != "." or (place + 1 < len(out) and out[place + 1].isdigit()))
    numbers = {"none": "0", "two": "2"}
    words = [numbers.get(word, word) for word in out.lower().split()]
    words = [word for word in words if word not in ("a", "an", "the")]
    assert normalise(text) == " ".join(CONTRACTIONS.get(word, word) for word in words)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 12), st.randoms())
def test_accuracy_is_the_mean_over_who_is_left_out(pool, annotators, random):
    answers, said = [random.choice(pool) for _ in range(annotators)], random.choice(pool)
    plain = [answer.strip() for answer in answers]
    same = len(set(plain)) == 1
    form = str.strip if same else lambda text: normalise(text.strip())
    total = 0
    for left_out in range(annotators):
        others = [form(answer) for place, answer in enumerate(answers) if place != left_out]
        total += min(1, others.count(form(said)) / 3)
    assert vqa_accuracy(said, answers) == pytest.approx(total / annotators, abs=1e-12)


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_by_how_many_of_ten_agree(agreeing, accuracy):
    answers = ["Yes."] * agreeing + ["no"] * (10 - agreeing)
    assert vqa_accuracy("yes" if agreeing < 10 else "Yes.", answers) == pytest.approx(accuracy)


def test_where_all_say_the_same_nothing_is_normalised():
    assert vqa_accuracy("yes", ["Yes"] * 10) == 0
    assert vqa_accuracy("yes", ["Yes"] * 9 + ["no"]) == 1


def test_soft_scores():
    scores = soft_scores(["a dog", "Dog", "dog.", "cat", "cat", "cat", "cat", "bird", "two", "2"])
    assert scores == pytest.approx({"dog": 0.9, "cat": 1.0, "bird": 0.3, "2": 0.6})


def test_a_vocabulary_has_what_is_frequent_and_can_be_saved(tmp_path):
    vocabulary = build_vocabulary(["yes"] * 3 + ["No."] * 2 + ["no", "red", "a red", "blue"], 2)
    assert vocabulary.answers == ["no", "yes", "red"]
    np.testing.assert_array_equal(vocabulary.target({"yes": 0.6, "red": 1, "blue": 1}), np.float32([0, 0.6, 1]))
    vocabulary.save(tmp_path / "answers.json")
    assert read_vocabulary(tmp_path / "answers.json").answers == vocabulary.answers
    with pytest.raises(UserError, match="no answer is the ground truth of 5 or more questions"):
        build_vocabulary(["yes"] * 4, 5)


def test_vocabularies_from_files(tmp_path, real_data):
    assert len(read_vocabulary(real_data / "vocab" / "vqa_answers.json")) == 3129
    path = tmp_path / "lxmert.json"
    path.write_text(json.dumps([{"ans": "yes", "dsets": []}, {"ans": "no", "dsets": []}]))
    assert read_vocabulary(path).answers == ["yes", "no"]
    for text, complaint in [
        ('["yes", "yes"]', "duplicate answer 'yes'"),
        ("{}", "should be a JSON or pickled list"),
        ("[1]", "list of answers"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=complaint):
            read_vocabulary(path)


def test_a_vocabulary_knows_each_answer_once():
    with pytest.raises(UserError, match="duplicate answer 'yes'"):
        AnswerVocabulary(["yes", "no", "yes"])
