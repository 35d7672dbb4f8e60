"""python -m shards.extract IMAGES --out DIR: extracts regions of images, with or without captions, to region shards."""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shards.common.cli import REQUIRED, command, flag
from shards.common.dist_info import ALONE, Ranks, launch_name, launched
from shards.common.errors import UserError
from shards.common.files import printable
from shards.common.folder_lock import locked_folder, owner_of
from shards.common.image_id import is_image
from shards.common.process_pool import advance, run_tasks, worker_pool
from shards.detection.base import Detector, Found
from shards.detectors import absolute_path, make_detector
from shards.detectors.pixels import REGIONS
from shards.images.caption_files import read_caption_file, with_captions
from shards.images.given_box_files import read_given_boxes
from shards.images.image_files import BadImage, Part, Record, Unused, decode_image, find_parts, read_records
from shards.storage.dataset import Dataset, begin_dataset, finish_dataset, open_dataset
from shards.storage.index import saved_index
from shards.storage.sample import Sample
from shards.storage.skip_log import is_done, list_skipped, note_skipped, noted
from shards.storage.writer import safe_key, write_shard

WINDOW = 4  # batches of images to decode ahead, from which images of similar aspect ratio are batched
PAUSE = 0.5  # seconds between checks of the progress of other ranks


@dataclass
class ExtractConfig:
    """Flags of shards.extract."""

    images: str = flag(REQUIRED, "folder of images, or tars in the layout of img2dataset (pattern)", first=True)
    out: str = flag(REQUIRED, "output folder for the shards", written=True)
    detector: str = flag(
        "pixels", "pixels, x152, backbone, or an object-detection model of transformers (directory or hub name)"
    )
    weights: str | None = flag(
        None,
        "weights: for x152 the published detectron_model.pth; for backbone a vision model of transformers (directory "
        "or hub name) or a state dict of torchvision or timm",
        unset="none",
    )
    detector_config: str | None = flag(None, "JSON file of the sizes of x152", unset="the published ones")
    proposals: str | None = flag(
        None,
        "region proposals of the detector backbone",
        unset="pixels: those of the detector pixels",
        choices=("pixels", "grid"),
    )
    grid: int | None = flag(None, "rows and columns of --proposals grid", unset="6", low=1, high=100)
    short_side: int | None = flag(
        None, "short side in pixels to which the detector backbone resizes images", unset="its input size", low=32
    )
    class_names: str | None = flag(
        None, "file with the names of the detector's classes, one per line", unset="those of the detector, if any"
    )
    captions: str | None = flag(
        None,
        "captions: a Karpathy file (.json), or rows of image and caption (.jsonl, TSV)",
        unset="those next to the images",
    )
    captions_split: str | None = flag(
        None, "comma-separated splits of the Karpathy file to read (train, val, test)", unset="all"
    )
    boxes: str | None = flag(
        None, "file of given boxes to compute features for, instead of detecting regions", unset="none"
    )
    regions: int | None = flag(None, "maximum number of regions per image", unset="36, 100 for x152", low=1, high=1000)
    words: int = flag(256, "number of visual words, the classes of the detector pixels", low=1, high=32767)
    words_file: str | None = flag(
        None, "visual_words.npz of an earlier extraction, to use the same visual words", unset="words are fitted"
    )
    per_shard: int = flag(1000, "images per shard, if the input is a folder", low=1)
    batch_size: int = flag(8, "images per batch, for neural detectors", low=1)
    precision: str = flag("float32", "precision of neural detectors", choices=("float32", "bf16", "fp16"))
    device: str = flag("auto", "device; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    processes: int = flag(os.cpu_count() or 1, "worker processes", low=1)
    seed: int = flag(0, "random seed for fitting the visual words of the detector pixels")


@dataclass
class Task:
    """One shard to write."""

    part: Part
    path: str
    config: ExtractConfig


def extract(config: ExtractConfig, ranks: Ranks = ALONE) -> Dataset | None:
    """Extracts regions; shards finished by an earlier run are kept, and several ranks divide the shards.

    Returns:
        The data set, on the first rank; None on others that have extracted shards.
    """
    parts = find_parts(config.images, config.per_shard)
    if os.path.isdir(config.images) and is_image(parts[0].files[0]) and (tars := [*Path(config.images).glob("*.tar")]):
        ranks.log(f"{config.images}: {len(tars)} .tar files are ignored, because the folder contains images")
    if config.captions:
        captions = read_caption_file(config.captions, config.captions_split)
        parts, counts = with_captions(parts, captions, config.per_shard)
        ranks.log(f"--captions {config.captions}: {counts}")
    elif config.captions_split:
        raise UserError(f"--captions_split {config.captions_split}: needs a Karpathy file; set --captions")
    detector = make_detector(config)
    with _locked_for_all(Path(config.out), ranks):
        return _extract(config, parts, detector, ranks)


@contextlib.contextmanager
def _locked_for_all(out: Path, ranks: Ranks) -> Iterator[None]:
    """Context manager that locks a folder for these ranks. The first rank takes the lock; the others wait for it."""
    if ranks.first:
        with locked_folder(out, "shards.extract"):
            yield
        return
    _wait(lambda: owner_of(out).get("launch") == launch_name() or (out / "dataset.json").exists())
    yield


def _extract(config: ExtractConfig, parts: list[Part], detector: Detector, ranks: Ranks) -> Dataset | None:
    out, total = Path(config.out), sum(part.count for part in parts)
    plan = _plan(config, parts, detector)
    if ranks.first:
        begin_dataset(out, plan)
    if (out / "dataset.json").exists():
        dataset = open_dataset(str(out))
        ranks.log(f"{out}: is already complete, {len(dataset)} images; nothing to do")
        return dataset
    if ranks.first and not detector.load(out):
        detector.fit(_some_images(parts, detector.sample), out)
    _wait(lambda: detector.load(out))
    tasks = [Task(part, str(out / f"regions-{number:05d}.tar"), config) for number, part in enumerate(parts)]
    done = sum(task.part.count for task in tasks if is_done(task.path))
    if done:
        ranks.log(f"{done} of {total} images are already extracted")
    mine = [task for task in tasks[ranks.rank :: ranks.count] if not is_done(task.path)]
    if detector.per_image:
        for _ in run_tasks(extract_shard, mine, config.processes, total, "images", done):
            pass
    else:
        _extract_in_batches(mine, detector, total if ranks.count == 1 else sum(task.part.count for task in mine))
    if not ranks.first:
        return None
    _wait(lambda: all(is_done(task.path) for task in tasks))
    return _finish(out, tasks, detector, plan)


def _plan(config: ExtractConfig, parts: list[Part], detector: Detector) -> dict:
    """The settings and inputs that determine the result of an extraction."""
    plan = {
        "command": "shards.extract",
        "images": [
            [printable(os.path.abspath(name)) for name in (part.files[0], part.files[-1])] + [part.count]
            for part in parts
        ],
        "regions": config.regions or (REGIONS if config.detector == "pixels" else None),
        "boxes": config.boxes and os.path.abspath(config.boxes),
        "words": config.words,
        "words_file": config.words_file and os.path.abspath(config.words_file),
        "seed": config.seed,
    }
    if config.captions:
        plan["captions"] = [os.path.abspath(config.captions), config.captions_split]
    if config.detector != "pixels":
        names = ("detector", "weights", "detector_config", "class_names", "precision")
        plan |= {name: absolute_path(getattr(config, name)) for name in names}
    names = ("proposals", "grid", "short_side")
    plan |= {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if detector.fingerprint:
        plan["fingerprint"] = detector.fingerprint
    if detector.version > 1:
        plan["detector_version"] = detector.version
    return plan


def _wait(ready: Callable[[], bool]) -> None:
    """Waits for another rank; if a rank fails, torchrun ends all of them."""
    while not ready():
        time.sleep(PAUSE)


def _some_images(parts: list[Part], count: int) -> Iterator[np.ndarray]:
    """Decoded images spread over the whole input."""
    chosen = parts[:: max(1, len(parts) // 40)]
    per_part = -(-count // len(chosen))
    for part in chosen:
        step = max(1, part.count // per_part)
        for record in itertools.islice(read_records(part), 0, None, step):
            with contextlib.suppress(BadImage):
                yield decode_image(record.data)


def extract_shard(task: Task) -> None:
    """Extracts a shard image by image, in a worker process."""
    detector = make_detector(task.config)
    detector.load(Path(task.path).parent)
    _write(task, detector, map, 1, 1, advance)


def _extract_in_batches(tasks: list[Task], detector: Detector, total: int) -> None:
    """Extracts shards one after another in this process, while worker processes decode images."""
    size = tasks[0].config.batch_size if tasks else 1
    bar = tqdm(total=total, initial=total - sum(task.part.count for task in tasks), unit=" images", mininterval=0.5)
    with contextlib.closing(bar), worker_pool(tasks[0].config.processes if tasks else 1) as pool:
        for task in tasks:
            _write(task, detector, pool.map, size, WINDOW * size, bar.update)


def _write(task: Task, detector: Detector, map_all, size: int, window: int, done: Callable) -> None:
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
    task: Task, map_all, window: int, done: Callable, given, unused: list[Unused]
) -> Iterator[Iterator[tuple[Record, object]]]:
    """Yields windows of records with their decoded images; a window is decoded while the previous one is used."""
    records, waiting = read_records(task.part, unused), None
    while chosen := list(itertools.islice(records, window)):
        done(len(chosen))
        if given is not None:
            chosen = [record for record in chosen if record.id in given]
        following = zip(chosen, map_all(_decoded, [record.data for record in chosen]), strict=True)
        if waiting:
            yield waiting
        waiting = following
    if waiting:
        yield waiting


def _samples(task: Task, detector: Detector, map_all, size: int, window: int, done: Callable, skipped: list[dict]):
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


def _regions(detector: Detector, good: list, given, size: int) -> list[Found]:
    """The regions of each (record, image), computed in batches of images with similar aspect ratio."""
    order = sorted(range(len(good)), key=lambda n: good[n][1].shape[0] / good[n][1].shape[1])
    found: dict[int, Found] = {}
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


def _finish(out: Path, tasks: list[Task], detector: Detector, plan: dict) -> Dataset:
    made = [task.path for task in tasks]
    skipped, paths = noted(made), [path for path in made if len(saved_index(path))]
    bad_images = sum("id" in line for line in skipped)
    if not paths:
        if plan["boxes"]:
            raise UserError(f"{plan['images'][0][0]}: {plan['boxes']} has boxes for none of the images")
        raise UserError(f"{plan['images'][0][0]}: none of the images can be decoded")
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
        print(f"{plan['boxes']}: {given - len(dataset) - bad_images} of its {given} images were not found")
    flat = sum(given.flat for given in read_given_boxes(plan["boxes"]).values()) if plan["boxes"] else 0
    if flat:
        print(f"{plan['boxes']}: {flat} boxes without area, which are enlarged to a width or height of one pixel")
    skips = list_skipped(out, made, skipped, "source")
    print(f"{out}: {len(dataset)} images, {dataset.count_of_captions}, in {len(paths)} shards{skips}")
    return dataset


def run(config: ExtractConfig) -> None:
    extract(config, launched())


if __name__ == "__main__":
    command(ExtractConfig, run, "shards.extract", "Extract regions of images to region shards.")
