"""The world's annotations are true of its scenes, single out what they should, and give nothing away in words."""

from collections import Counter

import numpy as np
import pytest

from shards.world import expressions, questions, statements
from shards.world.language import VALUES, attributes_of, matching, related, singling_out
from shards.world.scenes import HEIGHT, WIDTH, Thing, bounding_box, make_scene

SCENES = [make_scene(np.random.default_rng([5, n]), (2, 3, 4)) for n in range(400)]


def rng_of(n):
    return np.random.default_rng([6, n])


def thing(kind="star", colour="red", size="small", pattern="plain", x=80.0, y=60.0) -> Thing:
    return Thing(kind, colour, size, pattern, x, y, 10, 0)


def test_singling_out_uses_as_few_attributes_as_there_may_be():
    for n, things in enumerate(SCENES):
        target = things[n % len(things)]
        known = singling_out(things, target, rng_of(n))
        if known is None:
            said = ("kind", "colour", "size") + (("pattern",) if target.pattern != "plain" else ())
            assert len(matching(things, attributes_of(target, said))) > 1
            continue
        assert matching(things, known) == [target]
        if len(known) > 1:
            assert all(len(matching(things, {name: value})) > 1 for name, value in known.items())


def test_sides_are_said_where_they_are_clear():
    left, right = thing(x=20), thing(x=60)
    assert related(left, "left", right) and not related(left, "right", right)
    assert related(left, "above", right) is None and related(thing(y=10), "above", thing(y=50))


@pytest.mark.parametrize("style", ["refcoco", "refcoco+", "refcocog"])
def test_expressions_of_one_picture_differ_from_target_to_target(style):
    """Nothing that is said of one object is ever said of another of the same picture."""
    said = 0
    for n, things in enumerate(SCENES[:150]):
        of = {}
        for draw in range(12):
            target = things[draw % len(things)]
            text = expressions.expression(things, target, style, np.random.default_rng([n, draw]))
            if text is not None:
                assert of.setdefault(text, target) is target, (text, things)
                said += 1
    assert said > 1000
    places = ("left", "right", "top", "bottom", "above", "below", "over", "under")
    words = {w for things in SCENES[:50] for w in (expressions.by_look(things, things[0], rng_of(1)) or "").split()}
    assert not words & set(places)


def test_dialogues_leave_the_target_alone():
    asked = 0
    for n, things in enumerate(SCENES[:200]):
        turns = expressions.dialogue(things, things[0], rng_of(n))
        if turns is not None:
            asked += len(turns)
            assert {answer for _, answer in turns} <= {"Yes", "No", "N/A"}
    assert asked > 200


def test_answers_are_those_of_the_scene():
    red_star, blue_ring = thing(x=30), thing("ring", "blue", "large", "striped", x=120)
    things, seen = [red_star, blue_ring], {}
    for n in range(20000):
        kinds = (*questions.OPEN, *questions.CLOSED, *questions.COMPOSED)
        question = kinds[n % len(kinds)](things, np.random.default_rng(n))
        if question is not None:
            assert seen.setdefault(question.text, question.answer) == question.answer
    expected = {
        "What color is the star?": "red",
        "What color is the large thing?": "blue",
        "How many rings are there?": "1",
        "How many green things are there?": "0",
        "Is there a red star?": "yes",
        "Is there a blue star?": "no",
        "Is the star left of the ring?": "yes",
        "Is the star right of the ring?": "no",
        "Are there more stars than rings?": "no",
        "Are there as many stars as rings?": "yes",
    }
    assert {text: seen.get(text) for text in expected} == expected


def test_entailed_questions_follow_from_the_answers():
    """Attributes are those that the question asked for; relations the other way round are what is asked directly."""
    directly: dict[tuple[int, str], str] = {}
    entailed: list[tuple[int, questions.Question]] = []
    for n in range(20000):
        scene = n % 20
        question = questions.COMPOSED[n % len(questions.COMPOSED)](SCENES[scene], np.random.default_rng(n))
        if question is None:
            continue
        directly[scene, question.text] = question.answer
        entailed += [(scene, one) for one in question.entails]
        if question.structure in ("query", "choose"):
            [one] = question.entails
            assert one.answer == "yes" and one.text.removesuffix("?").split()[-1] == question.answer
            assert one.program[:-1] == question.program[:-1] and question.answer in question.valid
            assert one.valid == ("yes", "no") and question.answer in (question.options or question.valid)
    known = [(directly[scene, one.text], one.answer) for scene, one in entailed if (scene, one.text) in directly]
    assert len(known) > 300 and all(one == other for one, other in known)


@pytest.mark.parametrize("kind", [questions.ask_presence, questions.ask_relation, questions.ask_comparison])
def test_yes_and_no_are_as_frequent_whatever_the_words(kind):
    answers, first = Counter(), {}
    for n, things in enumerate(SCENES * 5):
        question = kind(things, rng_of(n))
        if question is not None:
            answers[question.answer] += 1
            first.setdefault(" ".join(question.text.split()[:3]), Counter())[question.answer] += 1
    assert 0.4 < answers["yes"] / answers.total() < 0.6
    for opening, counts in first.items():
        if counts.total() > 150:
            assert 0.3 < counts["yes"] / counts.total() < 0.7, (opening, counts)


def test_people_mostly_agree():
    question = questions.Question("What shape is the red thing?", "crescent", "other", "query")
    said = Counter(answer for n in range(300) for answer in questions.people_say(question, rng_of(n)))
    assert 0.7 < said["crescent"] / said.total() < 0.9 and said["moon"] > 100 and len(said) > 5
    assert "a crescent".capitalize() in said


def test_a_statement_has_pairs_that_make_it_true_and_pairs_that_make_it_false():
    made = 0
    for n in range(150):
        statement = statements.make_statement(rng_of(n))
        for truth in (True, False):
            pair = statements.make_pair(statement, truth, rng_of(1000 + n))
            if pair is not None:
                assert statement.true(*pair) == truth
                made += 1
    assert made > 290


def test_hypotheses_have_the_label_that_the_scene_gives_them():
    for n, things in enumerate(SCENES * 3):
        label = statements.LABELS[n % 3]
        text = statements.make_hypothesis(things, label, rng_of(n))
        if text is None:
            continue
        unseen = any(word in text for word in statements.UNSEEN)
        if label == "entailment":
            assert " or " in text or not unseen
        elif label == "neutral":
            assert unseen
    openings = Counter()
    for n, things in enumerate(SCENES * 8):
        label = statements.LABELS[n % 3]
        text = statements.make_hypothesis(things, label, rng_of(n))
        if text and " or " in text:
            openings[label] += 1
    assert min(openings.values()) > 0.15 * openings.total()


def test_boxes_hold_what_is_drawn():
    for things in SCENES[:60]:
        for one in things:
            x1, y1, x2, y2 = bounding_box(one)
            assert 0 <= x1 < x2 <= WIDTH and 0 <= y1 < y2 <= HEIGHT
            assert x1 >= one.x - 1.25 * one.radius - 1 and x2 <= one.x + 1.25 * one.radius + 1
    assert set(VALUES) == {"kind", "colour", "size", "pattern"}
