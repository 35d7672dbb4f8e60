"""Phrases for objects in the annotations of the miniature world: sets of attributes and the objects they identify."""

from itertools import combinations

import numpy as np

from shards.world.captions import NOUNS, PATTERN_WORDS, SIZES
from shards.world.scenes import COLOURS, KINDS, PATTERNS, Thing

NAMES = ("kind", "colour", "size", "pattern")
VALUES = {"kind": KINDS, "colour": tuple(COLOURS), "size": tuple(SIZES), "pattern": PATTERNS}
ANY = ("thing", "shape", "object")  # nouns if the kind is not mentioned

Attributes = dict[str, str]


def choose(options, rng: np.random.Generator):
    """A uniformly random option."""
    return options[int(rng.integers(len(options)))]


def attributes_of(thing: Thing, names=NAMES) -> Attributes:
    return {name: getattr(thing, name) for name in names}


def matches(thing: Thing, attributes: Attributes) -> bool:
    return all(getattr(thing, name) == value for name, value in attributes.items())


def matching(things: list[Thing], attributes: Attributes) -> list[Thing]:
    return [thing for thing in things if matches(thing, attributes)]


def singling_out(things: list[Thing], target: Thing, rng: np.random.Generator, without=()) -> Attributes | None:
    """A smallest set of attributes (a random one) that only the target has, or None.

    without: names that must not be used. A plain pattern is never mentioned, so it is not used either.
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
    """ "small striped red ring", with synonyms, and "thing" or similar if the kind is not mentioned."""
    parts = []
    if "size" in attributes:
        parts.append(choose(SIZES[attributes["size"]], rng))
    if attributes.get("pattern", "plain") != "plain":
        parts.append(choose(PATTERN_WORDS[attributes["pattern"]], rng))
    if "colour" in attributes:
        parts.append(attributes["colour"])
    noun = choose(NOUNS[attributes["kind"]] if "kind" in attributes else ANY, rng)
    parts.append(plural_of(noun) if plural else noun)
    return " ".join(parts)


def plural_of(noun: str) -> str:
    if noun.endswith("s") or noun.endswith("x"):
        return noun + "es"
    return noun + "s"


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def is_left(one_thing: Thing, other: Thing) -> bool | None:
    """Whether a thing is left of another; None if that is ambiguous."""
    return _beyond(other.x - one_thing.x)


def is_above(one_thing: Thing, other: Thing) -> bool | None:
    return _beyond(other.y - one_thing.y)


def _beyond(distance: float) -> bool | None:
    return None if abs(distance) < CLEAR else distance > 0


CLEAR = 14  # minimum distance of centres, in pixels, for an unambiguous relation
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def related(first: Thing, relation: str, second: Thing) -> bool | None:
    """Whether the first thing is left, right, above or below the second; None if that is ambiguous."""
    if relation in ("left", "right"):
        left = is_left(first, second)
        return left if left is None or relation == "left" else not left
    above = is_above(first, second)
    return above if above is None or relation == "above" else not above
