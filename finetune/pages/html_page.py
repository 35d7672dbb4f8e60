"""Self-contained HTML pages: pictures, data, styles and scripts in one file."""

import base64
import html
import io
import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards.common.errors import UserError
from shards.common.files import whole_file

FOLDER = Path(__file__).parent
LONG_SIDE = 800  # maximum length, in pixels, of the longer side of a picture
QUALITY = 88  # of its JPEG

escape = html.escape


def write_page(path, title: str, body: str, styles: Sequence[str] = (), scripts: Sequence[str] = ()) -> None:
    """Writes a page atomically. styles, scripts: files of this folder, in addition to the common style."""
    with whole_file(path, "w", encoding="utf-8") as file:
        file.write(render_page(title, body, styles, scripts))


def render_page(title: str, body: str, styles: Sequence[str] = (), scripts: Sequence[str] = ()) -> str:
    """The HTML of a page; see write_page."""
    style = "".join(page_file(name) for name in ("page.css", *styles))
    code = "".join(f"<script>{page_file(name)}</script>\n" for name in scripts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n{code}</body>\n</html>\n"
    )


def page_file(name: str) -> str:
    """The text of a file of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


def fill_template(name: str, **texts: str) -> str:
    """The template NAME of this folder, with escaped texts for its placeholders."""
    return string.Template(page_file(name)).substitute({place: escape(text) for place, text in texts.items()})


def data_block(name: str, value) -> str:
    """A script element with this id that contains the value as JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def picture(image: np.ndarray | Image.Image, long_side: int = LONG_SIDE) -> str:
    """An image as a data URL, downscaled to at most long_side pixels."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image = image.convert("RGB")
    image.thumbnail((long_side, long_side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def missing_packages(extra: str, packages: str, error: ImportError) -> UserError:
    """The error for missing packages of an extra."""
    return UserError(f"this page needs {packages} ({error}); install with pip install 'twelve-in-one[{extra}]'")


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    """An HTML table in a box that scrolls.

    Args:
        header: titles of the columns, as HTML.
        rows: cells as HTML; the first of each row is its header.
        kinds: CSS class of each row.
    """
    head = "".join(f"<th>{cell}</th>" for cell in header)
    kinds = kinds or [""] * len(rows)
    body = "".join(
        f'<tr class="{kind}"><th>{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>\n'
        for row, kind in zip(rows, kinds, strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
