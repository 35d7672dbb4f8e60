"""Pickles that attack the program that reads them: each ends in a ValueError, and nothing else happens."""

import multiprocessing
import pickle
import resource
import struct
import time

import numpy as np
import pytest

from shards.parsing.safe_pickle import unpickle

MEGABYTES = 200  # of memory that a small pickle may take beyond what the process has
CORE = b"cnumpy.core.multiarray\n"
DTYPE = b"cnumpy\ndtype\n"
DOUBLED = b"](h%ch%ceq%c"  # a list that holds an earlier one twice
ARRAY = CORE + b"_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


def kind(code: bytes, state: bytes = b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb") -> bytes:
    """A numpy.dtype in protocol 0."""
    return DTYPE + b"(S'" + code + b"'\nI0\nI1\ntR" + state


def array(code: bytes, shape: bytes, content: bytes, state: bytes = b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb") -> bytes:
    """A numpy array in protocol 0, as numpy writes it."""
    return ARRAY + b"(I1\n(" + shape + b"t" + kind(code, state) + b"I00\n" + content + b"tb."


def many_copies(what: bytes, call: bytes) -> bytes:
    """A list of a value, memo 0, the text latin1, memo 1, and 500 results of a call that copies them."""
    return b"\x80\x02](" + what + b"q\x00" + b"X\x06\x00\x00\x00latin1q\x01" + call * 500 + b"e."


LONG = 1 << 20
OBJECTS = (
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01J"
    + struct.pack("<i", LONG >> 3)
    + b"\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R\x89h\x00tb"
)
HOSTILE = {
    "object flag cleared": array(b"O8", b"I1\n", b"S'12345678'\n", b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"),
    "object flag cleared by an old state": array(b"O8", b"I1\n", b"S'12345678'\n", b"(I2\nS'|'\nNNNI-1\nI-1\ntb"),
    "fewer objects than the shape": array(b"O8", b"I1000000\n", b"(lI1\na", b"(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb"),
    "fewer bytes than the shape": array(b"f8", b"I1000000\n", b"S'12345678'\n"),
    "negative shape": array(b"f8", b"I-1\n", b"S'12345678'\n"),
    "objects of bytes": CORE + b"scalar\n(" + kind(b"O8", b"") + b"S'12345678'\ntR.",
    "structure of objects": array(b"V8", b"I1\n", b"S'12345678'\n"),
    "fields by state": array(b"f8", b"I1\n", b"S'12345678'\n", b"(I3\nS'|'\nN(S'a'\nt(dI8\nI1\nI0\ntb"),
    "state of a class": b"cnumpy\ndtype\n(dS'newbyteorder'\nI1\nsb.",
    "state of a list": b"](dS'a'\nI1\nsb.",
    "array of another class": CORE + b"_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
    "array without a state": ARRAY + b".",
    "list that holds itself": b"]q\x00h\x00a.",
    "array that holds itself": ARRAY + b"p0\n(I1\n(I1\nt" + kind(b"O8", b"") + b"I00\n(lg0\natb.",
    "deep list": b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuple as a key": b"}K\x01" + b"\x85" * 1_000_000 + b"K\x01s.",
    "hundred million lists": b"]q\x00" + b"".join(DOUBLED % (n, n, n + 1) for n in range(27)) + b".",
    "memo of two gigabytes": b"Nr\xff\xff\xff\x07.",
    "memo of sixteen gigabytes": b"Nr\xff\xff\xff\x7f.",
    "memo by a number in text": b"Np2000000000\n.",
    "half a gigabyte of one text": many_copies(
        b"X" + struct.pack("<I", LONG) + b"a" * LONG, b"c_codecs\nencode\nh\x00h\x01\x86R"
    ),
    "half a gigabyte of one list": many_copies(b"](" + b"N" * (LONG >> 3) + b"e", OBJECTS),
    "text of four gigabytes": b"\x80\x02X\xff\xff\xff\xff.",
    "text of more than there is": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
    "bytes of more than there is": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "bytearray of more than there is": b"\x80\x05\x96" + struct.pack("<Q", 2**32) + b".",
    "number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "lone surrogate": b"V\\ud800\n.",
    "surrogate in UTF-8": b"\x80\x02X\x03\x00\x00\x00\xed\xa0\x80.",
    "set": pickle.dumps({1, 2}),
    "no stop": pickle.dumps([1, 2])[:-1],
    "nothing on the stack": b".",
}


def _read(data: bytes, results) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        value = unpickle(data, arrays=True)
        said = f"made {type(value).__name__} {repr(value)[:50]}"
    except ValueError as error:
        said = f"refused: {error}"
    results.put((said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def read_in_child(data: bytes) -> tuple[str, float]:
    """(what came of it, megabytes of memory), of a process of its own: some of these pickles have killed it."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_read, args=(data, results))
    child.start()
    try:
        return results.get(timeout=20)
    except Exception:
        child.join(0)
        raise AssertionError(f"the process ended with {child.exitcode}") from None
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pickle_is_refused(data):
    said, megabytes = read_in_child(data)
    assert said.startswith("refused: ") and len(said) < 200 and megabytes < MEGABYTES


VALUE = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "big-endian": np.arange(6, dtype=">i4"),
    "columns": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "half": np.ones((1, 2, 3), np.float16),
    "bool": np.array([True, False]),
    "bytes": np.array([b"a", b"bcd"]),
    "text": np.array(["a", "bcdé"]),
    "empty": np.zeros((0, 4), np.float64),
    "objects": np.array([[1, "a"], [None, [2.5]]], dtype=object),
    "number": np.float32(0.5),
    "truth": np.bool_(True),
    "shared": [[1, 2]] * 3,
    "long": [*range(-70000, 70000, 7), 2**40, -(2**70)],
    "dictionary": {f"key {n}": n / 3 for n in range(3000)} | {7: "é€😀\n'\"\\", b"raw": b"\x00\xff"},
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "truths": [None, True, False],
}


def plain(value):
    """A value with lists in the place of arrays, to be compared."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, plain(value.tolist())
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize("protocol", range(6))
def test_values_are_those_of_the_standard_unpickler(protocol):
    data = pickle.dumps(VALUE, protocol)
    assert plain(unpickle(data, arrays=True)) == plain(VALUE)


@pytest.mark.parametrize("protocol", range(6))
def test_cut_and_changed_pickles_raise_nothing_but_value_errors(protocol):
    few = VALUE | {"long": VALUE["long"][:100], "dictionary": dict(list(VALUE["dictionary"].items())[-100:])}
    data, random = pickle.dumps(few, protocol), np.random.default_rng(protocol)
    for place in random.integers(0, len(data), 200).tolist():
        changed = bytearray(data)
        changed[place] = random.integers(256)
        for damaged in (data[:place], bytes(changed)):
            try:
                unpickle(damaged, arrays=True)
            except ValueError as error:
                assert str(error)


def test_texts_of_python_2():
    assert unpickle(b"(dp1\nS'caf\\xc3\\xa9'\np2\n(lp3\nI5\naI01\naVd\\u00e9j\\u00e0\naS\"it's\"\nas.") == {
        "café": [5, True, "déjà", "it's"]
    }
    assert unpickle(b"\x80\x02U\x02\xff\xfe.", arrays=True) == "\xff\xfe"


@pytest.mark.slow
def test_a_long_pickle_takes_seconds():
    value = [{"question_id": n, "image_id": n % 999, "labels": [n % 3129], "scores": [1.0]} for n in range(300_000)]
    data = pickle.dumps(value, 4)
    began = time.process_time()
    assert unpickle(data) == value
    assert time.process_time() - began < 20
