"""How the world's annotations speak of objects: sets of attributes, what they single out, and phrases for them."""

from itertools import combinations

import numpy as np

from shards.world.captions import NOUNS, PATTERN_WORDS, SIZES
from shards.world.scenes import COLOURS, KINDS, PATTERNS, Thing

NAMES = ("kind", "colour", "size", "pattern")
VALUES = {"kind": KINDS, "colour": tuple(COLOURS), "size": tuple(SIZES), "pattern": PATTERNS}
ANY = ("thing", "shape", "object")  # what is said where the kind is not

Attributes = dict[str, str]


def one(options, rng: np.random.Generator):
    """One of some options, each as likely."""
    return options[int(rng.integers(len(options)))]


def attributes_of(thing: Thing, names=NAMES) -> Attributes:
    return {name: getattr(thing, name) for name in names}


def matches(thing: Thing, attributes: Attributes) -> bool:
    return all(getattr(thing, name) == value for name, value in attributes.items())


def matching(things: list[Thing], attributes: Attributes) -> list[Thing]:
    return [thing for thing in things if matches(thing, attributes)]


def singling_out(things: list[Thing], target: Thing, rng: np.random.Generator, without=()) -> Attributes | None:
    """The fewest attributes that only the target has (any such set), or None where there are none.

    without: names that may not be used. A plain pattern is not said, so it singles nothing out.
    """
    names = [name for name in NAMES if name not in without and (name != "pattern" or target.pattern != "plain")]
    for count in range(1, len(names) + 1):
        sets = list(combinations(names, count))
        for place in rng.permutation(len(sets)):
            attributes = attributes_of(target, sets[place])
            if len(matching(things, attributes)) == 1:
                return attributes
    return None


def words(attributes: Attributes, rng: np.random.Generator, plural: bool = False) -> str:
    """ "small striped red ring"; with synonyms, and "thing" or the like where the kind is not said."""
    parts = []
    if "size" in attributes:
        parts.append(one(SIZES[attributes["size"]], rng))
    if attributes.get("pattern", "plain") != "plain":
        parts.append(one(PATTERN_WORDS[attributes["pattern"]], rng))
    if "colour" in attributes:
        parts.append(attributes["colour"])
    noun = one(NOUNS[attributes["kind"]] if "kind" in attributes else ANY, rng)
    parts.append(plural_of(noun) if plural else noun)
    return " ".join(parts)


def plural_of(noun: str) -> str:
    if noun.endswith("s") or noun.endswith("x"):
        return noun + "es"
    return noun + "s"


def a(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def is_left(one_thing: Thing, other: Thing) -> bool | None:
    """Whether a thing lies left of another; None where neither side is clear."""
    return _beyond(other.x - one_thing.x)


def is_above(one_thing: Thing, other: Thing) -> bool | None:
    return _beyond(other.y - one_thing.y)


def _beyond(distance: float) -> bool | None:
    return None if abs(distance) < CLEAR else distance > 0


CLEAR = 14  # pixels between centres from which a side is clear to everybody
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def related(first: Thing, relation: str, second: Thing) -> bool | None:
    """Whether the first thing is left, right, above or below the second; None where it is not clear."""
    if relation in ("left", "right"):
        left = is_left(first, second)
        return left if left is None or relation == "left" else not left
    above = is_above(first, second)
    return above if above is None or relation == "above" else not above
