"""python -m shards.inspect DIR: summarises a data set and draws an image with its regions."""

import contextlib
import functools
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from shards.common.cli import REQUIRED, command, flag
from shards.common.errors import UserError
from shards.common.files import read_json, whole_file
from shards.common.image_id import image_id, is_image
from shards.detection.handcrafted import iou
from shards.images.image_files import BadImage, decode_image, read_source
from shards.storage.dataset import checksum_errors, open_dataset, read_captions
from shards.storage.reader import RegionReader
from shards.storage.sample import Sample, check_values

BACKGROUND = "background"  # name of the background class, if a detector has one
OVERLAP = 0.4  # IoU; the default of pretrain.run
LONG_SIDE = 1000  # pixels of the drawn picture
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#000075")


@dataclass
class InspectConfig:
    """Flags of shards.inspect."""

    data: str = flag(REQUIRED, "folder of region shards, or a pattern of tars", first=True)
    image: str | None = flag(None, "id of the image to draw", unset="the first image")
    picture: str | None = flag(None, "output file for the picture", unset="DATA/inspect.png")
    check: bool = flag(False, "verify the checksum of every shard")


def describe(config: InspectConfig, reader: RegionReader) -> str:
    """The summary of a data set, as text."""
    dataset = reader.dataset
    sampled = [reader[int(i)] for i in np.linspace(0, len(reader) - 1, min(len(reader), 1000))]
    for sample in sampled:
        check_values(sample)
    regions = np.array([len(sample.features) for sample in sampled])
    size = sum(shard.bytes for shard in dataset.shards)
    classes = (
        f"{dataset.num_classes}, the {dataset.classes_per_region} most probable of each region stored"
        if dataset.num_classes
        else "none"
    )
    lines = [
        f"data set    {config.data}",
        f"shards      {len(dataset.shards)}, {size / 1e6:.1f} MB",
        f"images      {len(dataset)}",
        f"detector    {dataset.detector}",
        f"features    {dataset.feature_size} numbers per region",
        f"classes     {classes}",
        f"regions     {regions.min()} to {regions.max()} per image, {regions.mean():.1f} on average "
        f"(over {len(sampled)} images)",
        f"overlap     {overlapping(sampled):.1f} others overlap a region with an IoU of at least {OVERLAP}, on average",
    ]
    if dataset.num_classes:
        mass = np.mean([sample.class_probs.astype(float).sum(1).mean() for sample in sampled])
        lines.append(f"mass        {mass:.3f} of the class distribution is stored on average")
    lists = [captions for captions in read_captions(dataset) if captions]
    captions = list(itertools.chain.from_iterable(lists))
    if captions:
        words = np.mean([len(caption.split()) for caption in captions])
        counts = sorted({len(captions) for captions in lists})
        per_image = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]
        several = "" if counts[-1] == 1 else f" of {len(lists)} images, {per_image} per image"
        lines.append(
            f"captions    {len(captions)}{several}, {len(set(captions))} different, {words:.1f} words on average"
        )
    else:
        lines.append("captions    none")
    return "\n".join(lines)


def overlapping(samples: list[Sample]) -> float:
    """Mean number of other regions that overlap a region so that pretraining masks them together."""
    counts = [(iou(sample.boxes, sample.boxes) >= OVERLAP).sum(1) - 1 for sample in samples]
    return float(np.concatenate(counts).mean())


def source_of(sample: Sample, folder: Path) -> str:
    """The source image of a sample, a path or `TAR#MEMBER`. folder: folder of the shards.

    Raises:
        UserError: it is missing, or outside of the data folder of the shards and of the folders from which they
            were extracted. Untrusted shards could name any file.
    """
    name, hash_sign, member = sample.info.get("source", "").partition("#")
    if not is_image(member or name):
        raise UserError("the shards were made from features")
    path = Path(os.path.abspath(folder / name))
    described = folder / "dataset.json"
    version = described.stat().st_mtime_ns if described.exists() else 0
    if not any(path.is_relative_to(root) for root in _image_folders(folder, version)):
        raise UserError(f"{sample.key}: source {name} is outside of the folders of these images and not opened")
    return f"{folder / name}{hash_sign}{member}"


@functools.lru_cache(maxsize=64)
def _image_folders(folder: Path, version: int) -> list[Path]:
    """The folders that may contain the images of region shards.

    These are the folder of the shards, the data folder with it in regions/, and the folders read by shards.extract.

    Args:
        version: modification time of dataset.json, so that a cached result is not used for another version.
    """
    folder = Path(os.path.abspath(folder))
    found = [folder, *(above.parent for above in folder.parents[:2] if above.name == "regions")]
    if version:
        plan = read_json(folder / "dataset.json").get("extra", {}).get("plan", {})
        read = [Path(name) for first, last, _ in plan.get("images", []) for name in (first, last)]
        found += dict.fromkeys(path.parent for path in read)
        common = Path(os.path.commonpath(read)) if read else folder
        if common != Path(common.anchor) and common not in read:
            found.append(common)
    return found


def image_of(sample: Sample, folder: Path) -> tuple[Image.Image, str]:
    """(source image of a sample, ""), or (blank image of its size, error message). folder: folder of the shards."""
    try:
        source = source_of(sample, folder)
        return Image.fromarray(decode_image(read_source(source))), ""
    except (UserError, BadImage) as error:
        return Image.new("RGB", (sample.info.get("width", 640), sample.info.get("height", 640)), "white"), str(error)


def draw(sample: Sample, folder: Path, names: list[str] | None = None) -> tuple[Image.Image, str]:
    """Draws an image (blank if the source is missing) with its regions, the highest scores last.

    Args:
        names: names of the classes.

    Returns:
        The picture and one line of description.
    """
    width, height = sample.info.get("width", 640), sample.info.get("height", 640)
    image, missing = image_of(sample, folder)
    note = f" (the image is not available: {missing})" if missing else ""
    scale = LONG_SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC if scale < 2 else Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    for number in reversed(range(len(sample.boxes))):
        box = (sample.boxes[number].reshape(2, 2) * (np.array(size) - 1)).ravel().tolist()
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle(box, outline=colour, width=2 if number < 12 else 1)
        if number < 12:
            label = f"{number} {_class_of(sample, number, names)}" if names else str(number)
            pen.text((box[0] + 3, box[1] + 1), label, fill=colour, stroke_width=1, stroke_fill="white")
    return (
        image,
        f"{sample.info.get('id', sample.key)}: {len(sample.boxes)} regions, {width} x {height}{note}",
    )


def _class_of(sample: Sample, region: int, names: list[str]) -> str:
    """The name and probability of the most probable class of a region except the background."""
    pairs = zip(sample.class_ids[region].tolist(), sample.class_probs[region].tolist(), strict=True)
    others = (pair for pair in pairs if names[pair[0]].strip("_").lower() != BACKGROUND)
    number, share = next(others, (0, 0.0))
    return f"{names[number]} {share:.0%}"


def number_of(reader: RegionReader, image: str) -> int:
    """The sample number of an image, by its id or the id used in annotations; KeyError if it does not exist."""
    with contextlib.suppress(KeyError):
        return reader.number_of(image)
    return reader.plain_numbers()[image_id(image)]


def run(config: InspectConfig) -> None:
    dataset = open_dataset(config.data)
    if config.check:
        errors = list(checksum_errors(dataset))
        if errors:
            raise UserError("; ".join(errors))
    reader = RegionReader(dataset)
    try:
        number = 0 if config.image is None else number_of(reader, config.image)
    except KeyError:
        first = reader[0].info.get("id", reader[0].key)
        raise UserError(f"--image {config.image}: no such image id in {config.data} (the first is {first})") from None
    print(describe(config, reader))
    if config.check:
        print(f"checksums   all {len(dataset.shards)} correct")
    sample = reader[number]
    image, line = draw(sample, dataset.folder, dataset.extra.get("class_names"))
    path = Path(config.picture or dataset.folder / "inspect.png")
    with whole_file(path) as file:
        image.save(file, "PNG")
    print(f"picture     {path}\n            {line}")
    for caption in sample.captions:
        print(f'            "{caption}"')


if __name__ == "__main__":
    command(
        InspectConfig,
        run,
        "shards.inspect",
        "Summarise a data set and draw one image with its regions.",
    )
