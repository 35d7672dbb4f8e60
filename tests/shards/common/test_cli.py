"""Flags: every mistake is one sentence that names the flag and what would be right."""

import os
import subprocess
import sys
from dataclasses import asdict, dataclass

import pytest

from shards.common.cli import REQUIRED, build, command, flag, usage
from shards.common.errors import UserError


@dataclass
class Config:
    source: str = flag(REQUIRED, "where from", first=True)
    batch_size: int = flag(8, "pairs a step", low=1)
    share: float = flag(0.5, "of the pairs", low=0, high=1)
    lr: float | None = flag(None, "learning rate", above=0)
    kind: str = flag("a", "which", choices=("a", "b"))
    resume: bool = flag(False, "go on")
    out: str | None = flag(None, "where to", written=True)


def parsed(*argv, status=0):
    found = {}
    with pytest.raises(SystemExit) as stopped:
        command(Config, lambda config: found.update(asdict(config)), "some.command", "Does it.", list(argv))
    assert stopped.value.code == status
    return found


def test_texts_become_values_of_the_fields_types():
    assert parsed("here", "--batch_size", "3", "--lr=1e-3", "--resume", "--share", "1") == {
        "source": "here",
        "batch_size": 3,
        "share": 1.0,
        "lr": 1e-3,
        "kind": "a",
        "resume": True,
        "out": None,
    }


def test_names_that_look_like_numbers_stay_texts():
    assert parsed("007", "--batch_size", "3")["source"] == "007"
    assert parsed("--source", "1e5")["source"] == "1e5"


@pytest.mark.parametrize(("text", "value"), [("false", False), ("True", True), ("0", False), ("yes", True)])
def test_booleans_are_real(text, value):
    assert parsed("here", "--resume", text)["resume"] is value


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["here", "--batch_size", "0"], ["--batch_size 0", "1 or more"]),
        (["here", "--batch_size", "abc"], ["--batch_size abc", "should be an integer"]),
        (["here", "--batch_size", "2.5"], ["--batch_size 2.5", "should be an integer"]),
        (["here", "--share", "1.5"], ["--share 1.5", "1 or less"]),
        (["here", "--share", "nan"], ["--share nan"]),
        (["here", "--lr", "inf"], ["--lr inf", "should be a finite number"]),
        (["here", "--batch_size", "99999999999999999999"], ["--batch_size 99999999999999999999", "at most 64 bits"]),
        (["here", "--lr", "0"], ["--lr 0", "more than 0"]),
        (["here", "--kind", "c"], ["--kind c", "a, b"]),
        (["here", "--resume", "perhaps"], ["--resume perhaps", "true or false"]),
        (["here", "--batchsize", "3"], ["--batchsize", "did you mean --batch_size"]),
        (["here", "--out", ""], ["--out is empty", "path"]),
        (["here", "--out", "s3://bucket/runs"], ["--out s3://bucket/runs", "is a URL; it should be a local path"]),
        (["here", "--zzz", "3"], ["--zzz", "--help"]),
        (["here", "there"], ["there", "SOURCE"]),
        ([], ["SOURCE is missing", "where from"]),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_and_status_2(argv, words, capsys):
    parsed(*argv, status=2)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_help_lists_every_flag_with_its_default(capsys):
    parsed("--help")
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in asdict(Config(source="x")))
    assert "[required]" in out and "[default: 8]" in out and "--kind {a,b} " in out
    types = [("batch_size", "INT"), ("share", "FLOAT"), ("resume", "BOOL"), ("source", "TEXT"), ("out", "PATH")]
    assert all(f"  --{name} {kind} " in out for name, kind in types)


@dataclass(kw_only=True)
class Shared:
    seed: int = flag(0, "random seed", group="run")
    data: str = flag("world", "a folder", group="data")
    workers: int = flag(1, "processes")


@dataclass(kw_only=True)
class Grouped(Shared):
    device: str = flag("cpu", "a device", group="speed and memory")
    words: int = flag(36, "a rather long description of " + "many words " * 20, group="data")
    run: str = flag(REQUIRED, "a run", group="model")


@pytest.mark.parametrize("columns", [1, 10, 20, 28, 29])
def test_help_in_a_terminal_narrower_than_its_first_column(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = usage(Grouped, "some.command", "Does it.")
    assert all(f"--{name}" in text for name in ("seed", "words", "run")) and max(map(len, text.splitlines())) <= 60


def test_help_groups_flags_in_columns_and_ends_with_examples(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    text = usage(Grouped, "some.command", "Does it.", ("python -m some.command --run r",))
    assert [line for line in text.splitlines() if line.endswith(":")] == [
        *("model:", "data:", "speed and memory:", "run:", "examples:")
    ]
    between = text[text.index("data:") : text.index("speed")].splitlines()
    assert [line.split()[0] for line in between if line.startswith("  --")] == ["--words", "--data", "--workers"]
    assert max(map(len, text.splitlines())) <= 70
    assert {line[28] != " " and line[27] == " " for line in between[1:] if line} == {True}
    assert text.endswith("examples:\n  python -m some.command --run r")


@dataclass
class Renamed:
    max_regions: int = flag(36, "regions per image", low=1, formerly="regions")
    balance: str = flag("steps", "a method", formerly="one_step", former_values={True: "sum", False: "steps"})
    seed: int = flag(0, "random seed")


def run_renamed(*argv, stored=None) -> dict:
    found = {}
    with pytest.raises(SystemExit) as stopped:
        inherit = {"inherit": lambda flags: stored} if stored else {}
        command(Renamed, lambda config: found.update(asdict(config)), "some.command", "", list(argv), **inherit)
    return found | {"status": stopped.value.code}


def test_a_former_name_is_accepted_with_a_notice(capsys, monkeypatch):
    assert run_renamed("--regions", "5") == {"max_regions": 5, "balance": "steps", "seed": 0, "status": 0}
    notice = "--regions is deprecated and will be removed after version 1; use --max_regions\n"
    assert capsys.readouterr().err == notice
    assert run_renamed("--max_regions", "6", "--seed", "1") == {
        "max_regions": 6,
        "balance": "steps",
        "seed": 1,
        "status": 0,
    }
    assert capsys.readouterr().err == ""
    assert run_renamed("--regions", "7", stored={"max_regions": 36, "seed": 2})["max_regions"] == 7
    assert capsys.readouterr().err == notice
    second = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 9}
    for name, value in second.items():
        monkeypatch.setenv(name, str(value))
    assert run_renamed("--regions", "5")["max_regions"] == 5
    assert capsys.readouterr().err == ""  # the first rank prints it


def test_a_former_name_is_checked_and_not_combined_with_the_new_one(capsys):
    assert run_renamed("--regions", "0")["status"] == 2
    assert "error: --max_regions 0: should be 1 or more" in capsys.readouterr().err
    assert run_renamed("--regions", "5", "--max_regions", "6")["status"] == 2
    assert "error: --regions 5: former name of --max_regions, which is also given" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "balance"), [((), "sum"), (("true",), "sum"), (("false",), "steps")])
def test_the_value_of_a_former_flag_is_converted(capsys, given, balance):
    assert run_renamed("--one_step", *given)["balance"] == balance
    assert capsys.readouterr().err.endswith(f"; use --balance {balance}\n")


def test_a_former_flag_accepts_its_former_values_only(capsys):
    assert run_renamed("--one_step", "sum")["status"] == 2
    assert "error: --one_step sum: should be true or false" in capsys.readouterr().err


def test_stored_flags_of_an_earlier_version_are_converted_without_a_notice(capsys):
    stored = {"regions": 7, "one_step": True, "seed": 2}
    assert run_renamed(stored=stored) == {"max_regions": 7, "balance": "sum", "seed": 2, "status": 0}
    assert run_renamed("--balance", "dwa", "--max_regions", "8", stored=stored)["balance"] == "dwa"
    assert capsys.readouterr().err == ""


def test_help_has_no_former_names():
    text = usage(Renamed, "some.command", "")
    assert "--max_regions" in text and "--regions" not in text and "--one_step" not in text


def test_values_from_python_are_checked_like_texts():
    assert build(Config, {"source": "x", "share": 1}).share == 1.0
    with pytest.raises(UserError, match="--batch_size"):
        build(Config, {"source": "x", "batch_size": "many"})


@dataclass
class Many:
    runs: tuple[str, ...] = flag(REQUIRED, "what to read", first=True)
    out: str = flag("out", "where to")


@pytest.mark.parametrize(
    ("argv", "runs"),
    [(("a", "b", "c"), ("a", "b", "c")), (("a", "--out", "o", "b"), ("a", "b")), (("--runs", "a"), ("a",))],
)
def test_a_tuple_takes_all_that_has_no_name(argv, runs):
    found = []
    with pytest.raises(SystemExit):
        command(Many, lambda config: found.append(config.runs), "some.command", "Does it.", list(argv))
    assert found == [runs]


def test_a_tuple_that_is_needed_is_missed(capsys):
    with pytest.raises(SystemExit) as stopped:
        command(Many, lambda config: None, "some.command", "Does it.", [])
    assert stopped.value.code == 2 and "RUNS is missing: what to read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(Many, lambda config: None, "some.command", "Does it.", ["--help"])
    assert "python -m some.command RUNS ... [--FLAG VALUE ...]" in capsys.readouterr().out


def test_a_folder_where_a_file_should_go_is_named(tmp_path, capsys):
    from shards.common.files import whole_file

    def run(config):
        with whole_file(config.out, "w") as file:
            file.write("a")

    with pytest.raises(SystemExit):
        command(Many, run, "some.command", "Does it.", ["a", "--out", str(tmp_path)])
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"


WRITES = """
from dataclasses import dataclass
from shards.common.cli import command

@dataclass
class Config:
    pass

command(Config, lambda config: print("caption: \\U0001f642"), "some.command", "Does it.", [])
"""


FLUSHES = WRITES.replace('")', '", flush=True)')


@pytest.mark.parametrize(
    ("environment", "warns"),
    [
        ({"PYTHONIOENCODING": "ascii"}, False),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, True),
    ],
)
def test_captions_are_printed_where_the_terminal_is_not_utf_8(environment, warns):
    """UnicodeEncodeError: 'ascii' codec can't encode character."""
    done = subprocess.run([sys.executable, "-c", WRITES], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "caption: \\U0001f642\n", done.stderr
    assert ("set PYTHONUTF8=1" in done.stderr) == warns


def test_a_full_standard_output_is_named():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", FLUSHES], stdout=full, stderr=-1)
    assert done.returncode == 2 and done.stderr == b"error: a file or the standard output: No space left on device\n"
