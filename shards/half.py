"""float32 to float16 by torch, which asks the processor for it: far faster than numpy does (benchmarks/features.py)."""

import warnings

import numpy as np

INFINITE, MINUS_INFINITE = 0x7C00, 0xFC00  # as bits of a float16; what is NaN comes behind them


def finite(values: np.ndarray) -> bool:
    """Whether numbers are all finite in float16, by the largest of their bits: faster than np.isfinite."""
    with np.errstate(over="ignore"):
        halves = np.asarray(values, np.float16)
    # With a sign all that are positive are compared, since the others are below 0; without one the negative ones.
    signed, unsigned = (halves.view(kind).max(initial=0) for kind in (np.int16, np.uint16))
    return bool(signed < INFINITE and unsigned < MINUS_INFINITE)


def to_half(values: np.ndarray) -> np.ndarray:
    """float16 of any array, to the bit what astype gives, NaN and overflow to infinity among it."""
    if values.dtype != np.float32:
        return values.astype(np.float16)
    import torch  # takes a second to come: no wait for those that convert nothing

    with warnings.catch_warnings():
        # torch's, that an array which is only to be read could be written; numpy's, that a number is too large.
        warnings.simplefilter("ignore")
        halves = torch.from_numpy(np.ascontiguousarray(values)).half().numpy()
        return halves if finite(halves) else values.astype(np.float16)  # whose NaN have other bits
