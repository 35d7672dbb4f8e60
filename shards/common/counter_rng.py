"""Counter-based random numbers: a pure function of (seed, ..., counter), with no state to save.

Data order, masks and misaligned captions use it, so they depend only on the sample: they are the same for any number of
workers, ranks or accumulation steps, and a resumed run has nothing to restore. The mixing function is the finaliser of
splitmix64 (Steele, Lea and Flood, 2014) in signed 64-bit arithmetic, so that the same code works for numpy int64 arrays
and torch int64 tensors on any device.
"""

import hashlib

import numpy as np

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER1 = 0xBF58476D1CE4E5B9
_MULTIPLIER2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift(x, bits: int):
    """Logical right shift of int64 (>> is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x):
    """Hashes an int64 array or tensor elementwise; a bijection of 64-bit numbers."""
    x = (x ^ _shift(x, 30)) * _signed(_MULTIPLIER1)
    x = (x ^ _shift(x, 27)) * _signed(_MULTIPLIER2)
    return x ^ _shift(x, 31)


def draw(keys, counters):
    """int64 random numbers for keys and counters, which are broadcast arrays or tensors; a counter may be an int."""
    if isinstance(counters, int):
        return mix(keys + _signed((counters + 1) * _GOLDEN))
    return mix(keys + (counters + 1) * _signed(_GOLDEN))


def key(*parts: int) -> int:
    """One signed 64-bit key from integers, for example (seed, epoch)."""
    value = np.zeros(1, np.int64)
    for part in parts:
        value = draw(value, np.array([_signed(part)], np.int64))
    return int(value[0])


def uniform24(numbers):
    """The top 24 bits of random numbers as int64 in [0, 2**24): compare with `threshold(p)`."""
    return _shift(numbers, 40)


def threshold(probability: float) -> int:
    """`uniform24(x) < threshold(p)` is true with probability p."""
    return round(probability * (1 << 24))


def below(numbers, limit):
    """Random numbers reduced to [0, limit); the bias is under limit / 2**40."""
    return _shift(numbers, 24) % limit


def permutation(random_key: int, n: int) -> np.ndarray:
    """A permutation of range(n), int64 (n,)."""
    return np.argsort(draw(np.int64(random_key), np.arange(n)), kind="stable")


def text_key(text: str) -> int:
    """A 63-bit hash of a text, equal on all machines and in all processes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
