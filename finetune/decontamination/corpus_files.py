"""The files that a search of a corpus writes: evidence, the ids to exclude, the report and a manifest."""

import os
from dataclasses import asdict, fields
from pathlib import Path

import msgspec

from finetune.decontamination.corpus_part import FoundImage, PartResult, Unseen
from finetune.decontamination.corpus_report import CorpusCounts, corpus_report, not_compared
from shards.common.excluded_ids import EXCLUDED, write_excluded
from shards.common.files import printable, read_json, whole_file, write_json

MANIFEST, FOUND, UNSEEN, REPORT = "corpus.json", "found.jsonl", "unseen.jsonl", "report.txt"
FORMAT = 1


def write_results(
    out: Path, corpus: str, results: list[PartResult], sets: dict[str, tuple[int, int]], absent: list[str]
) -> str:
    """Writes the lists, the report and at last the manifest; returns the report.

    Args:
        results: of all parts, in order.
        sets: see CorpusCounts.
        absent: sentences on official files that were not found.
    """
    found = [one for result in results for one in result.found]
    excluded = sorted({one.image for one in found})
    _write_lines(out / FOUND, found)
    _write_lines(out / UNSEEN, [one for result in results for one in result.unseen])
    write_excluded(out / EXCLUDED, excluded)
    counts = CorpusCounts.of(corpus, results, len(excluded), sets)
    text = corpus_report(counts, found, absent)
    with whole_file(out / REPORT, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    manifest = asdict(counts) | {"corpus": printable(os.path.abspath(corpus)), "found": len(found)}
    write_json(out / MANIFEST, {"format": FORMAT, "absent": absent} | manifest)
    return f"{text}\nlists: {out}{os.sep}; shards.extract and pretrain.run skip these images with --exclude {out}"


def notes_of_search(out: Path) -> list[str]:
    """Sentences on what the search that wrote an output folder did not see."""
    manifest = read_json(out / MANIFEST, CorpusCounts)
    return not_compared(CorpusCounts(**{field.name: manifest[field.name] for field in fields(CorpusCounts)}))


def _write_lines(path: Path, lines: list[FoundImage] | list[Unseen]) -> None:
    with whole_file(path) as file:
        for line in lines:
            file.write(msgspec.json.encode(line) + b"\n")
