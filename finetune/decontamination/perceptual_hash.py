"""Near-duplicate images: perceptual hashes that are robust to small changes, and a finer comparison of two images."""

from typing import NamedTuple

import numpy as np
import scipy  # imports its parts when they are used; some take a second
from PIL import Image, ImageFilter, ImageOps

from shards.images.image_files import decode_image

SMALL = 32  # side, in pixels, of the downscaled image that is hashed
LOW = 8  # frequencies per side in the hash: 8 x 8 = 64 bits
# Crops (left, top, right, bottom), as fractions of the sides; an image has one hash per crop.
TRIMMED = ((0.0, 0.0, 0.0, 0.0), (0.03, 0.03, 0.03, 0.03), *np.diag([0.04] * 4).tolist())
FINE = 24  # side, in pixels, of the downscaled images in the finer comparison
BLOCKS = 4  # blocks per side
COVERED = 2  # blocks of a photograph that text or another small change may cover
FLAT, DIAGRAM = 2, 0.57  # grey levels between flat pixels, and their share in diagrams; benchmarks/looks.py
# Steps by which two images are aligned, each with the correlation below which finer alignment is not worthwhile.
STEPS = ((0.03, 0.5), (0.015, 0.7), (0.0075, 0.8), (0.004, 0.8))
MOST_LOST = 0.1  # maximum crop of one side when two images are aligned
MOST_SHEARED = 0.1  # maximum shift of a side along itself; a photo of 4:3 that is rotated by 4 degrees has 0.09
OUTSIDE = -1e6  # value of pixels outside of an image
DIFFERENT = 0.5  # threshold of `difference`: images above it are not the same photo
BLUR = ImageFilter.GaussianBlur(1)  # of thumbnails; otherwise sharp edges differ that are a part of a pixel apart
THUMBNAIL = 48  # side, in pixels, of thumbnails that can take the place of an image in `difference`


def grey(data: bytes) -> Image.Image:
    """The greyscale image of a file's bytes; raises shards.images.image_files.BadImage if it cannot be decoded."""
    return Image.fromarray(decode_image(data)).convert("L")


def compared_forms(image: Image.Image, mirrored: bool) -> tuple[Image.Image, ...]:
    """The forms of an image that are compared with others: itself and, if mirrored copies count, its mirror image."""
    return (image, ImageOps.mirror(image)) if mirrored else (image,)


def thumbnail(image: Image.Image) -> Image.Image:
    """A greyscale image stretched to THUMBNAIL x THUMBNAIL, from which `difference` computes about the same value."""
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)


def image_hashes(image: Image.Image) -> np.ndarray:
    """uint64 (6,): the perceptual hashes (pHash) of an image and of its crops, in the order of TRIMMED.

    Bits of a hash: which of the LOW x LOW lowest frequencies of the DCT are above their median.
    """
    return np.array([_hash(image, lost) for lost in TRIMMED], np.uint64)


def _hash(image: Image.Image, lost) -> int:
    low = scipy.fft.dctn(_pixels(image, lost, SMALL), norm="ortho")[:LOW, :LOW].ravel()
    low[0] = 0  # ignore the constant component, the mean brightness
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _pixels(image: Image.Image, lost, size: int) -> np.ndarray:
    """float32 (size, size): an image cropped by the fractions `lost` and downscaled."""
    left, top, right, bottom = lost
    box = (image.width * left, image.height * top, image.width * (1 - right), image.height * (1 - bottom))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX, box=box), np.float32)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Difference of two greyscale images after alignment, in the block where they differ most.

    It is the root mean square difference of the pixels, standardised per image, so that brightness and contrast have
    no effect. 0: identical; at most DIFFERENT: altered copies of the same photo. In photographs the COVERED blocks that
    differ most do not count. In a diagram they do, because most of its pixels are background: two diagrams that differ
    in one shape are equal in almost all blocks.
    """
    small = [thumbnail(image) for image in (one, other)]
    first, second = (Image.fromarray(_standard(np.asarray(image.filter(BLUR), np.float32))) for image in small)
    aligned = max((_align(first, second), _align(second, first)), key=lambda found: found[0])
    blocks = np.sort(aligned[1])[::-1]
    return float(blocks[0 if any(map(_is_diagram, small)) else COVERED])


def _is_diagram(image: Image.Image) -> bool:
    """Whether most pixels of a thumbnail are about equal to those right of and below them."""
    pixels = np.asarray(image, np.int16)
    right, below = (np.abs(np.diff(pixels, axis=axis)) <= FLAT for axis in (1, 0))
    return float((right[:-1] & below[:, :-1]).mean()) > DIAGRAM


class Alignment(NamedTuple):
    """The part of an image that is compared with another: crops of its sides, and shifts of a side along itself.

    All are shares of the width or the height. A rotation is about a shift of each.
    """

    left: float = 0.0
    top: float = 0.0
    right: float = 0.0
    bottom: float = 0.0
    horizontal: float = 0.0
    vertical: float = 0.0

    def moved(self, number: int, change: float) -> "Alignment":
        """The alignment with one value changed, within its limits."""
        low, high = (0.0, MOST_LOST) if number < 4 else (-MOST_SHEARED, MOST_SHEARED)
        value = min(max(self[number] + change, low), high)
        return self._replace(**{self._fields[number]: value})

    def pixels(self, image: Image.Image) -> np.ndarray:
        """float32 (FINE * FINE,): the part of a standardised thumbnail, OUTSIDE where it exceeds the image."""
        side, across, down = image.width, self.horizontal / FINE, self.vertical / FINE
        rows = (
            ((1 - self.left - self.right) / FINE, across, self.left - across * FINE / 2),
            (down, (1 - self.top - self.bottom) / FINE, self.top - down * FINE / 2),
        )
        matrix = tuple(side * value for row in rows for value in row)
        affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        return np.asarray(image.transform((FINE, FINE), affine, matrix, bilinear, fillcolor=OUTSIDE)).ravel()


BEGINNINGS = tuple(Alignment(*[share] * 4) for share in (0.0, 0.02, 0.04))


def _align(image: Image.Image, other: Image.Image) -> tuple[float, np.ndarray]:
    """(correlation, difference of each block) for the part of `image` with the highest correlation to `other`."""
    fixed = _standard(Alignment().pixels(other))

    def correlation(part: Alignment) -> float:
        pixels, aligned = _inside(part.pixels(image), fixed)
        variance = pixels @ pixels / len(pixels) - pixels.mean() ** 2
        return float(pixels @ aligned / len(pixels) / np.sqrt(max(variance, 1e-6)))

    best, part = max((correlation(part), part) for part in BEGINNINGS)
    for step, least in STEPS:
        moved = best >= least
        while moved:
            moved = False
            for number in range(len(part)):
                for change in (step, -step):
                    tried = part.moved(number, change)
                    if tried != part and (value := correlation(tried)) > best + 1e-5:
                        best, part, moved = value, tried, True
    pixels, squares = part.pixels(image), np.zeros(FINE * FINE)
    inside, aligned = _inside(pixels, fixed)
    squares[pixels != OUTSIDE] = (_standard(inside) - aligned) ** 2
    return best, np.sqrt(squares.reshape(BLOCKS, FINE // BLOCKS, BLOCKS, FINE // BLOCKS).mean((1, 3))).ravel()


def _inside(pixels: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that are not OUTSIDE, and those of `fixed` at the same places, standardised."""
    inside = pixels != OUTSIDE
    return (pixels, fixed) if inside.all() else (pixels[inside], _standard(fixed[inside]))


def _standard(pixels: np.ndarray) -> np.ndarray:
    """The pixels with mean 0 and standard deviation 1."""
    pixels = pixels - pixels.mean()
    return pixels / max(float(pixels.std()), 1e-3)
