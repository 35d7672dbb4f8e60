"""Skipped images: noted next to each shard while a data set is made, and listed in one file when it is finished."""

import json
from collections.abc import Callable
from pathlib import Path

from shards.common.files import read_json, whole_file, write_json
from shards.storage.index import saved_index

LIST = "skipped.jsonl"
SHOWN = 10  # lines printed to the console; the list has all of them


def note_skipped(shard, lines: list[dict]) -> None:
    """Writes the skipped images of a shard; the note also marks the shard as finished."""
    write_json(_note(shard), lines)


def is_done(shard) -> bool:
    """Whether a shard is finished, with its index and its note."""
    return Path(shard).exists() and _note(shard).exists() and saved_index(shard) is not None


def reopen(shard) -> None:
    """Marks a shard as not finished, so that it is made again."""
    _note(shard).unlink()


def noted(shards) -> list[dict]:
    """The skipped images of these shards."""
    return [line for shard in shards for line in read_json(_note(shard))]


def list_skipped(folder: Path, shards, lines: list[dict], place: Callable[[dict], str]) -> str:
    """Replaces the notes by one list, and prints the first skipped images.

    Args:
        lines: all skipped images.
        place: maps a line to the place of the image as it is printed.

    Returns:
        Suffix of a message, with the number of skipped images; empty if there are none.
    """
    with whole_file(folder / LIST, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    for shard in shards:
        _note(shard).unlink()
    for line in lines[:SHOWN]:
        print(f"skipped {place(line)}: {line['reason']}")
    return f"; {len(lines)} skipped, see {folder / LIST}" if lines else ""


def _note(shard) -> Path:
    return Path(shard).with_suffix(".skipped.json")
