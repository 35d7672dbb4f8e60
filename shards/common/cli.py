"""Command-line flags defined by a dataclass, with the same names in Python, on the command line and in config.json.

fire splits the command line into names and strings. Types and ranges are checked here, because fire alone accepts any
string for any field and answers an error with a page of usage.
"""

import dataclasses
import difflib
import io
import math
import shutil
import signal
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import fire

from shards.common.dist_info import ALONE, launched
from shards.common.errors import ErrorOnAnotherRank, UserError
from shards.common.files import is_remote
from shards.common.model_hub import local_model
from shards.common.untrusted_input import LARGEST, refuse_special_file

_YES = {"true", "yes", "1", "on"}
_NO = {"false", "no", "0", "off"}
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
_KINDS = {int: "INT", float: "FLOAT", bool: "BOOL", str: "TEXT"}  # in --help
WIDTH, COLUMN = 120, 28  # of --help: largest width, and where descriptions begin
NARROWEST = COLUMN + 12  # width of --help in a narrower terminal, so that a word fits next to the column
FINALLY = ("speed and memory", "run")  # groups that end the list of flags


def flag(
    default,
    help: str,
    *,
    unset="",
    low=None,
    above=None,
    high=None,
    choices=None,
    first=False,
    written=False,
    model=False,
    group=None,
    formerly=None,
    former_values=None,
):
    """A dataclass field for a flag.

    Args:
        help: text for --help.
        unset: for --help, the effective value of a flag with default None.
        low, high, above: inclusive minimum and maximum, and exclusive minimum.
        choices: allowed values.
        first: positional; a field of type tuple[str, ...] takes all positional values.
        written: an output path; URLs are rejected, because some writers would accept them.
        model: a path of a model, or hf:OWNER/NAME, which is downloaded and replaced by its local path.
        group: heading in --help of this flag and of those after it.
        formerly: the name of the flag in an earlier release, which is still accepted, see `current_flags`.
        former_values: former value -> value, if the flag of that name had other values.
    """
    metadata = {"help": help, "low": low, "above": above, "high": high, "choices": choices}
    metadata |= {"first": first, "written": written, "unset": unset, "model": model, "group": group}
    metadata |= {"formerly": formerly, "former_values": former_values}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


REQUIRED = dataclasses.MISSING


def _type_of(config_type, field):
    """(type of a field without None, whether None is allowed)."""
    hint = typing.get_type_hints(config_type)[field.name]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return parts[0], True
    return hint, False


def _takes_all(config_type, field) -> bool:
    return typing.get_origin(_type_of(config_type, field)[0]) is tuple


def _convert(name: str, text, kind, optional: bool):
    if typing.get_origin(kind) is tuple:
        return (text,) if isinstance(text, str) else tuple(text)
    if not isinstance(text, str):
        value = text
    elif optional and text.lower() == "none":
        return None
    elif kind is bool:
        value = True if text.lower() in _YES else False if text.lower() in _NO else text
    else:
        try:
            value = kind(text)
        except ValueError:
            value = text
    if value is None and optional:
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"--{name} {text}: should be {_NAMES[kind]}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"--{name} {text}: should be a finite number")
    if kind is int and not -LARGEST <= value < LARGEST:
        raise UserError(f"--{name} {text}: should be an integer of at most 64 bits")
    return value


def _check(name: str, value, rules) -> None:
    if value is None:
        return
    for path in value if isinstance(value, tuple) else (value,):
        if isinstance(path, str) and not rules.get("written"):
            refuse_special_file(path, f"--{name} ")
    if rules.get("choices") and value not in rules["choices"]:
        raise UserError(f"--{name} {value}: should be one of {', '.join(map(str, rules['choices']))}")
    if rules.get("low") is not None and not value >= rules["low"]:
        raise UserError(f"--{name} {value}: should be {rules['low']} or more")
    if rules.get("above") is not None and not value > rules["above"]:
        raise UserError(f"--{name} {value}: should be more than {rules['above']}")
    if rules.get("high") is not None and not value <= rules["high"]:
        raise UserError(f"--{name} {value}: should be {rules['high']} or less")
    if rules.get("written") and value == "":
        raise UserError(f"--{name} is empty; it should be a path")
    if rules.get("written") and is_remote(value):
        raise UserError(f"--{name} {value}: is a URL; it should be a local path")


def current_flags(
    config_type, values: dict[str, Any], notice: Callable[[str, str], None] = lambda former, current: None
) -> dict[str, Any]:
    """Values by the name of their flag: former names of flags are replaced, and their values converted.

    Args:
        config_type: dataclass of the flags; `values` may contain other names too, which are not changed.
        values: of a command line, of an earlier version's config.json, or of a call from Python.
        notice: called with every former name and what replaces it, such as "max_regions" or "balance sum".

    Raises:
        UserError: a flag is given by both names, or the former flag had no such value.
    """
    fields = dataclasses.fields(config_type)
    renamed = {field.metadata["formerly"]: field for field in fields if field.metadata.get("formerly")}
    result = {}
    for name, value in values.items():
        if name not in renamed:
            result[name] = value
            continue
        current, former_values = renamed[name].name, renamed[name].metadata["former_values"]
        if current in values:
            raise UserError(f"--{name} {value}: former name of --{current}, which is also given; remove one of them")
        if former_values:
            value = _convert(name, value, type(next(iter(former_values))), optional=False)
            _check(name, value, {"choices": tuple(former_values)})
            value = former_values[value]
        notice(name, f"{current} {value}" if former_values else current)
        result[current] = value
    return result


def _print_notice(former: str, current: str) -> None:
    """Reports a former name of a flag on the command line, on the first rank."""
    if launched().first:
        print(f"--{former} is deprecated and will be removed after version 1; use --{current}", file=sys.stderr)


def build(config_type, values: dict, positional: tuple = ()):
    """Builds a `config_type` from strings or values; raises UserError, with the flag, for invalid ones."""
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    firsts = [name for name, field in fields.items() if field.metadata.get("first")]
    if firsts and _takes_all(config_type, fields[firsts[0]]):
        positional = (tuple(positional),) if positional else ()
    if len(positional) > len(firsts):
        hint = f"only {' '.join(firsts).upper()} is positional (quote patterns); " if firsts else ""
        raise UserError(f"{positional[len(firsts)]}: value without a flag; {hint}see --help")
    values = dict(values)
    for name, value in zip(firsts, positional, strict=False):
        if name in values:
            raise UserError(f"{value}: duplicate value for {name}; remove one of them")
        values[name] = value
    result = {}
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            hint = f"did you mean --{close[0]}?" if close else "see --help"
            raise UserError(f"--{name}: no such flag; {hint}")
        result[name] = _convert(name, value, *_type_of(config_type, fields[name]))
        _check(name, result[name], fields[name].metadata)
        if fields[name].metadata.get("model") and result[name] is not None:
            result[name] = local_model(result[name])
    for name, field in fields.items():
        if field.default is REQUIRED and name not in result:
            given = name.upper() if field.metadata.get("first") else f"--{name} {name.upper()}"
            raise UserError(f"{given} is missing: {field.metadata['help']}")
    return config_type(**result)


def usage(config_type, command: str, summary: str, examples: Sequence[str] = ()) -> str:
    """The text of --help, as wide as the terminal, from NARROWEST to WIDTH. examples: command lines."""
    width = max(NARROWEST, min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH))
    fields = dataclasses.fields(config_type)
    firsts = [field for field in fields if field.metadata.get("first")]
    firsts = "".join(f" {field.name.upper()}{' ...' * _takes_all(config_type, field)}" for field in firsts)
    lines = [f"usage: python -m {command}{firsts} [--FLAG VALUE ...]", "", *textwrap.wrap(summary, width)]
    for group, members in _groups(config_type).items():
        lines += ["", f"{group}:"]
        for field in members:
            lines += _described(config_type, field, width)
    if examples:
        lines += ["", "examples:", *(f"  {example}" for example in examples)]
    return "\n".join(lines)


def _groups(config_type) -> dict[str, list[dataclasses.Field]]:
    """Heading -> flags. A flag without a group is in that of the flag before it; own flags are before inherited ones.

    Groups with a required flag come first, and those of FINALLY last.
    """
    own, groups, group = config_type.__annotations__, {}, "flags"
    for field in sorted(dataclasses.fields(config_type), key=lambda field: field.name not in own):
        group = field.metadata.get("group") or group
        groups.setdefault(group, []).append(field)

    def place(item) -> tuple:
        group, members = item
        return group in FINALLY, all(field.default is not REQUIRED for field in members), group == FINALLY[-1]

    return dict(sorted(groups.items(), key=place))


def _described(config_type, field, width: int) -> list[str]:
    """The lines of a flag: name, type, what it is for, and its default."""
    kind, _ = _type_of(config_type, field)
    choices, metadata = field.metadata.get("choices"), field.metadata
    if choices:
        value = "{" + ",".join(map(str, choices)) + "}"
    else:
        value = "PATH" if metadata.get("written") else _KINDS.get(kind, "TEXT")
    default = metadata.get("unset") if field.default is None else field.default
    default = str(default).lower() if isinstance(default, bool) else default
    note = "required" if field.default is REQUIRED else f"default: {default}"
    head = f"  --{field.name} {value}"
    body = textwrap.wrap(f"{metadata.get('help', '')} [{note}]", width - COLUMN, break_on_hyphens=False)
    if len(head) + 2 <= COLUMN:
        head += " " * (COLUMN - len(head)) + body.pop(0)
    return [head, *(" " * COLUMN + line for line in body)]


def parse(argv: list[str]) -> tuple[tuple, dict]:
    """Positional values and flags as strings, split by fire."""
    found = {}

    @fire.decorators.SetParseFn(str)
    def collect(*positional, **flags):
        found["positional"], found["flags"] = positional, flags

    fire.Fire(collect, command=argv)
    return found["positional"], found["flags"]


def command(
    config_type,
    run,
    name: str,
    summary: str,
    argv=None,
    inherit=lambda flags: {},
    examples: Sequence[str] = (),
) -> typing.NoReturn:
    """Parses the flags, calls `run(config)`, and exits.

    The exit status is that of `run` or 0; 2 for a UserError, printed as one sentence to stderr; 130 for Ctrl-C.

    Args:
        examples: command lines for --help.
        inherit: maps the given flags to values of others, such as those of a run to resume, which may be an earlier
            version's.
    """
    argv = sys.argv[1:] if argv is None else argv
    _prepare_output()
    if callable(signal.getsignal(signal.SIGINT)):  # not ignored; ops/own_packages.py handles it during imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if "--help" in argv or "-h" in argv:
            print(usage(config_type, name, summary, examples), flush=True)
            sys.exit(0)
        positional, values = parse(argv)
        values = current_flags(config_type, values, _print_notice)
        values = current_flags(config_type, inherit(values)) | values
        sys.exit(run(build(config_type, values, positional)) or 0)
    except ErrorOnAnotherRank:
        sys.exit(2)
    except UserError as error:
        sys.exit(_refuse(str(error)))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # for example a full disk, missing permissions, or a file in place of a folder
        if not error.strerror:
            raise
        sys.exit(_refuse(f"{error.filename2 or error.filename or 'a file or the standard output'}: {error.strerror}"))


def _prepare_output() -> None:
    """Prepares for a terminal or log that is not UTF-8: letters that it lacks are printed as \\uNNNN.

    Python then also reads file names in the encoding of the locale, so a warning is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and sys.stderr:
        print(
            f"warning: file names are read as {encoding}, the encoding of the locale; names with other than ASCII "
            "letters do not match the annotations; set PYTHONUTF8=1",
            file=sys.stderr,
        )


def _refuse(sentence: str) -> int:
    """Prints an error (with the rank, if it is not the first) and returns the exit status."""
    try:
        ranks = launched()
    except UserError:  # invalid environment variables, reported by `sentence`
        ranks = ALONE
    print(f"error{'' if ranks.first else f' on rank {ranks.rank}'}: {sentence}", file=sys.stderr, flush=True)
    return 2
