"""The opcodes of pickles of plain values, and of calls of placeholders."""

from struct import unpack_from

import numpy as np

from shards.parsing.pickle_arrays import ArrayPlaceholder, Dtype, Refused

LATEST = 5  # maximum protocol
MEMO = 1 << 24  # maximum index of a memo entry
COPIED = 16  # maximum bytes that calls make per byte of the pickle; an array of objects takes 8 for the shortest ones
ALLOWANCE = 1 << 20  # bytes that calls may make in addition
KEYS = frozenset({str, int, bytes, float, bool, type(None)})  # types whose hash does not recurse


class _Nothing:
    """The content of a memo entry that was never set."""


class PickleReader:
    """Reads one pickle.

    Attributes:
        data: bytes, or a mapped file.
        at: offset of the pickle; after `load`, offset of its end.
        allowed: (module, name) -> placeholder.
        called: placeholders that can be called.
        encoding: encoding of Python 2 strings.
        outside: function from a persistent id to a placeholder; None to reject persistent ids.
        made: bytes that calls have made so far. A call of a few bytes can copy a large value of the memo.
    """

    def __init__(self, data, allowed: dict, called: tuple, encoding: str, at: int = 0, outside=None):
        self.data, self.allowed, self.called, self.encoding = data, allowed, called, encoding
        self.at, self.begin, self.outside = at, at, outside
        self.stack: list = []
        self.memo: list = []
        self.marks: list[int] = []
        self.made = 0

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
        if isinstance(value, ArrayPlaceholder):
            value.place = len(self.memo)
        self._count(value)
        self.stack.append(value)

    def _count(self, value) -> None:
        """Counts the bytes of a value that a call has made."""
        if isinstance(value, np.ndarray):
            self.made += value.nbytes
        elif isinstance(value, bytes | str):
            self.made += len(value)
        elif isinstance(value, tuple | dict):
            self.made += 8 * len(value)
        if self.made > ALLOWANCE + COPIED * (self.at - self.begin):
            raise Refused("it copies the same values too many times")

    def _build(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, Dtype):
            value.set_state(state)
        elif isinstance(value, ArrayPlaceholder):
            self.stack[-1] = value.of_state(state)
            self._count(self.stack[-1])
            if value.place < len(self.memo) and self.memo[value.place] is value:
                self.memo[value.place] = self.stack[-1]
        elif type(value) is not dict or self.outside is None:  # torch sets an irrelevant state of dictionaries
            raise Refused("it sets the state of an object")


_R = PickleReader
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
