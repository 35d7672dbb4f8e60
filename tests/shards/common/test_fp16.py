"""float16 to the bit as numpy has it."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as shapes

from shards.common.fp16 import finite, to_half

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def same(values) -> bool:
    with np.errstate(over="ignore"):
        ours, theirs = to_half(values), values.astype(np.float16)
    return (
        ours.shape == theirs.shape and ours.dtype == np.float16 and np.array_equal(ours.view("u2"), theirs.view("u2"))
    )


def test_every_half_and_what_lies_about_it():
    """All 65,536 of them, the middle to the next one, and the float32s next to both."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    bits = halves.view(np.uint32)
    with np.errstate(all="ignore"):
        middles = ((halves.astype(np.float64) + np.roll(halves, -1)) / 2).astype(np.float32).view(np.uint32)
    for around in (bits, middles):
        for step in (-2, -1, 0, 1, 2):
            assert same((around + np.uint32(step % (1 << 32))).view(np.float32))


@given(shapes.arrays(np.float32, shapes.array_shapes(max_dims=3, max_side=9, min_side=0), elements=FLOATS))
def test_any_array(values):
    assert same(values)
    assert same(values.T) and same(values[..., ::2])


def test_what_is_only_to_be_read():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(np.frombuffer(np.arange(9, dtype=np.float32).tobytes(), np.float32))


@pytest.mark.parametrize("dtype", ["f2", "f8", "i4", ">f4"])
def test_other_types_are_numpys(dtype):
    assert same(np.array([[0, 1.5, -3], [60000, 1e-7, 12]]).astype(dtype))


def test_every_half_is_finite_or_not():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert [finite(halves[n : n + 1]) for n in range(len(halves))] == np.isfinite(halves).tolist()


@given(shapes.arrays(np.float32, shapes.array_shapes(max_dims=3, max_side=9, min_side=0), elements=FLOATS))
def test_arrays_are_finite_where_all_of_them_is(values):
    with np.errstate(over="ignore"):
        assert finite(values) == finite(values.T) == np.isfinite(values.astype(np.float16)).all()
