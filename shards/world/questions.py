"""Questions about a scene with their answers, for VQA, Visual Genome QA and GQA.

Questions with the answers yes and no are generated in the same way, so that the words do not reveal the answer.
"""

from dataclasses import dataclass

import numpy as np

from shards.world.captions import NOUNS
from shards.world.language import (
    RELATIONS,
    VALUES,
    Attributes,
    attributes_of,
    choose,
    matching,
    related,
    singling_out,
    with_article,
    words,
)
from shards.world.scenes import Thing

Program = tuple[tuple[str, str], ...]  # (operation, argument), as in GQA
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
OFFICIAL = {"colour": "color"}  # names of attributes with another spelling in GQA


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        kind: VQA's answer_type (yes/no, number, other).
        structure, about: GQA's types.structural and types.semantic.
        program: GQA's functional program.
        entails: questions whose answers follow from this one.
        options: answers that the question mentions.
    """

    text: str
    answer: str
    kind: str
    structure: str
    about: str = "obj"
    program: Program = ()
    entails: "tuple[Question, ...]" = ()
    options: tuple[str, ...] = ()

    @property
    def valid(self) -> tuple[str, ...]:
        """The answers that are valid for this type of question."""
        if self.kind == "yes/no":
            return ("yes", "no")
        return VALUES["colour" if self.answer in VALUES["colour"] else "kind"]

    @property
    def group(self) -> str | None:
        """GQA's groups.global: open questions with the same type of answer."""
        if self.structure != "query" or self.kind != "other":
            return None
        return "color" if self.answer in VALUES["colour"] else "shape"


def select(known: Attributes) -> Program:
    """The operations that select the things with these attributes."""
    others = (name for name in known if name != "kind")
    return (("select", known.get("kind", "thing")), *((f"filter {OFFICIAL.get(n, n)}", known[n]) for n in others))


def verify(thing: str, name: str, value: str, program: Program) -> Question:
    """A question whether the thing identified by a phrase and a program has its actual value; the answer is yes."""
    text = f"Is the {thing} {with_article(value) if name == 'kind' else value}?"
    step = (f"verify {OFFICIAL.get(name, name)}", value)
    return Question(text, "yes", "yes/no", "verify", "attr", (*program, step))


def ask_colour(things: list[Thing], rng: np.random.Generator) -> Question | None:
    target = choose(things, rng)
    known = singling_out(things, target, rng, without=("colour",))
    if known is None:
        return None
    thing = words(known, rng)
    text = choose(
        (f"What color is the {thing}?", f"What is the color of the {thing}?", f"Which color has the {thing}?"), rng
    )
    program = select(known)
    entailed = verify(thing, "colour", target.colour, program)
    return Question(text, target.colour, "other", "query", "attr", (*program, ("query", "color")), (entailed,))


def ask_shape(things: list[Thing], rng: np.random.Generator) -> Question | None:
    target = choose(things, rng)
    known = singling_out(things, target, rng, without=("kind",))
    if known is None:
        return None
    thing = words(known, rng)
    text = choose((f"What shape is the {thing}?", f"What is the {thing}?", f"Which shape has the {thing}?"), rng)
    program = select(known)
    entailed = verify(thing, "kind", target.kind, program)
    return Question(text, target.kind, "other", "query", "cat", (*program, ("query", "name")), (entailed,))


def ask_neighbour(things: list[Thing], rng: np.random.Generator) -> Question | None:
    """Asks for the only object on one side of another one."""
    target, relation = choose(things, rng), choose(tuple(RELATIONS), rng)
    known = singling_out(things, target, rng)
    sides = [related(thing, relation, target) for thing in things if thing is not target]
    found = [thing for thing in things if thing is not target and related(thing, relation, target)]
    if known is None or None in sides or len(found) != 1:
        return None
    place = f"{choose(RELATIONS[relation], rng)} the {words(known, rng)}"
    program = (*select(known), ("relate", f"thing,{OPPOSITES[relation]},s"))
    if rng.random() < 0.5:
        text, name, asked = f"What color is the thing {place}?", "colour", "color"
    else:
        text, name, asked = choose((f"What is {place}?", f"Which shape is {place}?"), rng), "kind", "name"
    answer = getattr(found[0], name)
    entailed = verify(f"thing {place}", name, answer, program)
    return Question(text, answer, "other", "query", "rel", (*program, ("query", asked)), (entailed,))


def ask_number(things: list[Thing], rng: np.random.Generator) -> Question:
    name = choose(("kind", "colour", "size"), rng)
    known = {name: getattr(choose(things, rng), name) if rng.random() < 0.85 else choose(VALUES[name], rng)}
    what = words(known, rng, plural=True)
    text = choose(
        (f"How many {what} are there?", f"How many {what} are in the picture?", f"What number of {what} is here?"), rng
    )
    return Question(text, str(len(matching(things, known))), "number", "query")


def ask_presence(things: list[Thing], rng: np.random.Generator) -> Question:
    known, there = present_or_not(things, rng)
    what = with_article(words(known, rng))
    text = choose((f"Is there {what}?", f"Is there {what} in the picture?", f"Do you see {what}?"), rng)
    program = (*select(known), ("exist", "?"))
    return Question(text, "yes" if there else "no", "yes/no", "verify", "obj", program)


def present_or_not(things: list[Thing], rng: np.random.Generator) -> tuple[Attributes, bool]:
    """Two attributes, and whether an object has both; in half of the cases none has, though each may occur."""
    first = attributes_of(
        choose(things, rng), choose((("kind", "colour"), ("kind", "pattern"), ("colour", "size")), rng)
    )
    if rng.random() < 0.5:
        return first, True
    for _ in range(20):
        name = choose(tuple(first), rng)
        changed = first | {
            name: getattr(choose(things, rng), name) if rng.random() < 0.6 else choose(VALUES[name], rng)
        }
        if not matching(things, changed):
            return changed, False
    return first, True


def ask_relation(things: list[Thing], rng: np.random.Generator) -> Question | None:
    if len(things) < 2:
        return None
    first, second = (things[int(n)] for n in rng.permutation(len(things))[:2])
    known = [singling_out(things, thing, rng) for thing in (first, second)]
    relation = choose(tuple(RELATIONS), rng)
    true = related(first, relation, second)
    if None in known or true is None:
        return None
    one_phrase, place, other_phrase = words(known[0], rng), choose(RELATIONS[relation], rng), words(known[1], rng)
    answer, opposite = "yes" if true else "no", OPPOSITES[relation]
    program, reverse = (
        (*select(subject), ("verify rel", f"thing,{side},o"))
        for subject, side in zip(known, (relation, opposite), strict=True)
    )
    text = f"Is the {other_phrase} {RELATIONS[opposite][0]} the {one_phrase}?"
    entailed = Question(text, answer, "yes/no", "verify", "rel", reverse)
    text = f"Is the {one_phrase} {place} the {other_phrase}?"
    return Question(text, answer, "yes/no", "verify", "rel", program, (entailed,))


def ask_comparison(things: list[Thing], rng: np.random.Generator) -> Question | None:
    """Compares the numbers of objects with two values, one of which may not occur: more, fewer or as many.

    Only asked if both a true and a false question are possible, so that the words do not reveal the answer.
    """
    name, wording, true = choose(("kind", "colour"), rng), choose(tuple(_COMPARED), rng), bool(rng.random() < 0.5)
    counts = {value: len(matching(things, {name: value})) for value in {getattr(thing, name) for thing in things}}
    counts[choose([value for value in VALUES[name] if value not in counts], rng)] = 0
    pairs = [(first, second) for first in sorted(counts) for second in sorted(counts) if first != second]
    fitting = [[p for p in pairs if _COMPARED[wording](counts[p[0]], counts[p[1]]) == truth] for truth in (False, True)]
    if not all(fitting):
        return None
    values = choose(fitting[true], rng)
    first, second = (words({name: value}, rng, plural=True) for value in values)
    link = "as" if wording == "as many" else "than"
    text, answer = f"Are there {wording} {first} {link} {second}?", "yes" if true else "no"
    program = tuple(step for value in values for step in select({name: value}))
    return Question(text, answer, "yes/no", "compare", "obj", (*program, (wording, "")))


_COMPARED = {
    "more": lambda first, second: first > second,
    "fewer": lambda first, second: first < second,
    "as many": lambda first, second: first == second,
}


def ask_choice(things: list[Thing], rng: np.random.Generator) -> Question | None:
    target, name = choose(things, rng), choose(("colour", "kind"), rng)
    known = singling_out(things, target, rng, without=(name,))
    if known is None:
        return None
    right = getattr(target, name)
    options = [right, choose([value for value in VALUES[name] if value != right], rng)]
    first, second = (options[int(n)] for n in rng.permutation(2))
    if name == "kind":
        first, second = with_article(first), with_article(second)
    thing, program = words(known, rng), select(known)
    step = (f"choose {'name' if name == 'kind' else 'color'}", "|".join(options))
    return Question(
        f"Is the {thing} {first} or {second}?",
        right,
        "other",
        "choose",
        "cat" if name == "kind" else "attr",
        (*program, step),
        (verify(thing, name, right, program),),
        tuple(options),
    )


def ask_both(things: list[Thing], rng: np.random.Generator) -> Question:
    """Asks whether two kinds of objects are present, joined by "and" or "or"."""
    (one_known, one_there), (two_known, two_there) = present_or_not(things, rng), present_or_not(things, rng)
    first, second = with_article(words(one_known, rng)), with_article(words(two_known, rng))
    if rng.random() < 0.5:
        true, text = one_there and two_there, f"Are there both {first} and {second}?"
    else:
        true, text = one_there or two_there, f"Is there either {first} or {second}?"
    parts = (*select(one_known), ("exist", "?"), *select(two_known), ("exist", "?"))
    program = (*parts, ("and" if text.startswith("Are") else "or", ""))
    return Question(text, "yes" if true else "no", "yes/no", "logical", "obj", program)


OPEN = (ask_colour, ask_shape, ask_neighbour, ask_number)
CLOSED = (ask_presence, ask_relation, ask_comparison)
COMPOSED = (ask_neighbour, ask_relation, ask_comparison, ask_choice, ask_both, ask_presence, ask_colour, ask_shape)


def ask(things: list[Thing], kinds, count: int, rng: np.random.Generator) -> list[Question]:
    """`count` different questions of these kinds in turn; fewer if the scene does not have enough."""
    found: dict[str, Question] = {}
    for attempt in range(20 * count):
        question = kinds[attempt % len(kinds)](things, rng)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def people_say(question: Question, rng: np.random.Generator, people: int = 10) -> list[str]:
    """Answers of ten annotators: mostly correct, some in other words, some wrong."""
    answers = []
    for _ in range(people):
        luck, answer = rng.random(), question.answer
        if luck < 0.12:
            if question.kind == "yes/no":
                answer = "no" if answer == "yes" else "yes"
            elif question.kind == "number":
                answer = str(max(0, int(answer) + choose((-1, 1), rng)))
            else:
                answer = choose(VALUES["kind" if answer in VALUES["kind"] else "colour"], rng)
        elif luck < 0.25 and answer in NOUNS:
            answer = choose(NOUNS[answer], rng)
        elif luck < 0.3 and question.kind == "other":
            answer = with_article(answer).capitalize() if answer in NOUNS else f"{answer}."
        answers.append(answer)
    return answers
