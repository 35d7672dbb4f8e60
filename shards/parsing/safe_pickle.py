"""Reads untrusted pickles without Python's unpickler: only plain values and, if requested, arrays are created.

A pickle is a program: it can name and call any function, set the state of any object (numpy's `__setstate__` accepts
states that corrupt memory), and allocate more memory than it has bytes. This reader supports only the opcodes of plain
values. For arrays, placeholders are called, which check dtype, shape and bytes for consistency. Memory and time are
proportional to the length of the pickle.
"""

import gc
import math
import re
from struct import unpack_from

import numpy as np

from shards.common.untrusted_input import reason_of

LATEST = 5  # maximum protocol
MAX_DEPTH = 100  # maximum nesting of containers
ITEMS_PER_BYTE = 4  # maximum number of items per byte of the pickle; repeated references to a list cost few bytes
MEMO = 1 << 24  # maximum index of a memo entry
KEYS = frozenset({str, int, bytes, float, bool, type(None)})  # types whose hash does not recurse
LEAVES = KEYS | {bytearray}


class Refused(Exception):
    """The pickle contains something other than plain values and arrays."""


class _Nothing:
    """The content of a memo entry that was never set."""


class _ArrayType:
    """Placeholder of numpy.ndarray, which pickles name but do not call."""


class _Dtype:
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


class _Array:
    """Placeholder of an array until its state is set. place: index in the memo."""

    def __init__(self, kind, shape, code):
        if kind is not _ArrayType:
            raise Refused("it has an array of another class")
        self.place = 0

    @staticmethod
    def of_state(state) -> np.ndarray:
        """The array of a state (version, shape, dtype, Fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) not in (4, 5) or not isinstance(state[-3], _Dtype):
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
    if not isinstance(kind, _Dtype) or kind.dtype.hasobject:
        raise Refused("it has a number without a type")
    return kind.of_bytes(data, (), "C").item()


def _array_of_buffer(data, kind, shape, order) -> np.ndarray:
    if not isinstance(kind, _Dtype) or kind.dtype.hasobject or order not in ("C", "F"):
        raise Refused("it has an array without a type")
    return kind.of_bytes(data, shape, order)


ARRAYS = {("numpy", "ndarray"): _ArrayType, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _bytes_of_text}
ARRAYS["__builtin__", "bytes"] = _no_bytes
for _core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
    ARRAYS |= {
        (f"{_core}.multiarray", "_reconstruct"): _Array,
        (f"{_core}.multiarray", "scalar"): _number,
        (f"{_core}.numeric", "_frombuffer"): _array_of_buffer,
    }
_CALLED = (_Dtype, _Array, _bytes_of_text, _no_bytes, _number, _array_of_buffer)


class _Reader:
    """Reads one pickle.

    Attributes:
        data: bytes, or a mapped file.
        at: offset of the pickle; after `load`, offset of its end.
        allowed: (module, name) -> placeholder.
        called: placeholders that can be called.
        encoding: encoding of Python 2 strings.
        outside: function from a persistent id to a placeholder; None to reject persistent ids.
    """

    def __init__(self, data, allowed: dict, called: tuple, encoding: str, at: int = 0, outside=None):
        self.data, self.allowed, self.called, self.encoding = data, allowed, called, encoding
        self.at, self.outside = at, outside
        self.stack: list = []
        self.memo: list = []
        self.marks: list[int] = []

    def load(self):
        """Reads the value. Frequent opcodes are handled here for speed, the others in _OTHERS."""
        data, stack, memo, marks = self.data, self.stack, self.memo, self.marks
        push = stack.append
        at = self.at
        while True:
            op = data[at]
            at += 1
            if op == 0x68:  # h, BINGET
                push(memo[data[at]])
                at += 1
            elif op == 0x94:  # MEMOIZE
                memo.append(stack[-1])
            elif op == 0x71 or op == 0x72:  # q, BINPUT; r, LONG_BINPUT
                size = 1 if op == 0x71 else 4
                index = int.from_bytes(data[at : at + size], "little")
                at += size
                if index == len(memo):
                    memo.append(stack[-1])
                else:
                    self._put(index)
            elif op == 0x6A:  # j, LONG_BINGET
                push(memo[int.from_bytes(data[at : at + 4], "little")])
                at += 4
            elif op == 0x4B:  # K, BININT1
                push(data[at])
                at += 1
            elif op == 0x4D:  # M, BININT2
                push(data[at] | data[at + 1] << 8)
                at += 2
            elif op == 0x4A:  # J, BININT
                push(unpack_from("<i", data, at)[0])
                at += 4
            elif op == 0x47:  # G, BINFLOAT
                push(unpack_from(">d", data, at)[0])
                at += 8
            elif op == 0x8C:  # SHORT_BINUNICODE
                end = at + 1 + data[at]
                push(data[at + 1 : end].decode())
                at = end
            elif op == 0x58:  # X, BINUNICODE
                end = at + 4 + int.from_bytes(data[at : at + 4], "little")
                push(data[at + 4 : end].decode())
                at = end
            elif op == 0x5D:  # ], EMPTY_LIST
                push([])
            elif op == 0x7D:  # }, EMPTY_DICT
                push({})
            elif op == 0x28:  # (, MARK
                marks.append(len(stack))
            elif op == 0x75:  # u, SETITEMS
                self._set(self._marked())
            elif op == 0x65:  # e, APPENDS
                values = self._marked()
                self._list().extend(values)
            elif op == 0x61:  # a, APPEND
                value = stack.pop()
                self._list().append(value)
            elif op == 0x73:  # s, SETITEM
                pair = stack[-2:]
                del stack[-2:]
                self._set(pair)
            elif op == 0x2E:  # ., STOP
                self.at = at
                return stack.pop()
            elif op in _OTHERS:
                self.at = at
                _OTHERS[op](self)
                at = self.at
            else:
                raise Refused(f"it has the opcode {bytes([op])!r}, which plain values do not need")
            if at > len(data):
                raise Refused("it is truncated")

    def _put(self, index: int) -> None:
        memo = self.memo
        if index == len(memo):
            memo.append(self.stack[-1])
            return
        if index > min(len(self.data), MEMO):  # an entry takes at least two bytes of the pickle
            raise Refused(f"it has the memo index {index}, but only {len(self.data)} bytes")
        memo += [_Nothing] * (index + 1 - len(memo))
        memo[index] = self.stack[-1]

    def _marked(self) -> list:
        """Pops the values above the last mark from the stack."""
        begin = self.marks.pop()
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def _list(self) -> list:
        if type(self.stack[-1]) is not list:
            raise Refused("it appends to something other than a list")
        return self.stack[-1]

    def _set(self, pairs: list) -> None:
        """Adds alternating keys and values to the dict on top of the stack."""
        keys = pairs[::2]
        if type(self.stack[-1]) is not dict or len(pairs) % 2:
            raise Refused("it sets a key of something other than a dictionary")
        if not KEYS.issuperset(map(type, keys)):
            raise Refused("it has a dictionary with keys other than strings and numbers")
        self.stack[-1].update(zip(keys, pairs[1::2], strict=True))

    # The other opcodes; `at` is the offset after the opcode.

    def _take(self, size: int) -> bytes:
        begin, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise Refused("it is truncated")
        return self.data[begin : self.at]

    def _whole(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise Refused("it is truncated")
        return self._take(end + 1 - self.at)[:-1]

    def _protocol(self) -> None:
        if self._whole(1) > LATEST:
            raise Refused("it has an unknown protocol")

    def _int(self) -> None:
        text = self._line()
        self.stack.append({b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else int(text))

    def _string(self) -> None:
        text = self._line().strip()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in b"'\"":
            raise Refused("it has a string without quotes")
        raw = text[1:-1].decode("latin1").encode("latin1", "backslashreplace")
        self.stack.append(raw.decode("unicode_escape").encode("latin1").decode(self.encoding))

    def _unicode(self) -> None:
        text = self._line().decode("raw_unicode_escape")
        # Python 2 wrote characters outside of the basic multilingual plane as surrogate pairs.
        self.stack.append(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le"))

    def _tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise Refused("it is damaged")
        values = tuple(self.stack[len(self.stack) - size :])
        del self.stack[len(self.stack) - size :]
        self.stack.append(values)

    def _dict(self) -> None:
        pairs = self._marked()
        self.stack.append({})
        self._set(pairs)

    def _name(self, module: str, name: str) -> None:
        if (module, name) not in self.allowed:
            raise Refused(f"it names {module[:60]}.{name[:60]}")
        self.stack.append(self.allowed[module, name])

    def _stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("it has a name that is not a string")
        self._name(module, name)

    def _refer(self) -> None:
        if self.outside is None:
            raise Refused("it has a persistent id")
        self.stack.append(self.outside(self.stack.pop()))

    def _call(self) -> None:
        values, called = self.stack.pop(), self.stack.pop()
        if called not in self.called or not isinstance(values, tuple):
            raise Refused("it calls something that is not allowed")
        try:
            value = called(*values)
        except TypeError:
            raise Refused("it has an array with invalid arguments") from None
        if isinstance(value, _Array):
            value.place = len(self.memo)
        self.stack.append(value)

    def _build(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, _Dtype):
            value.set_state(state)
        elif isinstance(value, _Array):
            self.stack[-1] = value.of_state(state)
            if value.place < len(self.memo) and self.memo[value.place] is value:
                self.memo[value.place] = self.stack[-1]
        elif type(value) is not dict or self.outside is None:  # torch sets an irrelevant state of dictionaries
            raise Refused("it sets the state of an object")


_R = _Reader
_OTHERS = {
    ord("N"): lambda r: r.stack.append(None),
    0x88: lambda r: r.stack.append(True),
    0x89: lambda r: r.stack.append(False),
    0x80: _R._protocol,
    0x95: lambda r: r._take(8),  # FRAME: length of the frame, not needed
    ord("I"): _R._int,
    ord("L"): lambda r: r.stack.append(int(r._line().rstrip(b"L"))),
    0x8A: lambda r: r.stack.append(int.from_bytes(r._take(r._whole(1)), "little", signed=True)),
    0x8B: lambda r: r.stack.append(int.from_bytes(r._take(r._whole(4)), "little", signed=True)),
    ord("F"): lambda r: r.stack.append(float(r._line())),
    ord("S"): _R._string,
    ord("T"): lambda r: r.stack.append(r._take(r._whole(4)).decode(r.encoding)),
    ord("U"): lambda r: r.stack.append(r._take(r._whole(1)).decode(r.encoding)),
    ord("V"): _R._unicode,
    0x8D: lambda r: r.stack.append(r._take(r._whole(8)).decode()),
    ord("B"): lambda r: r.stack.append(r._take(r._whole(4))),
    ord("C"): lambda r: r.stack.append(r._take(r._whole(1))),
    0x8E: lambda r: r.stack.append(r._take(r._whole(8))),
    0x96: lambda r: r.stack.append(bytearray(r._take(r._whole(8)))),
    ord(")"): lambda r: r.stack.append(()),
    ord("t"): lambda r: r.stack.append(tuple(r._marked())),
    0x85: lambda r: r._tuple(1),
    0x86: lambda r: r._tuple(2),
    0x87: lambda r: r._tuple(3),
    ord("l"): lambda r: r.stack.append(r._marked()),
    ord("d"): _R._dict,
    ord("p"): lambda r: r._put(int(r._line())),
    ord("g"): lambda r: r.stack.append(r.memo[int(r._line())]),
    ord("c"): lambda r: r._name(r._line().decode(), r._line().decode()),
    0x93: _R._stack_name,
    ord("R"): _R._call,
    ord("b"): _R._build,
    ord("Q"): _R._refer,
}


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
    return _value_of(_Reader(data, allowed, _CALLED, encoding), LEAVES)


def unpickle_at(data, at: int, names: dict, called: tuple, outside, leaves: tuple) -> tuple[object, int]:
    """(value of the pickle at an offset of bytes or of a mapped file, offset of its end).

    Args:
        names, called, outside: see _Reader; arrays are always allowed.
        leaves: types of placeholders in the value.
    """
    reader = _Reader(data, names, (*_CALLED, *called), "latin1", at, outside)
    return _value_of(reader, LEAVES | set(leaves)), reader.at


def _value_of(reader: _Reader, leaves):
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
