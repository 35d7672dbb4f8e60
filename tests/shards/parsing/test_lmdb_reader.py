"""Our reader of LMDB against the library, and on files that were damaged."""

import pickle

import lmdb
import numpy as np
import pytest

from shards.common.errors import UserError
from shards.parsing.lmdb_reader import Damaged, LMDBFile


def write(path, values: dict[bytes, bytes]) -> None:
    environment = lmdb.open(str(path), map_size=1 << 28, subdir=False)
    with environment.begin(write=True) as writing:
        for key, value in values.items():
            writing.put(key, value)
    environment.close()


def read(path) -> dict[bytes, bytes]:
    with LMDBFile(path) as file:
        return {key: bytes(file.get(key)) for key in file}


@pytest.mark.parametrize("count", [0, 1, 40, 5000])
def test_all_values_are_those_of_the_library(tmp_path, count):
    random = np.random.default_rng(count)
    values = {b"%d" % key: random.bytes(int(random.integers(0, 90))) for key in random.permutation(count).tolist()}
    values |= {b"large %d" % size: random.bytes(size) for size in (0, 2000, 4096, 5000, 300_000)} if count else {}
    values |= {b"k" * 511: b"the longest key"} if count else {}
    write(tmp_path / "x.lmdb", values)
    assert read(tmp_path / "x.lmdb") == values
    with LMDBFile(tmp_path / "x.lmdb") as file:
        assert list(file) == sorted(values)
        for key in (b"", b"0a", b"zzz", b"k" * 600, b"5" * 5):
            assert file.get(key) is None or key in values


def test_a_file_that_was_changed_after_keys_were_removed(tmp_path):
    """Two transactions: the newer of the first two pages counts."""
    values = {b"%05d" % key: b"x" * (key % 3000) for key in range(300)}
    write(tmp_path / "x.lmdb", values)
    environment = lmdb.open(str(tmp_path / "x.lmdb"), map_size=1 << 28, subdir=False)
    with environment.begin(write=True) as writing:
        for key in list(values)[::2]:
            writing.delete(key)
    environment.close()
    assert read(tmp_path / "x.lmdb") == dict(list(values.items())[1::2])


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_raise_nothing_else(tmp_path, seed):
    """The library maps what it finds and is killed by SIGSEGV, SIGBUS or its own assertions."""
    random = np.random.default_rng(seed)
    write(tmp_path / "x.lmdb", {b"%d" % key: pickle.dumps(random.random(int(key % 40) * 30)) for key in range(60)})
    data = (tmp_path / "x.lmdb").read_bytes()
    used = np.flatnonzero(np.frombuffer(data, np.uint8))
    for number in range(150):
        changed = bytearray(data)
        for place in random.choice(used[: 400 if number % 2 else None], 3).tolist():
            changed[place] = random.integers(256)
        if number % 10 == 0:
            del changed[random.integers(len(changed)) :]
        (tmp_path / "y.lmdb").write_bytes(changed)
        try:
            with LMDBFile(tmp_path / "y.lmdb") as file:
                for key in [b"keys", b"7", *list(file)[:99]]:
                    file.get(key)
        except (UserError, Damaged) as error:
            assert str(error)
