"""Draws an image with its regions."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from shards.common.counted import counted
from shards.images.source_image import image_of
from shards.storage.sample import Sample

BACKGROUND = "background"  # name of the background class, if a detector has one
LONG_SIDE = 1000  # pixels of the drawn picture
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#000075")


def draw(sample: Sample, folder: Path, names: list[str] | None = None) -> tuple[Image.Image, str]:
    """Draws an image (blank if the source is missing) with its regions, the highest scores last.

    Args:
        names: names of the classes.

    Returns:
        The picture and one line of description.
    """
    width, height = sample.info.get("width", 640), sample.info.get("height", 640)
    image, missing = image_of(sample, folder)
    note = f" (the image is not available: {missing})" if missing else ""
    scale = LONG_SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC if scale < 2 else Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    for number in reversed(range(len(sample.boxes))):
        box = (sample.boxes[number].reshape(2, 2) * (np.array(size) - 1)).ravel().tolist()
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle(box, outline=colour, width=2 if number < 12 else 1)
        if number < 12:
            named = names and sample.class_ids is not None
            label = f"{number} {_class_of(sample, number, names)}" if named else str(number)
            pen.text((box[0] + 3, box[1] + 1), label, fill=colour, stroke_width=1, stroke_fill="white")
    return (
        image,
        f"{sample.info.get('id', sample.key)}: {counted(len(sample.boxes), 'region')}, {width} x {height}{note}",
    )


def _class_of(sample: Sample, region: int, names: list[str]) -> str:
    """The name and probability of the most probable class of a region except the background."""
    known = dict(enumerate(names))
    pairs = zip(sample.class_ids[region].tolist(), sample.class_probs[region].tolist(), strict=True)
    found = ((known.get(number, f"class {number}"), share) for number, share in pairs)
    others = (pair for pair in found if pair[0].strip("_").lower() != BACKGROUND)
    name, share = next(others, (names[0], 0.0))
    return f"{name} {share:.0%}"
