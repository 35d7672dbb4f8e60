"""Referring expressions, dialogues and pointing questions, which identify one object of a scene."""

import numpy as np

from shards.world.language import (
    CLEAR,
    NAMES,
    RELATIONS,
    VALUES,
    attributes_of,
    choose,
    matching,
    related,
    singling_out,
    with_article,
    words,
)
from shards.world.scenes import HEIGHT, WIDTH, Thing

ENDS = {"left": ("x", -1), "right": ("x", 1), "top": ("y", -1), "bottom": ("y", 1)}


def by_place(things: list[Thing], target: Thing, rng: np.random.Generator) -> str | None:
    """ "left star", "the star on the right": the outermost object with some attributes (RefCOCO)."""
    names = choose((("kind",), ("colour",), ("kind", "colour"), ()), rng)
    rivals = [thing for thing in matching(things, attributes_of(target, names)) if thing is not target]
    if not rivals:
        return None
    what = words(attributes_of(target, names), rng)
    for place in rng.permutation(len(ENDS)):
        end, (axis, sign) = list(ENDS.items())[place]
        if all(sign * (getattr(target, axis) - getattr(rival, axis)) > CLEAR for rival in rivals):
            return choose((f"{end} {what}", f"the {what} on the {end}", f"{what} at the {end}"), rng)
    return None


def by_look(things: list[Thing], target: Thing, rng: np.random.Generator) -> str | None:
    """ "the striped ring": only attributes, no positions (RefCOCO+)."""
    known = singling_out(things, target, rng)
    if known is None:
        return None
    what = words(known, rng)
    return choose((what, f"the {what}", f"{what} please"), rng)


def by_neighbour(things: list[Thing], target: Thing, rng: np.random.Generator) -> str | None:
    """ "the red star that is left of a blue ring": a clause with a second object, if possible (RefCOCOg)."""
    others = [thing for thing in things if thing is not target]
    for place in rng.permutation(len(others)):
        other, names = others[place], choose((("kind",), ("colour",), ("size", "kind")), rng)
        known = singling_out(things, other, rng)
        rivals = matching(things, attributes_of(target, names))
        for relation in rng.permutation(list(RELATIONS)):
            right = [thing for thing in rivals if thing is not other and related(thing, relation, other) is not False]
            if known and right == [target] and related(target, relation, other):
                what = f"the {words(attributes_of(target, names), rng)}"
                where = f"{choose(RELATIONS[relation], rng)} the {words(known, rng)}"
                return choose((f"{what} that is {where}", f"{what} which lies {where}", f"{what} {where}"), rng)
    known = singling_out(things, target, rng)
    if known is None:
        return None
    more = known | attributes_of(target, ("colour", "kind"))
    return f"{choose(('the', 'one'), rng)} {words(more, rng)} in this picture"


def expression(things: list[Thing], target: Thing, style: str, rng: np.random.Generator) -> str | None:
    """An expression in the style of a data set: refcoco, refcoco+ or refcocog; or None."""
    if style == "refcoco":
        first, second = (by_place, by_look) if rng.random() < 0.6 else (by_look, by_place)
        return first(things, target, rng) or second(things, target, rng)
    return {"refcoco+": by_look, "refcocog": by_neighbour}[style](things, target, rng)


def which(things: list[Thing], target: Thing, rng: np.random.Generator) -> str | None:
    """A question whose answer is one object (Visual7W)."""
    phrase = by_neighbour(things, target, rng) if rng.random() < 0.5 else by_look(things, target, rng)
    if phrase is None:
        return None
    phrase = phrase.removeprefix("the ").removeprefix("one ").removesuffix(" please").removesuffix(" in this picture")
    return choose((f"Which is the {phrase}?", f"Which one is the {phrase}?", f"Which object is the {phrase}?"), rng)


def dialogue(things: list[Thing], target: Thing, rng: np.random.Generator) -> list[tuple[str, str]] | None:
    """(question, answer) turns that identify the target (GuessWhat), or None if that fails.

    Like questions of people, most of them distinguish between the remaining objects.
    """
    left, turns = list(things), []
    for _ in range(40):
        if len(left) == 1:
            return turns
        text, test = _binary(left, rng)
        answers = {test(thing) for thing in left}
        idle = answers in ({True}, {False}) or None in answers
        if text in [asked for asked, _ in turns] or (idle and rng.random() < 0.9):
            continue
        answer = test(target)
        if answer is None:
            turns.append((text, "N/A"))
            continue
        turns.append((text, "Yes" if answer else "No"))
        left = [thing for thing in left if test(thing) in (answer, None)]
    return turns if len(left) == 1 else None


def _binary(left: list[Thing], rng: np.random.Generator):
    """(question, function thing -> answer) about an attribute or the position of one of the remaining objects."""
    if rng.random() < 0.8:
        name = choose(NAMES, rng)
        value = getattr(choose(left, rng), name) if rng.random() < 0.9 else choose(VALUES[name], rng)
        if (name, value) != ("pattern", "plain"):
            what = with_article(words({name: value}, rng))
            return f"Is it {what}?", lambda thing: getattr(thing, name) == value
    side = choose(("left", "right", "upper", "lower"), rng)
    text = choose((f"Is it in the {side} half?", f"Is it on the {side} side of the picture?"), rng)

    def test(thing: Thing) -> bool | None:
        offset = thing.x - WIDTH / 2 if side in ("left", "right") else thing.y - HEIGHT / 2
        if abs(offset) < CLEAR / 2:
            return None
        return (offset < 0) == (side in ("left", "upper"))

    return text, test
