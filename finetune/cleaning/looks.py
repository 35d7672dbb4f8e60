"""How an image looks: hashes that its altered copies nearly share, and a finer comparison of two images."""

import numpy as np
from PIL import Image
from scipy.fft import dctn

from shards.images import decode_image

SMALL = 32  # pixels a side from which a hash is made
LOW = 8  # frequencies a side that it keeps: 64 bits
NEAR = 10  # bits in which the hashes of one photo differ at the most
# What a copy may have lost at its sides (left, top, right, bottom), as shares; an image has a hash for each.
TRIMMED = ((0.0, 0.0, 0.0, 0.0), (0.03, 0.03, 0.03, 0.03), *np.diag([0.04] * 4).tolist())
FINE = 24  # pixels a side of the finer comparison,
BLOCKS = 4  # whose worst block of so many a side tells
STEPS = (0.03, 0.015, 0.0075, 0.004)  # by which a side moves when two images are laid on each other
MOST_LOST = 0.1  # at one side
DIFFERENT = 0.5  # of the worst block: root mean square over the deviation of the whole image


def grey(data: bytes) -> Image.Image:
    """The image of a file in shades of grey; shards.images.BadImage where it cannot be read."""
    return Image.fromarray(decode_image(data)).convert("L")


def look_hashes(image: Image.Image) -> np.ndarray:
    """uint64 (6,): the hashes of an image and of what is left of it TRIMMED.

    A hash says which of the lowest frequencies (scipy's DCT) are above their median.
    """
    return np.array([_hash(image, lost) for lost in TRIMMED], np.uint64)


def _hash(image: Image.Image, lost) -> int:
    low = dctn(_pixels(image, lost, SMALL), norm="ortho")[:LOW, :LOW].ravel()
    low[0] = 0  # the brightness of all
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _pixels(image: Image.Image, lost, size: int) -> np.ndarray:
    """float32 (size, size): what is left of an image."""
    left, top, right, bottom = lost
    box = (image.width * left, image.height * top, image.width * (1 - right), image.height * (1 - bottom))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX, box=box), np.float32)


def near_pairs(hashes: np.ndarray, others: np.ndarray, block: int = 1024) -> np.ndarray:
    """int (pairs, 2): rows of uint64 (n, 6) `hashes` and `others` of which a hash of the one is near the whole of the
    other. Exact, in blocks."""
    found = [np.empty((0, 2), np.int64)]
    for begin in range(0, len(others), block):
        theirs = others[begin : begin + block]
        for first in range(0, len(hashes), block):
            ours = hashes[first : first + block]
            near = np.bitwise_count(ours[:, None, 0] ^ theirs[None, :, 0]) <= NEAR
            for trimmed in range(1, len(TRIMMED)):
                near |= np.bitwise_count(ours[:, None, trimmed] ^ theirs[None, :, 0]) <= NEAR
                near |= np.bitwise_count(ours[:, None, 0] ^ theirs[None, :, trimmed]) <= NEAR
            rows, columns = np.nonzero(near)
            found.append(np.stack([rows + first, columns + begin], 1))
    return np.concatenate(found)


def difference(one: Image.Image, other: Image.Image) -> float:
    """How much two grey images differ in the block where they differ most, the one laid on the other as well as can be.

    0: the same; up to DIFFERENT: one photo, altered; brightness and contrast do not count.
    """
    laid = max((_lay(one, other), _lay(other, one)), key=lambda found: found[0])
    return laid[1]


def _lay(image: Image.Image, other: Image.Image) -> tuple[float, float]:
    """(correlation, difference of the worst block), with as much of `image` lost as makes them most alike."""
    fixed = _standard(_pixels(other, TRIMMED[0], FINE))

    def alike(lost) -> float:
        return float((_standard(_pixels(image, lost, FINE)) * fixed).mean())

    best, lost = max((alike([share] * 4), [share] * 4) for share in (0.0, 0.02, 0.04))
    for step in STEPS:
        moved = True
        while moved:
            moved = False
            for side in range(4):
                for change in (step, -step):
                    tried = [*lost[:side], min(max(lost[side] + change, 0), MOST_LOST), *lost[side + 1 :]]
                    if tried != lost and (value := alike(tried)) > best + 1e-5:
                        best, lost, moved = value, tried, True
    squares = (_standard(_pixels(image, lost, FINE)) - fixed) ** 2
    blocks = squares.reshape(BLOCKS, FINE // BLOCKS, BLOCKS, FINE // BLOCKS).mean((1, 3))
    return best, float(np.sqrt(blocks.max()))


def _standard(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels - pixels.mean()
    return pixels / max(float(pixels.std()), 1e-3)
