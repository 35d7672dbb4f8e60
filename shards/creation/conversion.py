"""Converts features made by other programs to region shards, in several processes."""

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path

from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.folder_lock import locked_folder
from shards.common.process_pool import advance, run_tasks
from shards.common.untrusted_input import reading
from shards.config import ConvertConfig
from shards.importers import open_source
from shards.importing.base import Record, Source
from shards.importing.image_features import BadRecord, Features, Shape, sample_of, shape_of
from shards.storage.dataset import Dataset, begin_dataset, finish_dataset, open_dataset, remove_empty_shards
from shards.storage.index import saved_index
from shards.storage.skip_log import is_done, list_skipped, note_skipped, noted, reopen
from shards.storage.writer import write_shard

SAMPLED = 32  # records, spread over the source, that determine feature size and classes


@dataclass
class ConversionJob:
    """A part of the source to convert.

    Attributes:
        number: number of its shard; None if the part is the whole source.
        known: shard -> ids of images that earlier shards have.
    """

    source: Source
    part: object
    number: int | None
    shape: Shape
    config: ConvertConfig
    known: dict[Path, frozenset[str]] = field(default_factory=dict)


def convert(config: ConvertConfig) -> Dataset:
    """Converts a source and returns the data set; shards finished by an earlier run are kept."""
    source = open_source(config.source)
    with locked_folder(config.out, "shards.convert"):
        return _convert(config, source, Path(config.out))


def _convert(config: ConvertConfig, source: Source, out: Path) -> Dataset:
    shape = _shape(source, config.on_bad_row)
    paths = [os.path.abspath(path) for path in config.source]
    plan = {
        "command": "shards.convert",
        "source": paths[0] if len(paths) == 1 else paths,
        "total": source.total,
        "shape": vars(shape),
        "per_shard": config.per_shard,
    }
    begin_dataset(out, plan)
    if (out / "dataset.json").exists():
        dataset = open_dataset(str(out))
        print(f"{out}: is already complete, {counted(len(dataset), 'image')}; nothing to do")
        return dataset
    parts = source.parts(config.per_shard)
    tasks = [
        ConversionJob(source, part, number if len(parts) > 1 else None, shape, config)
        for number, part in enumerate(parts)
    ]
    for _ in run_tasks(convert_part, tasks, config.processes, source.total, source.unit):
        pass
    if known := _ids_of_earlier_shards(out):
        for path in known:
            reopen(path)
        again = [
            replace(task, known=known) for task in tasks if task.number is None or _shard(out, task.number) in known
        ]
        for _ in run_tasks(convert_part, again, config.processes, None, source.unit):
            pass
    return _finish(config, source, out, plan, shape)


def _shard(out: Path, number: int) -> Path:
    return out / f"regions-{number:05d}.tar"


def _shards(out: Path) -> list[Path]:
    """The shards in the order of the source; parts without a record have none."""
    return sorted(out.glob("regions-*.tar"))


def _ids_of_earlier_shards(out: Path) -> dict[Path, frozenset[str]]:
    """Shard -> ids of its images that earlier shards have; without shards that have none of these.

    Parts are converted independently, so that a duplicate is noticed there only within a part.
    """
    seen: set[str] = set()
    known = {}
    for path in _shards(out):
        ids = saved_index(path).ids.tolist()
        if found := seen.intersection(ids):
            known[path] = frozenset(found)
        seen.update(ids)
    return known


def _shape(source: Source, on_bad_row: str) -> Shape:
    """The shape of most images of the source, from a sample of valid ones."""
    errors: list[str] = []
    images = list(_readable(source, source.some(SAMPLED), errors))
    if not images and on_bad_row == "skip":
        everything = (record for part in source.parts(SAMPLED) for record in source.records(part))
        images = list(itertools.islice(_readable(source, everything, errors), 1))
    if not images:
        reason = errors[0] if errors else "it is empty"
        raise UserError(f"{source.path}: contains no valid image; {reason}")
    return shape_of(images)


def _readable(source: Source, records: Iterable[Record], errors: list[str]) -> Iterator[Features]:
    """Yields the images of valid records; the message for the first invalid one is appended to `errors`."""
    for record in records:
        try:
            yield _parse(source, record.raw)
        except BadRecord as error:
            if not errors:
                errors.append(f"{source.where(record.place)}: {error}")


def _parse(source: Source, raw) -> Features:
    """Parses a record; any exception caused by damaged values is raised as BadRecord."""
    with reading(hint="", error=BadRecord):
        return source.parse(raw)


def convert_part(task: ConversionJob) -> None:
    """Writes the shards of a part of the source and, next to each, a list of its skipped images."""
    records = task.source.records(task.part)
    for number in itertools.count(task.number or 0):
        first = next(records, None)
        if first is None:
            return
        config = task.config
        run = itertools.chain([first], itertools.islice(records, config.per_shard - 1 if task.number is None else None))
        path = _shard(Path(config.out), number)
        if is_done(path):
            for record in run:
                advance(record.amount)
            continue
        skipped: list[dict] = []
        write_shard(path, _samples(task, run, task.known.get(path, frozenset()), skipped))
        note_skipped(path, skipped)


def _samples(task: ConversionJob, records, known: frozenset[str], skipped: list[dict]):
    source, shown = task.source, os.path.relpath(task.source.path, task.config.out)
    keys = set()
    for record in records:
        advance(record.amount)
        try:
            sample = sample_of(_parse(source, record.raw), task.shape, shown)
            if sample.key in keys:
                raise BadRecord(f"duplicate key {sample.key}")
            if sample.info["id"] in known:
                raise BadRecord(f"duplicate image id {sample.info['id']}")
        except BadRecord as error:
            where = source.where(record.place)
            if task.config.on_bad_row == "stop":
                raise UserError(f"{where}: {error}; use --on_bad_row skip to skip such images") from None
            skipped.append({"where": where, "reason": str(error)})
            continue
        keys.add(sample.key)
        yield sample


def _finish(config: ConvertConfig, source: Source, out: Path, plan: dict, shape: Shape) -> Dataset:
    made = _shards(out)
    skipped = noted(made)
    paths = remove_empty_shards(made)
    if not paths:
        raise UserError(f"{source.path}: contains no valid image; {skipped[0]['where']}: {skipped[0]['reason']}")
    extra = {"plan": plan, "skipped": len(skipped)}
    dataset = finish_dataset(out, paths, detector=source.detector, num_classes=shape.num_classes, extra=extra)
    skips = list_skipped(out, made, skipped, itemgetter("where"))
    captions = f", {dataset.count_of_captions}" if dataset.captions else ""
    classes = f"{shape.kept} of {shape.num_classes} classes per region" if shape.num_classes else "no classes"
    print(f"{out}: {counted(len(dataset), 'image')} in {counted(len(paths), 'shard')}{captions}, {classes}{skips}")
    return dataset
