"""Placeholders of numpy's objects in pickles; they check dtype, shape and bytes for consistency and make the array."""

import math
import re

import numpy as np


class Refused(Exception):
    """The pickle contains something other than plain values and arrays."""


class ArrayType:
    """Placeholder of numpy.ndarray, which pickles name but do not call."""


class Dtype:
    """Placeholder of a numpy.dtype: of numbers, bytes or text, or (code O) of objects, given as a list."""

    _CODE = re.compile(r"b1|[iu][1248]|f[248]|O8?|[SU]\d{1,6}")

    def __init__(self, code, *flags):
        if (
            not isinstance(code, str)
            or not self._CODE.fullmatch(code)
            or not all(type(f) in (bool, int) for f in flags)
        ):
            raise Refused(f"it has an array of type {str(code)[:20]!r}")
        self.dtype = np.dtype("O" if code[0] == "O" else code)

    def set_state(self, state) -> None:
        """Sets the byte order from a state (version, order, None, None, None, -1, -1, flags)."""
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise Refused("it has an array of structures")
        if state[1] not in ("<", ">", "|", "="):
            raise Refused("it has an array without a byte order")
        if state[1] in "<>" and not self.dtype.hasobject:
            self.dtype = self.dtype.newbyteorder(state[1])

    def of_bytes(self, data, shape, order: str) -> np.ndarray:
        """The array of this dtype and a shape in bytes, whose number must match."""
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise Refused("it has an array without a shape")
        if self.dtype.hasobject:
            return self._of_list(data, shape, order)
        data = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * self.dtype.itemsize:
            raise Refused("it has an array whose shape does not match its bytes")
        if self.dtype.kind == "b":
            values = np.frombuffer(data, np.uint8) != 0
        else:
            values = np.frombuffer(data, self.dtype) if data else np.zeros(0, self.dtype)
        if self.dtype.kind == "U":
            values.tolist()  # raises ValueError for an invalid code point
        return values.reshape(shape, order=order)

    def _of_list(self, values, shape, order: str) -> np.ndarray:
        if not isinstance(values, list) or len(values) != math.prod(shape):
            raise Refused("it has an array whose shape does not match its values")
        return np.fromiter(values, object, len(values)).reshape(shape, order=order)


class ArrayPlaceholder:
    """Placeholder of an array until its state is set. place: index in the memo."""

    def __init__(self, kind, shape, code):
        if kind is not ArrayType:
            raise Refused("it has an array of another class")
        self.place = 0

    @staticmethod
    def of_state(state) -> np.ndarray:
        """The array of a state (version, shape, dtype, Fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) not in (4, 5) or not isinstance(state[-3], Dtype):
            raise Refused("it has an array without a type")
        *_, shape, kind, columns, data = state
        return kind.of_bytes(data, shape, "F" if columns else "C")


def _bytes_of_text(text, encoding) -> bytes:
    """_codecs.encode, by which protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused(f"it names the encoding {str(encoding)[:20]}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """bytes(), by which protocols before 3 write empty bytes."""
    return b""


def _number(kind, data):
    if not isinstance(kind, Dtype) or kind.dtype.hasobject:
        raise Refused("it has a number without a type")
    return kind.of_bytes(data, (), "C").item()


def _array_of_buffer(data, kind, shape, order) -> np.ndarray:
    if not isinstance(kind, Dtype) or kind.dtype.hasobject or order not in ("C", "F"):
        raise Refused("it has an array without a type")
    return kind.of_bytes(data, shape, order)


ARRAYS = {("numpy", "ndarray"): ArrayType, ("numpy", "dtype"): Dtype, ("_codecs", "encode"): _bytes_of_text}
ARRAYS["__builtin__", "bytes"] = _no_bytes
for _core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
    ARRAYS |= {
        (f"{_core}.multiarray", "_reconstruct"): ArrayPlaceholder,
        (f"{_core}.multiarray", "scalar"): _number,
        (f"{_core}.numeric", "_frombuffer"): _array_of_buffer,
    }
CALLED = (Dtype, ArrayPlaceholder, _bytes_of_text, _no_bytes, _number, _array_of_buffer)
