"""Near-duplicate images: perceptual hashes that are robust to small changes, and a finer comparison of two images."""

import numpy as np
from PIL import Image
from scipy.fft import dctn

from shards.images.image_files import decode_image

SMALL = 32  # side, in pixels, of the downscaled image that is hashed
LOW = 8  # frequencies per side in the hash: 8 x 8 = 64 bits
# Crops (left, top, right, bottom), as fractions of the sides; an image has one hash per crop.
TRIMMED = ((0.0, 0.0, 0.0, 0.0), (0.03, 0.03, 0.03, 0.03), *np.diag([0.04] * 4).tolist())
FINE = 24  # side, in pixels, of the downscaled images in the finer comparison
BLOCKS = 4  # blocks per side; the block with the largest difference decides
STEPS = (0.03, 0.015, 0.0075, 0.004)  # steps by which the crop of a side changes when two images are aligned
MOST_LOST = 0.1  # maximum crop of one side when two images are aligned
DIFFERENT = 0.5  # threshold of `difference`: images above it are not the same photo
UNRELATED = 0.5  # correlation before alignment below which two images are not aligned; benchmarks/looks.py
THUMBNAIL = 48  # side, in pixels, of thumbnails that can take the place of an image in `difference`


def grey(data: bytes) -> Image.Image:
    """The greyscale image of a file's bytes; raises shards.images.image_files.BadImage if it cannot be decoded."""
    return Image.fromarray(decode_image(data)).convert("L")


def thumbnail(image: Image.Image) -> Image.Image:
    """A greyscale image stretched to THUMBNAIL x THUMBNAIL, from which `difference` computes about the same value."""
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)


def image_hashes(image: Image.Image) -> np.ndarray:
    """uint64 (6,): the perceptual hashes (pHash) of an image and of its crops, in the order of TRIMMED.

    Bits of a hash: which of the LOW x LOW lowest frequencies of the DCT are above their median.
    """
    return np.array([_hash(image, lost) for lost in TRIMMED], np.uint64)


def _hash(image: Image.Image, lost) -> int:
    low = dctn(_pixels(image, lost, SMALL), norm="ortho")[:LOW, :LOW].ravel()
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
    no effect. 0: identical; at most DIFFERENT: altered copies of the same photo.
    """
    aligned = max((_align(one, other), _align(other, one)), key=lambda found: found[0])
    return aligned[1]


def _align(image: Image.Image, other: Image.Image) -> tuple[float, float]:
    """(correlation, difference of the worst block) for the crop of `image` with the highest correlation."""
    fixed = _standard(_pixels(other, TRIMMED[0], FINE))

    def correlation(lost) -> float:
        return float((_standard(_pixels(image, lost, FINE)) * fixed).mean())

    best, lost = max((correlation([share] * 4), [share] * 4) for share in (0.0, 0.02, 0.04))
    for step in STEPS if best >= UNRELATED else ():
        moved = True
        while moved:
            moved = False
            for side in range(4):
                for change in (step, -step):
                    tried = [*lost[:side], min(max(lost[side] + change, 0), MOST_LOST), *lost[side + 1 :]]
                    if tried != lost and (value := correlation(tried)) > best + 1e-5:
                        best, lost, moved = value, tried, True
    squares = (_standard(_pixels(image, lost, FINE)) - fixed) ** 2
    blocks = squares.reshape(BLOCKS, FINE // BLOCKS, BLOCKS, FINE // BLOCKS).mean((1, 3))
    return best, float(np.sqrt(blocks.max()))


def _standard(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels - pixels.mean()
    return pixels / max(float(pixels.std()), 1e-3)
