"""Pickles from elsewhere, of which nothing is made but plain values and, where they are asked for, arrays.

A pickle may name any function and have it called. Here a name is looked up in a list of what arrays are made of; any
other ends the reading, and is what the message says.
"""

import io
import pickle

import numpy as np


class Refused(Exception):
    """The pickle wants something that is neither a plain value nor an array."""


class _ArrayType:
    """Stands for numpy.ndarray, which a pickle names but has no need to call."""


def _new_array(kind, shape, code) -> np.ndarray:
    """An empty array, whose content the pickle then sets."""
    return np.ndarray((0,), "b")


def _bytes_of_text(text: str, encoding: str) -> bytes:
    """How protocols before 3 write bytes."""
    if encoding != "latin1":
        raise Refused(f"it names the encoding {encoding}")
    return text.encode("latin1")


def _number(dtype: np.dtype, data: bytes):
    return np.frombuffer(data, dtype)[0]


def _array_of_buffer(data, dtype: np.dtype, shape, order: str) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


_ARRAYS = {("numpy", "ndarray"): _ArrayType, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _bytes_of_text}
for _core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
    _ARRAYS |= {
        (f"{_core}.multiarray", "_reconstruct"): _new_array,
        (f"{_core}.multiarray", "scalar"): _number,
        (f"{_core}.numeric", "_frombuffer"): _array_of_buffer,
    }


class _Unpickler(pickle.Unpickler):
    """Makes what `allowed` says: (module, name) -> what stands for it."""

    def __init__(self, data, allowed: dict):
        super().__init__(io.BytesIO(data), encoding="latin1" if allowed else "utf-8")
        self.allowed = allowed

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise Refused(f"it names {module}.{name}")
        return self.allowed[module, name]

    def persistent_load(self, pid):
        raise Refused("it refers to something outside itself")


def unpickle(data, arrays: bool = False):
    """The value of a pickle (bytes) of lists, dicts, texts and numbers, as Python 2 wrote it or later ones do.

    arrays: numpy's arrays and numbers may be among them; texts of Python 2 are then taken as latin-1, as numpy needs.
    What cannot be read, or is something else, is a ValueError that says why.
    """
    try:
        return _Unpickler(data, _ARRAYS if arrays else {}).load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(str(error) or type(error).__name__) from None
