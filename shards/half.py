"""float32 to float16 by torch, which asks the processor for it: tens of times as fast as numpy (benchmarks/half.py)."""

import warnings

import numpy as np


def to_half(values: np.ndarray) -> np.ndarray:
    """float16 of any array as astype gives it: to the nearest, of two to the even one, infinity for what is too large.

    A NaN stays one; which of them is not said.
    """
    if values.dtype != np.float32:
        return values.astype(np.float16)
    import torch  # takes a second to come: no wait for those that convert nothing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says of an array that is only to be read that it could be written
        return torch.from_numpy(np.ascontiguousarray(values)).half().numpy()
