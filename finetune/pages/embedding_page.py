"""The page that shows embeddings of images and texts in a plane."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.inference.embedding_files import EmbeddedImages
from finetune.inference.principal_components import Plane, principal_plane
from finetune.pages.html_page import data_block, fill_template, picture, write_page

LONG_SIDE = 160  # pixels of a thumbnail
KINDS = ("image", "text")


class Thumbnails:
    """Thumbnails of the first `count` images. pictures: image id -> data URL, None if the image file does not exist."""

    def __init__(self, count: int):
        self.count = count
        self.pictures: dict[str, str | None] = {}

    def of(self, images: Iterable[EmbeddedImages]) -> Iterator[EmbeddedImages]:
        """The same images; makes thumbnails as they pass."""
        for part in images:
            for number, name in enumerate(part.ids[: self.count - len(self.pictures)]):
                image = part.picture(number)
                self.pictures[name] = None if image is None else picture(image, LONG_SIDE)
            yield part


@dataclass(frozen=True)
class View:
    """A way to place the points.

    panels: title of each plane and what it explains; coordinates: kind -> (number of its panel, float (n, 2)).
    """

    title: str
    panels: list[tuple[str, tuple[float, float]]]
    coordinates: dict[str, tuple[int, np.ndarray]]


def views_of(embeddings: Mapping[str, np.ndarray], comparable: bool) -> list[View]:
    """The views of embeddings by kind (image, text), each (n, size).

    Args:
        embeddings: those of images, of texts, or of both.
        comparable: whether both have one space. If so, they are shown in one plane, as they are and, without the gap
            between the two kinds, as differences to the mean of their kind; otherwise each kind has a plane of its own.
    """
    if comparable and len(embeddings) > 1:
        centred = {kind: values - values.mean(0) for kind, values in embeddings.items()}
        spaces = {"as they are": embeddings, "differences to the mean of their kind": centred}
        return [_common(title, values) for title, values in spaces.items()]
    panels, coordinates = [], {}
    for number, (kind, values) in enumerate(embeddings.items()):
        plane = principal_plane(values)
        panels.append((f"{kind}s", plane.explained))
        coordinates[kind] = (number, plane.project(values))
    return [View("each kind in its own space", panels, coordinates)]


def _common(title: str, embeddings: Mapping[str, np.ndarray]) -> View:
    plane: Plane = principal_plane(np.concatenate(list(embeddings.values())))
    placed = {kind: (0, plane.project(values)) for kind, values in embeddings.items()}
    return View(title, [("images, texts", plane.explained)], placed)


def write_plane(
    path: str,
    title: str,
    arrays: Mapping[str, np.ndarray],
    pictures: Mapping[str, str | None],
    comparable: bool,
    shown: int,
) -> None:
    """Writes the page.

    Args:
        path: its path.
        title: its title.
        arrays: those of embedding_files.embed_all. The planes are those of all embeddings.
        pictures: thumbnails of the first images.
        comparable: whether texts and images have one space.
        shown: number of images on the page, the first ones, with their captions; of texts without an image.
    """
    embeddings = {kind: arrays[f"{kind}_embeddings"] for kind in KINDS if f"{kind}_embeddings" in arrays}
    images = arrays["image_ids"].tolist() if "image" in embeddings else []
    texts = arrays["texts"].tolist() if "text" in embeddings else []
    numbers = {name: number for number, name in enumerate(images[:shown])}
    own = [numbers.get(name) for name in arrays["text_images"].tolist()] if "text_images" in arrays else None
    kept = [n for n in range(len(texts)) if own is None or own[n] is not None]
    rows = {"image": list(range(len(numbers))), "text": kept if own else kept[:shown]}
    data = {
        "images": [{"id": name, "picture": pictures.get(name)} for name in numbers],
        "texts": [{"text": texts[n], "image": own[n] if own else None} for n in rows["text"]],
        "views": [_described(view, rows) for view in views_of(embeddings, comparable)],
    }
    counted = f"{len(data['images'])} of {len(images)} images and {len(data['texts'])} of {len(texts)} texts"
    body = fill_template("embeddings.html", TITLE=title, SHOWN=counted)
    scripts = ["elements.js", "embeddings.js"]
    write_page(path, title, body + data_block("data", data), styles=["embeddings.css"], scripts=scripts)


def _described(view: View, rows: Mapping[str, Sequence[int]]) -> dict:
    return {
        "title": view.title,
        "panels": [{"title": title, "explained": explained} for title, explained in view.panels],
        "points": {
            f"{kind}s": {"panel": panel, "places": _rounded(places[rows[kind]])}
            for kind, (panel, places) in view.coordinates.items()
        },
    }


def _rounded(places: np.ndarray) -> list[list[float]]:
    """Coordinates with five significant digits."""
    return [[float(f"{value:.5g}") for value in place] for place in places.tolist()]
