"""Scenes of the miniature world, with objects that have a kind, colour, size, pattern and position, and their drawing.

Pixels of equal objects always differ: shades, sizes, rotations, backgrounds and noise are random.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 160, 120
FINE = 3  # supersampling factor for smooth edges

COLOURS = {
    "red": (205, 40, 45),
    "green": (45, 155, 60),
    "blue": (45, 80, 205),
    "yellow": (235, 205, 40),
    "purple": (140, 60, 175),
    "orange": (240, 135, 35),
    "black": (30, 30, 32),
    "white": (246, 246, 246),
}
KINDS = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "crescent")
PATTERNS = ("plain", "striped", "dotted")
RADII = {"small": (8, 11), "large": (17, 22)}  # pixels


@dataclass(frozen=True)
class Thing:
    """One object; x, y and radius in pixels of the image, angle in radians."""

    kind: str
    colour: str
    size: str
    pattern: str
    x: float
    y: float
    radius: float
    angle: float


def make_scene(rng: np.random.Generator, numbers=(1, 2, 2, 3)) -> list[Thing]:
    """Random objects that do not touch; their number is one of `numbers`, or fewer if there is no room."""
    things: list[Thing] = []
    wanted = int(rng.choice(numbers))
    for _ in range(200):
        size = str(rng.choice(list(RADII)))
        radius = rng.uniform(*RADII[size])
        x, y = rng.uniform(radius + 2, WIDTH - radius - 2), rng.uniform(radius + 2, HEIGHT - radius - 2)
        if all(np.hypot(x - t.x, y - t.y) > radius + t.radius + 5 for t in things):
            colour, kind = str(rng.choice(list(COLOURS))), str(rng.choice(KINDS))
            pattern = str(rng.choice(PATTERNS, p=[0.6, 0.2, 0.2]))
            things.append(Thing(kind, colour, size, pattern, x, y, radius, rng.uniform(-0.25, 0.25)))
        if len(things) == wanted:
            break
    return things


def draw_scene(things: list[Thing], rng: np.random.Generator) -> Image.Image:
    """Draws a scene: RGB, WIDTH x HEIGHT."""
    image = _background(rng)
    for thing in things:
        shade = np.clip(np.array(COLOURS[thing.colour]) + rng.normal(0, 9, 3), 0, 255)
        mask = _mask(thing)
        image.paste(_fill(thing, shade, rng), (0, 0), mask)
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    grain = rng.normal(0, 1.6, (HEIGHT, WIDTH, 1)) + rng.normal(0, 0.8, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def bounding_box(thing: Thing) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of the drawn object, in pixels of the image."""
    return tuple(side / FINE for side in _mask(thing).getbbox())


def _background(rng: np.random.Generator) -> Image.Image:
    """A smooth gradient between similar shades of medium grey, FINE times the image size."""
    base = rng.uniform(105, 205)
    corners = np.clip(base + rng.normal(0, 9, (2, 2, 3)) + rng.normal(0, 6, (2, 2, 1)), 0, 255)
    return Image.fromarray(corners.astype(np.uint8)).resize((WIDTH * FINE, HEIGHT * FINE), Image.Resampling.BILINEAR)


def _outline(thing: Thing) -> list[tuple[float, float]] | None:
    """The corners of a polygonal kind, relative to the radius, before rotation; None for round kinds."""
    if thing.kind == "star":
        turns = np.arange(10) * np.pi / 5 - np.pi / 2
        return [(r * np.cos(a), r * np.sin(a)) for a, r in zip(turns, [1, 0.42] * 5, strict=True)]
    third = 0.33
    return {
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0, -1), (0.95, 0.75), (-0.95, 0.75)],
        "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
        "cross": [
            *((-third, -1), (third, -1), (third, -third), (1, -third), (1, third), (third, third)),
            *((third, 1), (-third, 1), (-third, third), (-1, third), (-1, -third), (-third, -third)),
        ],
    }.get(thing.kind)


def _mask(thing: Thing) -> Image.Image:
    mask = Image.new("L", (WIDTH * FINE, HEIGHT * FINE))
    pen = ImageDraw.Draw(mask)
    x, y, radius = thing.x * FINE, thing.y * FINE, thing.radius * FINE

    def disc(dx: float, share: float, value: int) -> None:
        r = radius * share
        pen.ellipse((x + dx * radius - r, y - r, x + dx * radius + r, y + r), fill=value)

    corners = _outline(thing)
    if corners:
        cos, sin = np.cos(thing.angle), np.sin(thing.angle)
        pen.polygon(
            [(x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos)) for a, b in corners],
            fill=255,
        )
    else:
        disc(0, 1, 255)
        if thing.kind == "ring":
            disc(0, 0.55, 0)
        if thing.kind == "crescent":
            disc(0.5, 0.8, 0)
    return mask


def _fill(thing: Thing, shade: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """An image filled with the colour of an object and its pattern in a lighter or darker tone."""
    size = WIDTH * FINE, HEIGHT * FINE
    image = Image.new("RGB", size, tuple(int(v) for v in shade))
    if thing.pattern == "plain":
        return image
    tone = tuple(int(v) for v in (shade * 0.45 if shade.mean() > 110 else shade * 0.4 + 150))
    pen = ImageDraw.Draw(image)
    gap = int(FINE * rng.uniform(4.5, 6))
    left, top = int((thing.x - thing.radius) * FINE), int((thing.y - thing.radius) * FINE)
    across = int(2 * thing.radius * FINE)
    if thing.pattern == "striped":
        for x in range(left - across, left + 2 * across, gap):
            pen.line((x, top, x + across * thing.angle, top + across), fill=tone, width=gap // 2)
        return image
    for row, y in enumerate(range(top, top + across, gap)):
        for x in range(left + (row % 2) * gap // 2, left + across, gap):
            pen.ellipse((x, y, x + gap * 0.55, y + gap * 0.55), fill=tone)
    return image
