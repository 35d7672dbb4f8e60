"""Extracts the regions of one shard: decodes images, detects regions in batches, writes samples."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.common.excluded_ids import read_excluded
from shards.common.process_pool import advance, worker_pool
from shards.common.progress_bar import progress_bar
from shards.config import ExtractConfig
from shards.detection.base import DetectedRegions, Detector
from shards.detectors import make_detector
from shards.images.given_box_files import read_given_boxes
from shards.images.image_files import BadImage, ImageRecord, Part, Unused, decode_image, read_records
from shards.storage.sample import Sample
from shards.storage.skip_log import note_skipped
from shards.storage.writer import safe_key, write_shard

EXCLUSION = "is excluded by --exclude"
WINDOW = 4  # batches of images to decode ahead, from which images of similar aspect ratio are batched


@dataclass
class ShardJob:
    """One shard to write."""

    part: Part
    path: str
    config: ExtractConfig


def extract_shard(task: ShardJob) -> None:
    """Extracts a shard image by image, in a worker process."""
    detector = make_detector(task.config)
    detector.load(Path(task.path).parent)
    _write(task, detector, map, 1, 1, advance)


def extract_in_batches(tasks: list[ShardJob], detector: Detector, total: int) -> None:
    """Extracts shards one after another in this process, while worker processes decode images."""
    size = tasks[0].config.batch_size if tasks else 1
    bar = progress_bar(total=total, initial=total - sum(task.part.count for task in tasks), unit=" images")
    with contextlib.closing(bar), worker_pool(tasks[0].config.processes if tasks else 1) as pool:
        for task in tasks:
            _write(task, detector, pool.map, size, WINDOW * size, bar.update)


def _write(task: ShardJob, detector: Detector, map_all, size: int, window: int, done: Callable) -> None:
    """Writes one shard and the list of its skipped images.

    Args:
        map_all: `map`, or the map method of a pool, which starts immediately.
        size: images per batch.
        window: images to decode together.
        done: called with numbers of images, for the progress bar.
    """
    skipped: list[dict] = []
    write_shard(task.path, _samples(task, detector, map_all, size, window, done, skipped))
    note_skipped(task.path, skipped)


def _decoded(data: bytes | BadImage) -> np.ndarray | BadImage:
    try:
        return decode_image(data)
    except BadImage as error:
        return error


def _windows(
    task: ShardJob, map_all, window: int, done: Callable, given, unused: list[Unused]
) -> Iterator[Iterator[tuple[ImageRecord, object]]]:
    """Yields windows of records with their decoded images; a window is decoded while the previous one is used."""
    records, waiting = read_records(task.part, unused), None
    excluded = read_excluded(task.config.exclude) if task.config.exclude else frozenset()
    while chosen := list(itertools.islice(records, window)):
        done(len(chosen))
        unused += (Unused(record.source, EXCLUSION) for record in chosen if record.id in excluded)
        chosen = [record for record in chosen if record.id not in excluded]
        if given is not None:
            chosen = [record for record in chosen if record.id in given]
        following = zip(chosen, map_all(_decoded, [record.data for record in chosen]), strict=True)
        if waiting:
            yield waiting
        waiting = following
    if waiting:
        yield waiting


def _samples(task: ShardJob, detector: Detector, map_all, size: int, window: int, done: Callable, skipped: list[dict]):
    config, folder, keys = task.config, os.path.dirname(task.path), {}
    given = read_given_boxes(config.boxes) if config.boxes else None
    unused: list[Unused] = []
    for records in _windows(task, map_all, window, done, given, unused):
        good = []
        for record, image in records:
            if isinstance(image, BadImage):
                source = os.path.relpath(record.source, folder)
                skipped.append({"id": record.id, "source": source, "reason": str(image)})
            else:
                good.append((record, image))
        for (record, image), found in zip(good, _regions(detector, good, given, size), strict=True):
            key = safe_key(record.id)
            keys[key] = keys.get(key, 0) + 1
            if keys[key] > 1:
                key = f"{key}+{keys[key]}"
            height, width = image.shape[:2]
            source = os.path.relpath(record.source, folder)
            info = {"id": record.id, "width": width, "height": height, "source": source}
            if given is not None:
                info["box_ids"] = given[record.id].ids
            boxes = found.boxes / np.array([width, height, width, height], np.float32)
            yield Sample(key, found.features, boxes, found.class_ids, found.class_probs, info, record.captions)
    skipped += ({"source": os.path.relpath(source, folder), "reason": reason} for source, reason in unused)


def _regions(detector: Detector, good: list, given, size: int) -> list[DetectedRegions]:
    """The regions of each (record, image), computed in batches of images with similar aspect ratio."""
    order = sorted(range(len(good)), key=lambda n: good[n][1].shape[0] / good[n][1].shape[1])
    found: dict[int, DetectedRegions] = {}
    for begin in range(0, len(good), size):
        batch = order[begin : begin + size]
        images = [good[n][1] for n in batch]
        if given is None:
            regions = detector.detect(images)
        else:
            sizes = (image.shape[1::-1] for image in images)
            boxes = [given[good[n][0].id].inside(*of_image) for n, of_image in zip(batch, sizes, strict=True)]
            regions = detector.describe(images, boxes)
        found |= dict(zip(batch, regions, strict=True))
    return [found[n] for n in range(len(good))]
