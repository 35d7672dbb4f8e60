"""What a shard left out: noted beside it while a data set is made, and in one list when it is finished."""

import json
from pathlib import Path

from shards.files import read_json, whole_file, write_json
from shards.index import saved_index

LIST = "skipped.jsonl"
SHOWN = 10  # lines on the screen; all of them are in the list


def note_skipped(shard, lines: list[dict]) -> None:
    """Notes what a shard that has been written left out; with this note it is done."""
    write_json(_note(shard), lines)


def is_done(shard) -> bool:
    """Whether a shard was written to its end, with its index and its note."""
    return Path(shard).exists() and _note(shard).exists() and saved_index(shard) is not None


def noted(shards) -> list[dict]:
    """What these shards left out."""
    return [line for shard in shards for line in read_json(_note(shard))]


def list_skipped(folder: Path, shards, lines: list[dict], place: str) -> str:
    """Puts all that was left out into one list in place of the notes, and shows the first of it; returns the end of a
    sentence on how many there are, empty for none. place: the key of a line that says where."""
    with whole_file(folder / LIST, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    for shard in shards:
        _note(shard).unlink()
    for line in lines[:SHOWN]:
        print(f"skipped {line[place]}: {line['reason']}")
    return f"; {len(lines)} skipped, see {folder / LIST}" if lines else ""


def _note(shard) -> Path:
    return Path(shard).with_suffix(".skipped.json")
