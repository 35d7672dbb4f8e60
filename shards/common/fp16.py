"""Conversion of float32 to float16 by torch, whose CPU instructions are faster than numpy (benchmarks/features.py)."""

import warnings

import numpy as np

INFINITE, MINUS_INFINITE = 0x7C00, 0xFC00  # bit patterns in float16; those of NaN are larger


def finite(values: np.ndarray) -> bool:
    """Whether all numbers are finite in float16, by the maximum of their bit patterns: faster than np.isfinite."""
    with np.errstate(over="ignore"):
        halves = np.asarray(values, np.float16)
    # As signed integers, positive numbers have the largest patterns; as unsigned integers, negative numbers do.
    signed, unsigned = (halves.view(kind).max(initial=0) for kind in (np.int16, np.uint16))
    return bool(signed < INFINITE and unsigned < MINUS_INFINITE)


def to_half(values: np.ndarray) -> np.ndarray:
    """Converts an array to float16, bit-identical to astype, also for NaN and overflow."""
    if values.dtype != np.float32:
        return values.astype(np.float16)
    import torch  # takes a second to import

    with warnings.catch_warnings():
        # Of torch, that the array is read-only; of numpy, that a number overflows.
        warnings.simplefilter("ignore")
        halves = torch.from_numpy(np.ascontiguousarray(values)).half().numpy()
        return halves if finite(halves) else values.astype(np.float16)  # numpy's NaN have other bits than torch's
