"""Statements about two images (NLVR2) and hypotheses about one (SNLI-VE), whose words do not reveal the label.

Every statement has pairs of images for which it is true and pairs for which it is false, drawn in the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shards.world.captions import NUMBERS
from shards.world.language import VALUES, Attributes, choose, matching, with_article, words
from shards.world.scenes import Thing, make_scene

Scene = list[Thing]
TRIES = 400


@dataclass(frozen=True)
class Statement:
    """A sentence with a function of (left, right) that determines whether it is true. about: attributes it mentions."""

    text: str
    true: Callable[[Scene, Scene], bool]
    about: Attributes


def make_statement(rng: np.random.Generator) -> Statement:
    about = {"colour": choose(VALUES["colour"], rng), "kind": choose(VALUES["kind"], rng)}
    if rng.random() < 0.25:
        about = {"pattern": choose(("striped", "dotted"), rng), "kind": about["kind"]}
    usual, rarer = (_both, _either, _one_side), (_only_one, _in_all, _more, _none)
    return choose((*usual, *usual, *rarer), rng)(about, rng)


def _both(about: Attributes, rng: np.random.Generator) -> Statement:
    what = with_article(words(about, rng))
    text = choose((f"Both images have {what}.", f"There is {what} in each image.", f"Each picture shows {what}."), rng)
    return Statement(text, lambda left, right: bool(matching(left, about) and matching(right, about)), about)


def _either(about: Attributes, rng: np.random.Generator) -> Statement:
    what = with_article(words(about, rng))
    text = choose((f"At least one of the images shows {what}.", f"There is {what} in one image or in both."), rng)
    return Statement(text, lambda left, right: bool(matching(left, about) or matching(right, about)), about)


def _one_side(about: Attributes, rng: np.random.Generator) -> Statement:
    what, side = with_article(words(about, rng)), choose(("left", "right"), rng)
    text = choose(
        (f"The {side} image has {what}.", f"There is {what} on the {side}.", f"{what} is on the {side}."), rng
    )
    text = text[0].upper() + text[1:]
    return Statement(text, lambda left, right: bool(matching(left if side == "left" else right, about)), about)


def _only_one(about: Attributes, rng: np.random.Generator) -> Statement:
    what = with_article(words(about, rng))
    text = choose((f"Only one of the images has {what}.", f"There is {what} in exactly one of the two images."), rng)
    return Statement(text, lambda left, right: bool(matching(left, about)) != bool(matching(right, about)), about)


def _in_all(about: Attributes, rng: np.random.Generator) -> Statement:
    name = choose(tuple(about), rng)
    about, number = {name: about[name]}, int(rng.integers(1, 4))
    what = words(about, rng, plural=number > 1)
    text = choose(
        (f"There are {NUMBERS[number]} {what} in all.", f"The two images show {NUMBERS[number]} {what}."), rng
    )
    text = text.replace("There are one", "There is one")
    return Statement(
        text, lambda left, right: len(matching(left, about)) + len(matching(right, about)) == number, about
    )


def _more(about: Attributes, rng: np.random.Generator) -> Statement:
    name = choose(tuple(about), rng)
    about = {name: about[name]} if rng.random() < 0.7 else {}
    what, side = words(about, rng, plural=True), choose(("left", "right"), rng)
    other = "right" if side == "left" else "left"
    text = choose(
        (f"The {side} image has more {what} than the {other} one.", f"There are more {what} on the {side}."), rng
    )

    def true(left: Scene, right: Scene) -> bool:
        counts = [len(matching(scene, about)) for scene in (left, right)]
        return counts[0] > counts[1] if side == "left" else counts[1] > counts[0]

    return Statement(text, true, about)


def _none(about: Attributes, rng: np.random.Generator) -> Statement:
    name, side = choose(tuple(about), rng), choose(("left", "right"), rng)
    about = {name: about[name]}
    text = choose(
        (f"The {side} image has no {words(about, rng, True)}.", f"No {words(about, rng)} is in the {side} image."), rng
    )
    return Statement(text, lambda left, right: not matching(left if side == "left" else right, about), about)


def make_pair(statement: Statement, truth: bool, rng: np.random.Generator) -> tuple[Scene, Scene] | None:
    """Two scenes for which the statement is true (or false), in which the attributes it mentions are frequent."""
    for _ in range(TRIES):
        left, right = (_scene_about(statement.about, rng) for _ in range(2))
        if statement.true(left, right) == truth:
            return left, right
    return None


def _scene_about(about: Attributes, rng: np.random.Generator) -> Scene:
    things = make_scene(rng, (2, 3, 4))
    for place in range(len(things)):
        if about and rng.random() < 0.35:
            part = dict(about)
            if len(part) > 1 and rng.random() < 0.4:  # only some of the attributes
                part.pop(choose(tuple(part), rng))
            things[place] = replace(things[place], **part)
    return things


UNSEEN = ("heavy", "old", "soft", "made of wood", "made of paper", "expensive", "somebody's toy", "warm")
LABELS = ("entailment", "neutral", "contradiction")


def make_hypothesis(things: Scene, label: str, rng: np.random.Generator) -> str | None:
    """A sentence that a scene entails, contradicts, or does not determine; None if the random choices do not fit.

    An invisible property is neutral for an object in the scene, and a contradiction for one that is not in it.
    """
    name, other = choose((("kind", "colour"), ("colour", "kind")), rng)
    form = choose({"entailment": "AC", "neutral": "BC", "contradiction": "AABC"}[label], rng)
    absent = label == "contradiction" and form != "A"
    if absent:
        there = {getattr(thing, name) for thing in things}
        value = choose([value for value in VALUES[name] if value not in there], rng)
        said = choose(VALUES[other], rng)
    else:
        thing = choose(things, rng)
        value = getattr(thing, name)
        if len(matching(things, {name: value})) != 1:
            return None
        right = getattr(thing, other)
        said = right if label == "entailment" else choose([v for v in VALUES[other] if v != right], rng)
    subject = f"The {words({name: value}, rng)}"
    seen = with_article(words({"kind": said}, rng)) if other == "kind" else said
    unseen = choose(UNSEEN, rng)
    claim = {"A": seen, "B": unseen, "C": f"{seen} or {unseen}"}[form]
    return f"{subject} is {claim}{choose(('.', ''), rng)}"
