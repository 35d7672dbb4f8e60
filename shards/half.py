"""float32 to float16 as numpy rounds it, twice as fast where there are zeros, as behind a ReLU (benchmarks/half.py)."""

import numpy as np

SIGN, EXACT = np.uint32(0x8000_0000), np.uint32(13)  # the sign; bits of a float32's fraction that a float16 lacks
LEAST = np.uint32(0x3880_0000)  # 2^-14, the least ordinary number of float16
MOST = np.uint32(0x477F_F000)  # 65520, the least that it rounds to infinity
BIAS = np.uint32((127 - 15) << 23)  # between the exponents, in a float32's place
ROUND = np.uint32((0xFFF - int(BIAS)) % (1 << 32))  # half of the last place, less one, and the exponent of a float16
HALF_SIGN = np.uint32(0x8000)
BLOCK = 16384  # numbers that are worked on at a time: what a core keeps near


def to_half(values: np.ndarray) -> np.ndarray:
    """float16 of any array, to the bit what astype gives, NaN and overflow to infinity among it.

    numpy branches on every number. Here blocks are rounded as integers, to the nearest and of two nearest to the even
    one; zeros come out right by that, and the few numbers that are no ordinary ones in float16 are left to numpy.
    """
    if values.dtype != np.float32 or not values.size:
        return values.astype(np.float16)
    values = np.ascontiguousarray(values)
    bits, halves = values.view(np.uint32).reshape(-1), np.empty(values.size, np.uint16)
    room = np.empty((2, min(BLOCK, bits.size)), np.uint32)
    special = []
    for begin in range(0, bits.size, BLOCK):
        block = bits[begin : begin + BLOCK]
        size, other = room[:, : block.size]
        np.bitwise_and(block, ~SIGN, out=size)
        np.subtract(size, np.uint32(1), out=other)  # of zero: the largest number
        unusual = other < LEAST - np.uint32(1)
        if unusual.any() or size.max() >= MOST:
            special.append(begin + np.flatnonzero(unusual | (size >= MOST)))
        np.maximum(size, BIAS, out=size)
        np.right_shift(size, EXACT, out=other)
        other &= np.uint32(1)
        size += other
        size += ROUND
        size >>= EXACT
        np.right_shift(block, np.uint32(16), out=other)
        other &= HALF_SIGN
        size |= other
        halves[begin : begin + BLOCK] = size
    halves = halves.view(np.float16)
    if special:
        places = np.concatenate(special)
        halves[places] = values.reshape(-1)[places].astype(np.float16)
    return halves.reshape(values.shape)
