"""Reads untrusted pickles without Python's unpickler: only plain values and, if requested, arrays are created.

A pickle is a program: it can name and call any function, set the state of any object (numpy's `__setstate__` accepts
states that corrupt memory), and allocate more memory than it has bytes. This reader supports only the opcodes of plain
values. For arrays, placeholders are called, which check dtype, shape and bytes for consistency. Memory and time are
proportional to the length of the pickle.
"""

import gc

import numpy as np

from shards.common.untrusted_input import reason_of
from shards.parsing.pickle_arrays import ARRAYS, CALLED, Refused
from shards.parsing.pickle_reader import KEYS, PickleReader

MAX_DEPTH = 100  # maximum nesting of containers
ITEMS_PER_BYTE = 4  # maximum number of items per byte of the pickle; repeated references to a list cost few bytes
LEAVES = KEYS | {bytearray}


def _check(value, length: int, leaves=LEAVES) -> None:
    """Raises Refused for placeholders, containers nested more than MAX_DEPTH, or too many items for `length` bytes.

    Code that walks the value then needs no limits.

    Args:
        length: bytes of the pickle.
        leaves: types of values that are not containers.
    """
    left, level, depth = 1000 + ITEMS_PER_BYTE * length, [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise Refused(f"it has containers nested more than {MAX_DEPTH} deep")
        inside = []
        for container in level:
            kind = type(container)
            if kind is dict:
                items = container.values()
            elif kind in (list, tuple):
                items = container
            elif kind is np.ndarray:
                items = container.ravel().tolist() if container.dtype.hasobject else ()
            elif kind in leaves:
                continue
            else:
                raise Refused("it has an incomplete object")
            left -= len(items)
            if left < 0:
                raise Refused("it refers to the same lists too many times")
            if not leaves.issuperset(map(type, items)):
                inside += [item for item in items if type(item) not in leaves]
        level = inside


def unpickle(data, arrays: bool = False):
    """Reads a pickle (bytes) of lists, dicts, strings and numbers, written by any version of Python.

    Args:
        arrays: allow numpy arrays, which may be read-only in the result, and numpy numbers, which become Python's.
            Python 2 strings are then decoded as Latin-1, as numpy requires.

    Raises:
        ValueError: the pickle is invalid or contains something else.
    """
    data = bytes(data)
    allowed, encoding = (ARRAYS, "latin1") if arrays else ({}, "utf-8")
    return _value_of(PickleReader(data, allowed, CALLED, encoding), LEAVES)


def unpickle_at(data, at: int, names: dict, called: tuple, outside, leaves: tuple) -> tuple[object, int]:
    """(value of the pickle at an offset of bytes or of a mapped file, offset of its end).

    Args:
        names, called, outside: see PickleReader; arrays are always allowed.
        leaves: types of placeholders in the value.
    """
    reader = PickleReader(data, names, (*CALLED, *called), "latin1", at, outside)
    return _value_of(reader, LEAVES | set(leaves)), reader.at


def _value_of(reader: PickleReader, leaves):
    collecting, begin = gc.isenabled(), reader.at
    gc.disable()  # halves the time for millions of values, and the values have no reference cycles
    try:
        value = reader.load()
        _check(value, reader.at - begin, leaves)
        return value
    except IndexError:  # from the bytes, the stack, the marks or the memo
        raise ValueError("it is truncated or damaged") from None
    except Exception as error:  # damaged pickles raise almost any exception
        raise ValueError(reason_of(error)) from None
    finally:
        if collecting:
            gc.enable()
