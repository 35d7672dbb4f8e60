"""The page of grounding consistency: pairs of a question and an expression with (in)consistent predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageDraw

from finetune.annotations.example import Box
from finetune.data.regions import Regions
from finetune.evaluation.pos_tagger import Tagger
from finetune.inference.consistency_of_runs import JudgedTask
from finetune.pages.html_page import escape, picture, write_page
from shards.images.source_image import image_of

SHOWN = 24  # pairs of each kind on the page
WIDTH = 480  # pixels of a picture on the page
RIGHT, CHOSEN = "#0072b2", "#d55e00"  # blue and vermilion, distinguishable for colour-blind readers


@dataclass(frozen=True)
class SharedPair:
    """A question and an expression about the same image that share words.

    answered, found: accuracy of the answer and of the box; box, right_box: predicted and ground-truth box, in pixels of
    the annotations.
    """

    image: str
    words: tuple[str, ...]
    question: str
    answer: str
    right_answer: str
    answered: float
    expression: str
    box: Box
    right_box: Box
    found: float


def choose_pairs(pairs: Sequence[SharedPair], count: int) -> tuple[list[SharedPair], list[SharedPair]]:
    """(both correct, one correct and one wrong): at most `count` of each, one per image, most shared words first."""
    by_words = sorted(pairs, key=lambda pair: (-len(pair.words), pair.image, pair.question, pair.expression))
    agreeing = [pair for pair in by_words if min(pair.answered, pair.found) == 1]
    differing = sorted(by_words, key=lambda pair: -abs(pair.answered - pair.found))
    differing = [pair for pair in differing if abs(pair.answered - pair.found) > 0.5]
    return _distinct(agreeing)[:count], _distinct(differing)[:count]


def _distinct(pairs: list[SharedPair]) -> list[SharedPair]:
    """The first pair of each image."""
    return list({pair.image: pair for pair in reversed(pairs)}.values())[::-1]


def write_pairs(path: Path, pairs: Sequence[SharedPair], regions: Regions, count: int) -> None:
    """Writes the page with at most `count` pairs of each kind."""
    agreeing, differing = choose_pairs(pairs, count)
    parts = ["<h1>Grounding consistency</h1>"]
    parts.append("<p>Boxes: <b class=right>ground truth</b>, <b class=wrong>prediction</b>.</p>")
    for title, chosen in (("Answer and box correct", agreeing), ("Only one of them correct", differing)):
        parts.append(f"<h2>{title}</h2><div class=pairs>{''.join(_figure(pair, regions) for pair in chosen)}</div>")
        if not chosen:
            parts.append("<p>No pairs.</p>")
    write_page(path, "Grounding consistency", "\n".join(parts), styles=["pairs.css"])


def _figure(pair: SharedPair, regions: Regions) -> str:
    sample = regions[pair.image]
    image, _ = image_of(sample, regions.dataset.folder)
    scale = WIDTH / sample.info.get("width", image.width)
    image = image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))))
    pen = ImageDraw.Draw(image)
    for box, colour, margin in ((pair.right_box, RIGHT, 5), (pair.box, CHOSEN, 2)):  # do not cover the object
        x1, y1, x2, y2 = (value * scale for value in box)
        pen.rectangle((x1 - margin, y1 - margin, x2 + margin, y2 + margin), outline=colour, width=3)
    answer = escape(pair.answer)
    expected = "" if pair.answered == 1 else f" (should be {escape(pair.right_answer)})"
    return (
        f'<figure><img alt="image {escape(pair.image)}" src="{picture(image)}"><figcaption>'
        f"{escape(pair.question)} {_mark(pair.answered, answer)}{expected}<br>"
        f"“{escape(pair.expression)}” {_mark(pair.found, 'found' if pair.found else 'not found')}<br>"
        f"<small>shared: {escape(', '.join(pair.words))}; image {escape(pair.image)}</small>"
        "</figcaption></figure>"
    )


def _mark(value: float, text: str) -> str:
    return f"<b class={'right' if value > 0.5 else 'wrong'}>{text}</b>"


def shared_pairs(questions: JudgedTask, expressions: JudgedTask, tagger: Tagger) -> list[SharedPair]:
    """All pairs of a question and an expression on the same image that share a noun or an adjective."""
    expressions_of, found = expressions.by_image(), []
    for image, numbers in questions.by_image().items():
        for q in numbers:
            for r in expressions_of.get(image, ()):
                question, expression = questions.examples[q], expressions.examples[r]
                words = tagger(question.text) & tagger(expression.text)
                if words:
                    found.append(
                        SharedPair(
                            image=image,
                            words=tuple(sorted(words)),
                            question=question.text,
                            answer=str(questions.predictions[q]),
                            right_answer=max(question.target, key=question.target.get) if question.target else "",
                            answered=float(questions.values[q]),
                            expression=expression.text,
                            box=tuple(map(float, expressions.predictions[r])),
                            right_box=tuple(expression.target),
                            found=float(expressions.values[r]),
                        )
                    )
    return found
