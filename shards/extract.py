"""python -m shards.extract IMAGES --out DIR: images, with or without captions, become region shards."""

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards import pixels
from shards.dataset import Dataset, begin_dataset, finish_dataset, open_dataset
from shards.errors import UserError
from shards.files import read_json, whole_file, write_json
from shards.flags import REQUIRED, command, flag
from shards.given_boxes import plain_id, read_given_boxes
from shards.images import BadImage, Part, decode_image, find_parts, read_records
from shards.index import saved_index
from shards.jobs import advance, run_tasks
from shards.sample import Sample
from shards.visual_words import fit_words, load_words
from shards.writer import safe_key, write_shard

SAMPLE_IMAGES = 400  # images from which the visual words are fitted


@dataclass
class ExtractConfig:
    """Flags of shards.extract."""

    images: str = flag(REQUIRED, "a folder of images, or tars in img2dataset's layout (pattern)", first=True)
    out: str = flag(REQUIRED, "the folder for the shards")
    boxes: str | None = flag(None, "a file of given boxes to describe, in place of the detector's regions")
    regions: int = flag(36, "regions per image at the most", low=1, high=1000)
    words: int = flag(256, "visual words: the classes of the regions", low=1, high=32767)
    words_file: str | None = flag(None, "visual_words.npz of an earlier extraction, to use the same words")
    per_shard: int = flag(1000, "images per shard, where the input is a folder", low=1)
    processes: int = flag(os.cpu_count() or 1, "working processes", low=1)
    seed: int = flag(0, "of the proposals and the visual words")


@dataclass
class Task:
    """One shard to be written."""

    part: Part
    path: str
    words_path: str
    config: ExtractConfig


def extract(config: ExtractConfig) -> Dataset:
    """Runs an extraction to its end; shards that an earlier run finished are kept. Returns the data set."""
    parts = find_parts(config.images, config.per_shard)
    out = Path(config.out)
    total = sum(part.count for part in parts)
    plan = {
        "command": "shards.extract",
        "images": [
            [os.path.abspath(name) for name in (part.files[0], part.files[-1])] + [part.count] for part in parts
        ],
        "regions": config.regions,
        "boxes": config.boxes and os.path.abspath(config.boxes),
        "words": config.words,
        "words_file": config.words_file and os.path.abspath(config.words_file),
        "seed": config.seed,
    }
    begin_dataset(out, plan)
    if (out / "dataset.json").exists():
        dataset = open_dataset(str(out))
        print(f"{out}: was extracted before, {len(dataset)} images; nothing to do")
        return dataset
    words_path = _words(config, parts, out)
    tasks = [
        Task(part, str(out / f"regions-{number:05d}.tar"), str(words_path), config) for number, part in enumerate(parts)
    ]
    waiting = [task for task in tasks if not _is_done(task)]
    done = total - sum(task.part.count for task in waiting)
    if done:
        print(f"{done} of {total} images were extracted before")
    for _ in run_tasks(extract_shard, waiting, config.processes, total, "images", done):
        pass
    return _finish(out, tasks, words_path, plan)


def _words(config: ExtractConfig, parts: list[Part], out: Path) -> Path:
    """Fits the visual words on images spread over the whole input, or takes those that are given."""
    path = out / "visual_words.npz"
    if not path.exists():
        if config.words_file:
            words = load_words(config.words_file)
        else:
            print(f"fitting visual words on up to {SAMPLE_IMAGES} images")
            words = fit_words(_sample_features(config, parts), config.words, config.seed)
        words.save(path)
    return path


def _sample_features(config: ExtractConfig, parts: list[Part]) -> np.ndarray:
    chosen = parts[:: max(1, len(parts) // 40)]
    per_part = -(-SAMPLE_IMAGES // len(chosen))
    features = []
    for part in chosen:
        step = max(1, part.count // per_part)
        for record in itertools.islice(read_records(part), 0, None, step):
            try:
                image = decode_image(record.data)
            except BadImage:
                continue
            features.append(pixels.describe(image, pixels.detect(image, config.regions, config.seed)[0]))
    if not features:
        raise UserError(f"{config.images}: none of the images looked at can be decoded")
    return np.concatenate(features)


def _is_done(task: Task) -> bool:
    return os.path.exists(task.path) and _skips_path(task.path).exists() and saved_index(task.path) is not None


def _skips_path(path) -> Path:
    """Where a shard's skipped images are noted until the data set is finished."""
    return Path(path).with_suffix(".skipped.json")


def extract_shard(task: Task) -> None:
    """Writes one shard and the list of what it skipped."""
    skipped: list[dict] = []
    words = load_words(task.words_path)
    write_shard(task.path, _samples(task, words, skipped))
    write_json(_skips_path(task.path), skipped)


def _samples(task: Task, words, skipped: list[dict]):
    config, folder, keys = task.config, os.path.dirname(task.path), {}
    given = read_given_boxes(config.boxes) if config.boxes else None
    for record in read_records(task.part):
        advance()
        if given is not None and plain_id(record.id) not in given:
            continue
        source = os.path.relpath(record.source, folder)
        try:
            image = decode_image(record.data)
        except BadImage as error:
            skipped.append({"id": record.id, "source": source, "reason": str(error)})
            continue
        key = safe_key(record.id)
        keys[key] = keys.get(key, 0) + 1
        if keys[key] > 1:
            key = f"{key}+{keys[key]}"
        height, width = image.shape[:2]
        info = {"id": record.id, "width": width, "height": height, "source": source}
        if given is None:
            boxes, _ = pixels.detect(image, config.regions, config.seed)
        else:
            boxes = given[plain_id(record.id)].inside(width, height)
            info["box_ids"] = given[plain_id(record.id)].ids
        features = pixels.describe(image, boxes)
        class_ids, class_probs = words.classify(features)
        scale = np.array([width, height, width, height], np.float32)
        yield Sample(key, features, boxes / scale, class_ids, class_probs, info, record.caption)


def _finish(out: Path, tasks: list[Task], words_path: Path, plan: dict) -> Dataset:
    skipped = [line for task in tasks for line in read_json(_skips_path(task.path))]
    paths = [task.path for task in tasks if len(saved_index(task.path))]
    if not paths:
        if plan["boxes"]:
            raise UserError(f"{plan['images'][0][0]}: holds no image that {plan['boxes']} has boxes of")
        raise UserError(f"{plan['images'][0][0]}: none of the images can be decoded")
    dataset = finish_dataset(
        out,
        paths,
        detector="pixels",
        num_classes=len(load_words(words_path)),
        extra={"plan": plan, "skipped": len(skipped)},
    )
    with whole_file(out / "skipped.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in skipped)
    for task in tasks:
        _skips_path(task.path).unlink()
    if plan["boxes"] and len(dataset) + len(skipped) < len(read_given_boxes(plan["boxes"])):
        given = len(read_given_boxes(plan["boxes"]))
        print(f"{plan['boxes']}: {given - len(dataset) - len(skipped)} of its {given} images are not there")
    for line in skipped[:10]:
        print(f"skipped {line['source']}: {line['reason']}")
    summary = f"{out}: {len(dataset)} images, {dataset.captions} with captions, in {len(paths)} shards"
    print(summary + (f"; {len(skipped)} skipped, see {out / 'skipped.jsonl'}" if skipped else ""))
    return dataset


def run(config: ExtractConfig) -> None:
    extract(config)


if __name__ == "__main__":
    command(ExtractConfig, run, "shards.extract", "Images become region shards with the built-in detector.")
