"""Extracts regions of images to region shards, on several ranks and in several processes."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.common.cli import current_flags
from shards.common.counted import counted
from shards.common.dist_info import ALONE, Ranks
from shards.common.errors import UserError
from shards.common.excluded_ids import digest_of, read_excluded
from shards.common.files import printable
from shards.common.folder_lock import locked_by_first, wait_for
from shards.common.process_pool import run_tasks
from shards.config import ExtractConfig
from shards.creation.extract_shard import ShardJob, extract_in_batches, extract_shard
from shards.detection.base import Detector
from shards.detectors import absolute_path, make_detector
from shards.detectors.pixels import REGIONS
from shards.images.caption_files import read_caption_file, with_captions
from shards.images.given_box_files import read_given_boxes
from shards.images.image_files import BadImage, Part, decode_image, find_parts, read_records
from shards.storage.dataset import Dataset, begin_dataset, finish_dataset, open_dataset, remove_empty_shards
from shards.storage.skip_log import is_done, list_skipped, noted


def extract(config: ExtractConfig, ranks: Ranks = ALONE) -> Dataset | None:
    """Extracts regions; shards finished by an earlier run are kept, and several ranks divide the shards.

    Returns:
        The data set, on the first rank; None on others that have extracted shards.
    """
    parts = find_parts(config.images, config.per_shard)
    if config.captions:
        captions = read_caption_file(config.captions, config.captions_split)
        parts, counts = with_captions(parts, captions, config.per_shard)
        ranks.log(f"--captions {config.captions}: {counts}")
    elif config.captions_split:
        raise UserError(f"--captions_split {config.captions_split}: needs a Karpathy file; set --captions")
    detector = make_detector(config)
    with locked_by_first(config.out, "shards.extract", ranks, Path(config.out) / "dataset.json"):
        return _extract(config, parts, detector, ranks)


def _extract(config: ExtractConfig, parts: list[Part], detector: Detector, ranks: Ranks) -> Dataset | None:
    out, total = Path(config.out), sum(part.count for part in parts)
    plan = _plan(config, parts, detector)
    if ranks.first:
        begin_dataset(out, plan, lambda stored: current_flags(ExtractConfig, stored))
    if (out / "dataset.json").exists():
        dataset = open_dataset(str(out))
        ranks.log(f"{out}: is already complete, {counted(len(dataset), 'image')}; nothing to do")
        return dataset
    if ranks.first and not detector.load(out):
        excluded = read_excluded(config.exclude) if config.exclude else frozenset()
        detector.fit(_some_images(parts, detector.sample, excluded), out)
    wait_for(lambda: detector.load(out))
    tasks = [ShardJob(part, str(out / f"regions-{number:05d}.tar"), config) for number, part in enumerate(parts)]
    done = sum(task.part.count for task in tasks if is_done(task.path))
    if done:
        ranks.log(f"{done} of {counted(total, 'image')} already extracted")
    mine = [task for task in tasks[ranks.rank :: ranks.count] if not is_done(task.path)]
    if detector.per_image:
        for _ in run_tasks(extract_shard, mine, config.processes, total, "images", done):
            pass
    else:
        extract_in_batches(mine, detector, total if ranks.count == 1 else sum(task.part.count for task in mine))
    if not ranks.first:
        return None
    wait_for(lambda: all(is_done(task.path) for task in tasks))
    return _finish(out, tasks, detector, plan)


def _plan(config: ExtractConfig, parts: list[Part], detector: Detector) -> dict:
    """The settings and inputs that determine the result of an extraction."""
    plan = {
        "command": "shards.extract",
        "images": [
            [printable(os.path.abspath(name)) for name in (part.files[0], part.files[-1])] + [part.count]
            for part in parts
        ],
        "max_regions": config.max_regions or (REGIONS if config.detector == "pixels" else None),
        "boxes": config.boxes and os.path.abspath(config.boxes),
        "visual_words": config.visual_words,
        "visual_words_file": config.visual_words_file and os.path.abspath(config.visual_words_file),
        "seed": config.seed,
    }
    if config.captions:
        plan["captions"] = [os.path.abspath(config.captions), config.captions_split]
    if config.detector != "pixels":
        names = ("detector", "weights", "detector_config", "class_names", "precision")
        plan |= {name: absolute_path(getattr(config, name)) for name in names}
    if config.exclude:
        plan["exclude"] = digest_of(read_excluded(config.exclude))
    names = ("proposals", "grid", "short_side")
    plan |= {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if detector.fingerprint:
        plan["fingerprint"] = detector.fingerprint
    if detector.version > 1:
        plan["detector_version"] = detector.version
    return plan


def _some_images(parts: list[Part], count: int, excluded: frozenset[str]) -> Iterator[np.ndarray]:
    """Decoded images spread over the whole input."""
    chosen = parts[:: max(1, len(parts) // 40)]
    per_part = -(-count // len(chosen))
    for part in chosen:
        step = max(1, part.count // per_part)
        for record in itertools.islice(read_records(part), 0, None, step):
            with contextlib.suppress(BadImage):
                if record.id not in excluded:
                    yield decode_image(record.data)


def _as_given(source: str, out: Path, absolute: bool) -> str:
    """The path of an image as the user would write it. source: relative to `out`, as stored in the list."""
    path = os.path.join(out, source)
    return os.path.abspath(path) if absolute else os.path.relpath(path)


def _finish(out: Path, tasks: list[ShardJob], detector: Detector, plan: dict) -> Dataset:
    made = [task.path for task in tasks]
    skipped, paths = noted(made), remove_empty_shards(made)
    bad_images = sum("id" in line for line in skipped)
    if not paths:
        if plan["boxes"]:
            raise UserError(f"{plan['images'][0][0]}: {plan['boxes']} has boxes for none of the images")
        reason = "can be decoded, or all are excluded by --exclude" if "exclude" in plan else "can be decoded"
        raise UserError(f"{plan['images'][0][0]}: none of the images {reason}")
    names = {"class_names": detector.class_names} if detector.class_names else {}
    dataset = finish_dataset(
        out,
        paths,
        detector=detector.name,
        num_classes=detector.num_classes,
        extra={"plan": plan, "skipped": len(skipped)} | names,
    )
    if plan["boxes"] and len(dataset) + bad_images < len(read_given_boxes(plan["boxes"])):
        given = len(read_given_boxes(plan["boxes"]))
        print(f"{plan['boxes']}: {given - len(dataset) - bad_images} of its {counted(given, 'image')} were not found")
    flat = sum(given.flat for given in read_given_boxes(plan["boxes"]).values()) if plan["boxes"] else 0
    if flat:
        print(f"{plan['boxes']}: {counted(flat, 'box')} without area, enlarged to a width or height of one pixel")
    absolute = os.path.isabs(tasks[0].part.files[0])
    skips = list_skipped(out, made, skipped, lambda line: _as_given(line["source"], out, absolute))
    in_shards = f"in {counted(len(paths), 'shard')}{skips}"
    print(f"{out}: {counted(len(dataset), 'image')}, {dataset.count_of_captions}, {in_shards}")
    return dataset
