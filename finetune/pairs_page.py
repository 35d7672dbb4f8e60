"""A page of pairs of a question and an expression: those that a model does equally well, and those that it does not."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageDraw

from finetune.regions import Regions
from finetune.task import Box
from shards.files import whole_file
from shards.inspect import image_of

WIDTH = 480  # pixels of a picture on the page
RIGHT, CHOSEN = "#0072b2", "#d55e00"  # blue and vermilion, which colour-blind readers tell apart

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; border: 1px solid #8886; border-radius: .4rem; overflow: hidden; }
img { width: 100%; display: block; } figcaption { padding: .6rem .8rem; }
b.right { color: #0072b2; } b.wrong { color: #d55e00; }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #181818; }
  b.right { color: #56b4e9; } b.wrong { color: #e69f00; } }
"""


@dataclass(frozen=True)
class SharedPair:
    """A question and an expression of one image. answered, found: accuracies; boxes in pixels of the annotations."""

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


def choose(pairs: Sequence[SharedPair], count: int) -> tuple[list[SharedPair], list[SharedPair]]:
    """(both right, one right and one wrong): those that share most words first, each image and question once."""
    by_words = sorted(pairs, key=lambda pair: (-len(pair.words), pair.image, pair.question, pair.expression))
    agreeing = [pair for pair in by_words if min(pair.answered, pair.found) == 1]
    differing = sorted(by_words, key=lambda pair: -abs(pair.answered - pair.found))
    differing = [pair for pair in differing if abs(pair.answered - pair.found) > 0.5]
    return _distinct(agreeing)[:count], _distinct(differing)[:count]


def _distinct(pairs: list[SharedPair]) -> list[SharedPair]:
    """The first pair of each image."""
    return list({pair.image: pair for pair in reversed(pairs)}.values())[::-1]


def write_page(path: Path, pairs: Sequence[SharedPair], regions: Regions, count: int) -> None:
    """One HTML file with its pictures inside."""
    agreeing, differing = choose(pairs, count)
    parts = [f"<style>{STYLE}</style><title>Grounding consistency</title><h1>Grounding consistency</h1>"]
    parts.append("<p>Boxes: <b class=right>what is meant</b>, <b class=wrong>what the model chose</b>.</p>")
    for title, chosen in (("Answered and found", agreeing), ("One of the two", differing)):
        parts.append(f"<h2>{title}</h2><div class=pairs>{''.join(_figure(pair, regions) for pair in chosen)}</div>")
        if not chosen:
            parts.append("<p>There are none.</p>")
    with whole_file(path, "w", encoding="utf-8") as file:
        file.write("<!doctype html><html lang=en><meta charset=utf-8>" + "\n".join(parts) + "</html>\n")


def _figure(pair: SharedPair, regions: Regions) -> str:
    sample = regions[pair.image]
    image, _ = image_of(sample, regions.dataset.folder)
    scale = WIDTH / sample.info.get("width", image.width)
    image = image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))))
    pen = ImageDraw.Draw(image)
    for box, colour, apart in ((pair.right_box, RIGHT, 5), (pair.box, CHOSEN, 2)):  # outside of what they hold
        x1, y1, x2, y2 = (value * scale for value in box)
        pen.rectangle((x1 - apart, y1 - apart, x2 + apart, y2 + apart), outline=colour, width=3)
    file = io.BytesIO()
    image.save(file, "PNG")
    source = base64.b64encode(file.getvalue()).decode()
    said = html.escape(pair.answer)
    expected = "" if pair.answered == 1 else f" (should be {html.escape(pair.right_answer)})"
    return (
        f'<figure><img alt="image {html.escape(pair.image)}" src="data:image/png;base64,{source}"><figcaption>'
        f"{html.escape(pair.question)} {_mark(pair.answered, said)}{expected}<br>"
        f"“{html.escape(pair.expression)}” {_mark(pair.found, 'found' if pair.found else 'not found')}<br>"
        f"<small>shared: {html.escape(', '.join(pair.words))}; image {html.escape(pair.image)}</small>"
        "</figcaption></figure>"
    )


def _mark(value: float, text: str) -> str:
    return f"<b class={'right' if value > 0.5 else 'wrong'}>{text}</b>"
