"""Captions of scenes in the miniature world, with several wordings for everything."""

import numpy as np

from shards.world.scenes import Thing

NOUNS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "diamond": ("diamond",),
    "crescent": ("crescent", "moon"),
}
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
PATTERN_WORDS = {"striped": ("striped",), "dotted": ("dotted", "spotted")}
NUMBERS = ("no", "one", "two", "three", "four")


def _one(options, rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def noun_phrase(thing: Thing, rng: np.random.Generator, article: bool = True) -> str:
    """ "a small striped red ring"; size and pattern are mentioned about half of the time, the colour always."""
    words = []
    if rng.random() < 0.5:
        words.append(_one(SIZES[thing.size], rng))
    if thing.pattern != "plain" and rng.random() < 0.6:
        words.append(_one(PATTERN_WORDS[thing.pattern], rng))
    words += [thing.colour, _one(NOUNS[thing.kind], rng)]
    if article:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    return " ".join(words)


def relation(thing: Thing, other: Thing, rng: np.random.Generator) -> str:
    """The position of `thing` relative to `other`, along the axis with the larger distance."""
    dx, dy = thing.x - other.x, thing.y - other.y
    if abs(dx) > abs(dy):
        side = "left" if dx < 0 else "right"
        return _one((f"to the {side} of", f"{side} of", f"on the {side} side of"), rng)
    return _one(("above", "over") if dy < 0 else ("below", "under"), rng)


def make_caption(things: list[Thing], rng: np.random.Generator) -> str:
    """A true sentence about a scene: all of its one or two objects, or two of several objects, or their number."""
    if len(things) == 1:
        phrase = noun_phrase(things[0], rng)
        return _one((phrase, f"there is {phrase}", f"just {phrase}", f"a picture of {phrase}"), rng)
    first, second = (things[int(i)] for i in rng.permutation(len(things))[:2])
    a, b = noun_phrase(first, rng), noun_phrase(second, rng)
    kind = rng.random()
    if kind < 0.5:
        sentence = f"{a} {relation(first, second, rng)} {b}"
        return _one((sentence, f"there is {sentence}", f"we see {sentence}"), rng)
    if kind < 0.8 or len(things) == 2:
        return _one((f"{a} and {b}", f"there are {a} and {b}", f"{a} together with {b}"), rng)
    number = NUMBERS[len(things)]
    return _one((f"{number} shapes, {a} and {b} among them", f"{number} things with {a} and {b}"), rng)
