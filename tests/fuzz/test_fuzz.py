"""Damaged files of every input format: a sentence, counted skips or success; no traceback, signal or hang.

A mutation is read in a child that is forked from this process, which has all imports, with limits of memory and time.
`pytest tests/fuzz -m slow --seeds 500` tries more seeds.
"""

import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
from fuzz.formats import FORMATS
from fuzz.mutations import VALUES, mutated, other_value

SECONDS, GIGABYTES = 30, 3  # of a child, beyond what this process has
LONGEST = 2100  # characters of a message, with the note on what was left out
QUICK = 3  # seeds in `make test`


def in_child(read, folder: Path, log: Path) -> tuple[int, str]:
    """(exit status, negative for a signal; what was printed) of read(folder) in a process of its own."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + (GIGABYTES << 30)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            status = read(folder)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), log.read_text(errors="replace")


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check(name: str, folder: Path, log: Path) -> None:
    before = files_of(folder)
    status, said = in_child(FORMATS[name][1], folder, log)
    assert status in (0, 2) and "Traceback" not in said, said[-3000:]
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert bool(errors) == (status == 2) and all(len(line) < LONGEST for line in errors), said[-3000:]
    assert not [path for path in files_of(folder) if path not in before and path.name.endswith(".part")]


def sample(name: str, folder: Path) -> list[Path]:
    folder.mkdir()
    FORMATS[name][0](folder)
    return files_of(folder)


def try_seeds(name: str, seeds, tmp_path: Path) -> None:
    for seed in seeds:
        folder = tmp_path / f"{seed}"
        random = np.random.default_rng([seed, *name.encode()])
        files = sample(name, folder)
        file = files[int(random.integers(len(files)))]
        file.write_bytes(mutated(file.read_bytes(), random))
        try:
            check(name, folder, tmp_path / "log")
        except AssertionError as error:
            raise AssertionError(f"{name}, seed {seed}, {file}: {error}") from None


@pytest.mark.parametrize("name", FORMATS)
def test_valid_samples_are_read(tmp_path, name):
    sample(name, tmp_path / "sample")
    status, said = in_child(FORMATS[name][1], tmp_path / "sample", tmp_path / "log")
    assert status == 0, said


@pytest.mark.parametrize("name", FORMATS)
def test_some_mutations(tmp_path, name):
    try_seeds(name, range(QUICK), tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_pipe_in_place_of_any_file(tmp_path, name):
    """Opening one waits for a program that writes to it, for ever."""
    for number in range(len(sample(name, tmp_path / "whole"))):
        folder = tmp_path / f"{number}"
        file = sample(name, folder)[number]
        file.unlink()
        os.mkfifo(file)
        check(name, folder, tmp_path / "log")


JSON = ("shards", "run", "clean", "boxes", "answers", "vqa", "vgqa", "gqa", "retrieval", "refcoco", "visual7w", "nlvr2")


@pytest.mark.slow
@pytest.mark.parametrize("name", (*JSON, "snli_ve"))
def test_every_value_that_was_found_in_every_json_file(tmp_path, name):
    """Deep, huge, not finite, half characters and wrong types: the kinds on which readers have failed."""
    suffixes = (".json", ".jsonl")
    for place, value in enumerate(VALUES):
        for number in range(2):
            folder = tmp_path / f"{place}-{number}"
            random = np.random.default_rng([place, number])
            files = [path for path in sample(name, folder) if path.suffix in suffixes]
            file = files[int(random.integers(len(files)))]
            file.write_bytes(other_value(file.read_bytes(), random, value))
            check(name, folder, tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_mutations(tmp_path, name, request):
    try_seeds(name, range(QUICK, QUICK + request.config.getoption("--seeds")), tmp_path)
