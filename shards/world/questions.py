"""Questions about a scene with their answers, for VQA, Visual Genome QA and GQA.

Where the answer is yes or no, both are made in the same way, so that nothing in the words says which it is.
"""

from dataclasses import dataclass

import numpy as np

from shards.world.captions import NOUNS
from shards.world.language import (
    RELATIONS,
    VALUES,
    Attributes,
    a,
    attributes_of,
    matching,
    one,
    related,
    singling_out,
    words,
)
from shards.world.scenes import Thing


@dataclass(frozen=True)
class Question:
    """kind: VQA's answer_type (yes/no, number, other); structure: GQA's types.structural."""

    text: str
    answer: str
    kind: str
    structure: str


def ask_colour(things: list[Thing], rng: np.random.Generator) -> Question | None:
    target = one(things, rng)
    known = singling_out(things, target, rng, without=("colour",))
    if known is None:
        return None
    thing = words(known, rng)
    text = one(
        (f"What color is the {thing}?", f"What is the color of the {thing}?", f"Which color has the {thing}?"), rng
    )
    return Question(text, target.colour, "other", "query")


def ask_shape(things: list[Thing], rng: np.random.Generator) -> Question | None:
    target = one(things, rng)
    known = singling_out(things, target, rng, without=("kind",))
    if known is None:
        return None
    thing = words(known, rng)
    text = one((f"What shape is the {thing}?", f"What is the {thing}?", f"Which shape has the {thing}?"), rng)
    return Question(text, target.kind, "other", "query")


def ask_neighbour(things: list[Thing], rng: np.random.Generator) -> Question | None:
    """What lies on one side of something: one thing, and clearly so."""
    target, relation = one(things, rng), one(tuple(RELATIONS), rng)
    known = singling_out(things, target, rng)
    sides = [related(thing, relation, target) for thing in things if thing is not target]
    found = [thing for thing in things if thing is not target and related(thing, relation, target)]
    if known is None or None in sides or len(found) != 1:
        return None
    place = f"{one(RELATIONS[relation], rng)} the {words(known, rng)}"
    if rng.random() < 0.5:
        return Question(f"What color is the thing {place}?", found[0].colour, "other", "query")
    return Question(one((f"What is {place}?", f"Which shape is {place}?"), rng), found[0].kind, "other", "query")


def ask_number(things: list[Thing], rng: np.random.Generator) -> Question:
    name = one(("kind", "colour", "size"), rng)
    known = {name: getattr(one(things, rng), name) if rng.random() < 0.85 else one(VALUES[name], rng)}
    what = words(known, rng, plural=True)
    text = one(
        (f"How many {what} are there?", f"How many {what} are in the picture?", f"What number of {what} is here?"), rng
    )
    return Question(text, str(len(matching(things, known))), "number", "query")


def ask_presence(things: list[Thing], rng: np.random.Generator) -> Question:
    known, there = present_or_not(things, rng)
    what = a(words(known, rng))
    text = one((f"Is there {what}?", f"Is there {what} in the picture?", f"Do you see {what}?"), rng)
    return Question(text, "yes" if there else "no", "yes/no", "verify")


def present_or_not(things: list[Thing], rng: np.random.Generator) -> tuple[Attributes, bool]:
    """Two attributes that something has, or, half of the time, that nothing has though each for itself is there."""
    first = attributes_of(one(things, rng), one((("kind", "colour"), ("kind", "pattern"), ("colour", "size")), rng))
    if rng.random() < 0.5:
        return first, True
    for _ in range(20):
        name = one(tuple(first), rng)
        changed = first | {name: getattr(one(things, rng), name) if rng.random() < 0.6 else one(VALUES[name], rng)}
        if not matching(things, changed):
            return changed, False
    return first, True


def ask_relation(things: list[Thing], rng: np.random.Generator) -> Question | None:
    if len(things) < 2:
        return None
    first, second = (things[int(n)] for n in rng.permutation(len(things))[:2])
    known = [singling_out(things, thing, rng) for thing in (first, second)]
    relation = one(tuple(RELATIONS), rng)
    true = related(first, relation, second)
    if None in known or true is None:
        return None
    text = f"Is the {words(known[0], rng)} {one(RELATIONS[relation], rng)} the {words(known[1], rng)}?"
    return Question(text, "yes" if true else "no", "yes/no", "verify")


def ask_comparison(things: list[Thing], rng: np.random.Generator) -> Question | None:
    """More, fewer or as many, of two values that are there or of one that is not.

    Asked where a true and a false question could be, so that the words tell nothing.
    """
    name, wording, true = one(("kind", "colour"), rng), one(tuple(_COMPARED), rng), bool(rng.random() < 0.5)
    counts = {value: len(matching(things, {name: value})) for value in {getattr(thing, name) for thing in things}}
    counts[one([value for value in VALUES[name] if value not in counts], rng)] = 0
    pairs = [(first, second) for first in sorted(counts) for second in sorted(counts) if first != second]
    fitting = [[p for p in pairs if _COMPARED[wording](counts[p[0]], counts[p[1]]) == truth] for truth in (False, True)]
    if not all(fitting):
        return None
    first, second = (words({name: value}, rng, plural=True) for value in one(fitting[true], rng))
    link = "as" if wording == "as many" else "than"
    return Question(f"Are there {wording} {first} {link} {second}?", "yes" if true else "no", "yes/no", "compare")


_COMPARED = {
    "more": lambda first, second: first > second,
    "fewer": lambda first, second: first < second,
    "as many": lambda first, second: first == second,
}


def ask_choice(things: list[Thing], rng: np.random.Generator) -> Question | None:
    target, name = one(things, rng), one(("colour", "kind"), rng)
    known = singling_out(things, target, rng, without=(name,))
    if known is None:
        return None
    right = getattr(target, name)
    options = [right, one([value for value in VALUES[name] if value != right], rng)]
    first, second = (options[int(n)] for n in rng.permutation(2))
    if name == "kind":
        first, second = a(first), a(second)
    return Question(f"Is the {words(known, rng)} {first} or {second}?", right, "other", "choose")


def ask_both(things: list[Thing], rng: np.random.Generator) -> Question:
    """Two presences joined by and or or."""
    (one_known, one_there), (two_known, two_there) = present_or_not(things, rng), present_or_not(things, rng)
    first, second = a(words(one_known, rng)), a(words(two_known, rng))
    if rng.random() < 0.5:
        true, text = one_there and two_there, f"Are there both {first} and {second}?"
    else:
        true, text = one_there or two_there, f"Is there either {first} or {second}?"
    return Question(text, "yes" if true else "no", "yes/no", "logical")


OPEN = (ask_colour, ask_shape, ask_neighbour, ask_number)
CLOSED = (ask_presence, ask_relation, ask_comparison)
COMPOSED = (ask_neighbour, ask_relation, ask_comparison, ask_choice, ask_both, ask_presence, ask_colour, ask_shape)


def ask(things: list[Thing], kinds, count: int, rng: np.random.Generator) -> list[Question]:
    """`count` questions that differ, of these kinds in turn; fewer where the scene has not so many."""
    found: dict[str, Question] = {}
    for attempt in range(20 * count):
        question = kinds[attempt % len(kinds)](things, rng)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def people_say(question: Question, rng: np.random.Generator, people: int = 10) -> list[str]:
    """What ten annotators answer: mostly the right thing, some in other words, some wrong."""
    said = []
    for _ in range(people):
        luck, answer = rng.random(), question.answer
        if luck < 0.12:
            if question.kind == "yes/no":
                answer = "no" if answer == "yes" else "yes"
            elif question.kind == "number":
                answer = str(max(0, int(answer) + one((-1, 1), rng)))
            else:
                answer = one(VALUES["kind" if answer in VALUES["kind"] else "colour"], rng)
        elif luck < 0.25 and answer in NOUNS:
            answer = one(NOUNS[answer], rng)
        elif luck < 0.3 and question.kind == "other":
            answer = a(answer).capitalize() if answer in NOUNS else f"{answer}."
        said.append(answer)
    return said
