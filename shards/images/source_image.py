"""The source images of samples, opened only inside the folders of their data set."""

import functools
import math
import os
from pathlib import Path

import msgspec
from PIL import Image

from shards.common.errors import UserError
from shards.common.image_id import is_image
from shards.common.untrusted_input import check_fields
from shards.images.image_files import MAX_PIXELS, BadImage, decode_image, read_source, split_source
from shards.storage.dataset import plan_of
from shards.storage.sample import Sample

BLANK = 640  # pixels, sides of a blank image for a sample without them


class Extracted(msgspec.Struct):
    """The inputs of an extraction in its plan: (first image, last image, number of images) of every part."""

    images: list[tuple[str, str, int]] = []


def source_of(sample: Sample, folder: Path) -> str:
    """The source image of a sample, a path or `TAR#MEMBER`. folder: folder of the shards.

    Raises:
        UserError: it is missing, or outside of the data folder of the shards and of the folders from which they
            were extracted. Untrusted shards could name any file.
    """
    name, member = split_source(sample.info.get("source", ""))
    if not is_image(member or name):
        raise UserError("the shards were made from features")
    path = Path(os.path.abspath(folder / name))
    described = folder / "dataset.json"
    version = described.stat().st_mtime_ns if described.exists() else 0
    if not any(path.is_relative_to(root) for root in _image_folders(folder, version)):
        raise UserError(f"{sample.key}: source {name} is outside of the folders of these images and not opened")
    return f"{folder / name}#{member}" if member else str(folder / name)


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
        described = check_fields(plan_of(folder), Extracted, folder / "dataset.json")
        read = [Path(os.path.abspath(name)) for first, last, _ in described.get("images", []) for name in (first, last)]
        found += dict.fromkeys(path.parent for path in read)
        common = Path(os.path.commonpath(read)) if read else folder
        if common != Path(common.anchor) and common not in read:
            found.append(common)
    return found


def image_of(sample: Sample, folder: Path) -> tuple[Image.Image, str]:
    """(source image of a sample, ""), or (blank image, error message). folder: folder of the shards.

    The blank image has the size of the sample's image, or its aspect ratio if that has more than MAX_PIXELS.
    """
    try:
        source = source_of(sample, folder)
        return Image.fromarray(decode_image(read_source(source))), ""
    except (UserError, BadImage) as error:
        sides = [sample.info.get(side, BLANK) for side in ("width", "height")]
        scale = min(1.0, math.sqrt(MAX_PIXELS / math.prod(sides)))
        return Image.new("RGB", tuple(max(1, int(side * scale)) for side in sides), "white"), str(error)
