"""Copies of a photo are equal after alignment, also with a small change; diagrams with another shape are not."""

import numpy as np
import pytest
from image_tars import picture
from PIL import Image, ImageDraw

from finetune.decontamination.perceptual_hash import DIFFERENT, difference, thumbnail

PHOTOS = range(12)


def photo(number: int) -> Image.Image:
    return picture(number).convert("L")


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC)


def rotated_and_cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return rotated(image, -3).crop((0.05 * width, 0.06 * height, 0.95 * width, 0.94 * height))


def with_text(image: Image.Image) -> Image.Image:
    """Text in the lower left corner, as meme generators and watermarks have it."""
    copy, (width, height) = image.copy(), image.size
    ImageDraw.Draw(copy).text((0.03 * width, 0.82 * height), "a caption", 255, font_size=height // 9)
    return copy


def mirrored_corner(image: Image.Image) -> Image.Image:
    """Another content in a quarter of the image, which is more than a small change."""
    copy, (width, height) = image.copy(), image.size
    corner = image.crop((0, 0, width // 2, height // 2)).transpose(Image.Transpose.ROTATE_180)
    copy.paste(corner, (width // 2, height // 2))
    return copy


@pytest.mark.parametrize(
    "alter",
    [lambda image: rotated(image, 3), lambda image: rotated(image, -2), rotated_and_cropped, with_text],
    ids=["rotated", "rotated back", "rotated and cropped", "text"],
)
def test_altered_photos_are_the_same(alter):
    values = [difference(photo(number), alter(photo(number))) for number in PHOTOS]
    assert max(values) <= DIFFERENT
    assert values[0] == difference(alter(photo(0)), photo(0))
    assert values[0] == difference(thumbnail(photo(0)), thumbnail(alter(photo(0))))


def test_other_photos_and_large_changes_differ():
    assert all(difference(photo(number), photo(number + 1)) > DIFFERENT for number in PHOTOS)
    assert all(difference(photo(number), mirrored_corner(photo(number))) > DIFFERENT for number in PHOTOS)


def diagram(shapes: list[str]) -> Image.Image:
    """Six shapes on a white background."""
    image = Image.new("L", (192, 128), 255)
    draw = ImageDraw.Draw(image)
    for number, shape in enumerate(shapes):
        left, top = 64 * (number % 3) + 16, 64 * (number // 3) + 16
        getattr(draw, shape)((left, top, left + 32, top + 32), fill=60)
    return image


def test_diagrams_with_one_other_shape_differ():
    shapes = ["rectangle", "ellipse", "rectangle", "ellipse", "rectangle", "rectangle"]
    one = diagram(shapes)
    other = diagram(shapes)
    ImageDraw.Draw(other).rectangle((144, 80, 176, 112), fill=255)
    assert difference(one, other) > DIFFERENT
    assert difference(one, diagram(shapes)) == 0
    assert difference(one, one.resize((120, 90), Image.Resampling.LANCZOS)) < DIFFERENT / 2


def test_images_of_one_colour_have_a_difference():
    plain = Image.new("L", (60, 40), 128)
    assert difference(plain, plain) == 0 and np.isfinite(difference(plain, photo(0)))
