"""Pickles from elsewhere, read without Python's own unpickler: nothing is made but plain values and, where they are
asked for, arrays.

A pickle is a program: it may name any function and have it called, set the state of any object (numpy's own
`__setstate__` takes a state that corrupts memory), and ask for memory that its bytes do not fill. This reader has the
opcodes of plain values alone. Of what arrays are made of, stand-ins are called that take a number type, a shape and
bytes, and check that they fit together. Memory and time are proportional to the length of the pickle.
"""

import gc
import math
import re
from struct import unpack_from

import numpy as np

from shards.reading import reason_of

LATEST = 5  # protocol
MAX_DEPTH = 100  # containers inside each other
ITEMS_PER_BYTE = 4  # a value that refers to one list again and again is larger than its pickle, but not much
MEMO = 1 << 24  # places that the memo may be ahead of what it has
KEYS = frozenset({str, int, bytes, float, bool, type(None)})  # hashing these cannot recurse
LEAVES = KEYS | {bytearray}


class Refused(Exception):
    """The pickle wants something that is neither a plain value nor an array."""


class _Nothing:
    """The content of a memo entry that was never set."""


class _ArrayType:
    """Stands for numpy.ndarray, which a pickle names but has no need to call."""


class _Dtype:
    """Stands for a numpy.dtype: of numbers, bytes or text, or (code O) of values of a list."""

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
        """Takes the byte order from a state (version, order, None, None, None, -1, -1, flags)."""
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise Refused("it has an array of structures")
        if state[1] not in ("<", ">", "|", "="):
            raise Refused("it has an array without a byte order")
        if state[1] in "<>" and not self.dtype.hasobject:
            self.dtype = self.dtype.newbyteorder(state[1])

    def of_bytes(self, data, shape, order: str) -> np.ndarray:
        """The array of this type and shape in some bytes, of which there must be as many as it needs."""
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise Refused("it has an array without a shape")
        if self.dtype.hasobject:
            return self._of_list(data, shape, order)
        data = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * self.dtype.itemsize:
            raise Refused("it has an array whose shape and bytes do not fit together")
        if self.dtype.kind == "b":
            values = np.frombuffer(data, np.uint8) != 0
        else:
            values = np.frombuffer(data, self.dtype) if data else np.zeros(0, self.dtype)
        if self.dtype.kind == "U":
            values.tolist()  # a ValueError where a number is no character
        return values.reshape(shape, order=order)

    def _of_list(self, values, shape, order: str) -> np.ndarray:
        if not isinstance(values, list) or len(values) != math.prod(shape):
            raise Refused("it has an array whose shape and values do not fit together")
        return np.fromiter(values, object, len(values)).reshape(shape, order=order)


class _Array:
    """Stands for an array until its state is there. place: in the memo, where the pickle keeps it."""

    def __init__(self, kind, shape, code):
        if kind is not _ArrayType:
            raise Refused("it has an array of a class of its own")
        self.place = 0

    @staticmethod
    def of_state(state) -> np.ndarray:
        """The array of a state (version, shape, type, whether it is in column order, bytes)."""
        if not isinstance(state, tuple) or len(state) not in (4, 5) or not isinstance(state[-3], _Dtype):
            raise Refused("it has an array without a type")
        *_, shape, kind, columns, data = state
        return kind.of_bytes(data, shape, "F" if columns else "C")


def _bytes_of_text(text, encoding) -> bytes:
    """How protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused(f"it names the encoding {str(encoding)[:20]}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocols before 3 write bytes of which there are none."""
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

    data: bytes, or a mapped file; at: where the pickle begins, after `load` where it ends; allowed: (module, name) ->
    what stands for it; called: those of them that may be called; encoding: of the texts of Python 2; outside: makes
    what stands for a reference to something outside the pickle.
    """

    def __init__(self, data, allowed: dict, called: tuple, encoding: str, at: int = 0, outside=None):
        self.data, self.allowed, self.called, self.encoding = data, allowed, called, encoding
        self.at, self.outside = at, outside
        self.stack: list = []
        self.memo: list = []
        self.marks: list[int] = []

    def load(self):
        """The value of the pickle. The opcodes of which long pickles consist come first, the others are in _OTHERS."""
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
                raise Refused(f"it has the opcode {bytes([op])!r}, which no plain value needs")
            if at > len(data):
                raise Refused("it is cut short")

    def _put(self, index: int) -> None:
        memo = self.memo
        if index == len(memo):
            memo.append(self.stack[-1])
            return
        if index > min(len(self.data), MEMO):  # an entry takes two bytes of the pickle or more
            raise Refused(f"it keeps a value at place {index}, and has {len(self.data)} bytes")
        memo += [_Nothing] * (index + 1 - len(memo))
        memo[index] = self.stack[-1]

    def _marked(self) -> list:
        """Takes off the stack what stands above the last mark."""
        begin = self.marks.pop()
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def _list(self) -> list:
        if type(self.stack[-1]) is not list:
            raise Refused("it adds a value to what is no list")
        return self.stack[-1]

    def _set(self, pairs: list) -> None:
        """Adds keys and values, one after the other, to the dict on top of the stack."""
        keys = pairs[::2]
        if type(self.stack[-1]) is not dict or len(pairs) % 2:
            raise Refused("it sets a key of what is no dictionary")
        if not KEYS.issuperset(map(type, keys)):
            raise Refused("it has a dictionary whose keys are not all texts or numbers")
        self.stack[-1].update(zip(keys, pairs[1::2], strict=True))

    # The other opcodes; `at` is the place after the opcode.

    def _take(self, size: int) -> bytes:
        begin, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise Refused("it is cut short")
        return self.data[begin : self.at]

    def _whole(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise Refused("it is cut short")
        return self._take(end + 1 - self.at)[:-1]

    def _protocol(self) -> None:
        if self._whole(1) > LATEST:
            raise Refused("it is of an unknown protocol")

    def _int(self) -> None:
        text = self._line()
        self.stack.append({b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else int(text))

    def _string(self) -> None:
        text = self._line().strip()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in b"'\"":
            raise Refused("it has a text without quotes")
        raw = text[1:-1].decode("latin1").encode("latin1", "backslashreplace")
        self.stack.append(raw.decode("unicode_escape").encode("latin1").decode(self.encoding))

    def _unicode(self) -> None:
        text = self._line().decode("raw_unicode_escape")
        # Python 2 wrote characters beyond the first plane as pairs.
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
            raise Refused("it names what is no text")
        self._name(module, name)

    def _refer(self) -> None:
        if self.outside is None:
            raise Refused("it refers to something outside itself")
        self.stack.append(self.outside(self.stack.pop()))

    def _call(self) -> None:
        values, called = self.stack.pop(), self.stack.pop()
        if called not in self.called or not isinstance(values, tuple):
            raise Refused("it calls something that is not to be called")
        try:
            value = called(*values)
        except TypeError:
            raise Refused("it has an array of the wrong parts") from None
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
        elif type(value) is not dict or self.outside is None:  # torch gives its dictionaries a state that is not needed
            raise Refused("it sets the state of an object")


_R = _Reader
_OTHERS = {
    ord("N"): lambda r: r.stack.append(None),
    0x88: lambda r: r.stack.append(True),
    0x89: lambda r: r.stack.append(False),
    0x80: _R._protocol,
    0x95: lambda r: r._take(8),  # FRAME: the length of what follows, which nothing here needs
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
    """Refuses a value with anything unfinished in it, containers MAX_DEPTH deep, or far more items than its pickle, of
    `length` bytes, has. What follows lists and dicts may then do so without a limit of its own. leaves: types."""
    left, level, depth = 1000 + ITEMS_PER_BYTE * length, [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise Refused(f"it has containers more than {MAX_DEPTH} deep")
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
                raise Refused("it has something that is not finished")
            left -= len(items)
            if left < 0:
                raise Refused("it refers to the same lists again and again")
            if not leaves.issuperset(map(type, items)):
                inside += [item for item in items if type(item) not in leaves]
        level = inside


def unpickle(data, arrays: bool = False):
    """The value of a pickle (bytes) of lists, dicts, texts and numbers, as Python 2 wrote it or later ones do.

    arrays: numpy's arrays and numbers may be among them; texts of Python 2 are then taken as latin-1, as numpy needs.
    Arrays may be read-only, and numbers are Python's. What cannot be read, or is something else, is a ValueError that
    says why.
    """
    data = bytes(data)
    allowed, encoding = (ARRAYS, "latin1") if arrays else ({}, "utf-8")
    return _value_of(_Reader(data, allowed, _CALLED, encoding), LEAVES)


def unpickle_at(data, at: int, names: dict, called: tuple, outside, leaves: tuple) -> tuple[object, int]:
    """(the value of the pickle that begins at a place of bytes or of a mapped file, where it ends).

    names, called, outside: see _Reader, besides arrays; leaves: types of what stands for something in the value.
    """
    reader = _Reader(data, names, (*_CALLED, *called), "latin1", at, outside)
    return _value_of(reader, LEAVES | set(leaves)), reader.at


def _value_of(reader: _Reader, leaves):
    collecting, begin = gc.isenabled(), reader.at
    gc.disable()  # a pickle of millions of values takes half the time, and no value refers to itself
    try:
        value = reader.load()
        _check(value, reader.at - begin, leaves)
        return value
    except IndexError:  # of the bytes, the stack, the marks or the memo
        raise ValueError("it is cut short or damaged") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(reason_of(error)) from None
    finally:
        if collecting:
            gc.enable()
