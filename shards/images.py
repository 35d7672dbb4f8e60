"""Finding and decoding images: a folder of files, or tars in img2dataset's layout."""

import io
import os
import re
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shards.errors import UserError
from shards.files import expand, files_below, is_remote
from shards.index import read_headers, split_name

SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
MAX_PIXELS = 80_000_000  # below the size at which Pillow begins to warn by itself


class BadImage(Exception):
    """An image that cannot be decoded, with the reason in words."""


@dataclass
class Record:
    """One image before it is decoded. source: where its bytes came from, `FILE` or `TAR#MEMBER`."""

    id: str
    data: bytes
    source: str
    captions: tuple[str, ...] = ()


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """RGB uint8 (H, W, 3), upright (EXIF), transparent pixels on white; BadImage where that cannot be had.

    The size is checked in the header, before any pixel is decoded: a small file can claim a huge picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise BadImage(f"has {image.width} x {image.height} pixels, more than {max_pixels}")
            image.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("cannot be decoded (it is no image of a kind that is known)") from None
    except Image.DecompressionBombError:  # of a size at which Pillow does not even say what it is
        raise BadImage(f"has more than {max_pixels} pixels") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        raise BadImage(f"cannot be decoded ({error or type(error).__name__})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = values / 257
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


@dataclass
class Part:
    """What one task of an extraction reads: some files of a folder, or one tar. count: its images.

    captions: by image id, where they are not those next to the images; the images of these ids alone are read.
    """

    files: list[str]
    root: str | None
    count: int
    captions: dict[str, tuple[str, ...]] | None = None


def find_parts(images: str, per_part: int) -> list[Part]:
    """The images that a path or pattern names, divided into parts that are read independently of each other.

    A folder is searched through its subfolders; its tars count where it holds no images.
    """
    if os.path.isdir(images):
        files = _image_files(images)
        if files:
            return [
                Part(files[begin : begin + per_part], images, len(files[begin : begin + per_part]))
                for begin in range(0, len(files), per_part)
            ]
        if not any(Path(images).glob("*.tar")):
            raise UserError(f"{images}: holds no images ({', '.join(SUFFIXES)}) and no .tar files")
    names = expand(images)
    if all(name.lower().endswith(SUFFIXES) for name in names):
        return [
            Part(names[i : i + per_part], None, len(names[i : i + per_part])) for i in range(0, len(names), per_part)
        ]
    parts = []
    for name in names:
        if is_remote(name) or not name.endswith(".tar"):
            raise UserError(f"{name}: should be a folder of images, images, or local .tar files")
        count = sum(_is_image(entry) for entry, _, _ in read_headers(name))
        if not count:
            raise UserError(f"{name}: holds no images ({', '.join(SUFFIXES)})")
        parts.append(Part([name], None, count))
    return parts


def _is_image(name: str) -> bool:
    return split_name(name)[1].lower() in SUFFIXES


def _image_files(folder: str) -> list[str]:
    """Image files below a folder, 2 before 10."""
    found = files_below(folder, lambda name: name.lower().endswith(tuple(f".{suffix}" for suffix in SUFFIXES)))
    return sorted(found, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)])


def image_ids(part: Part) -> list[tuple[str, str]]:
    """(file, image id) of every image of a part, without reading the images."""
    found = []
    for name in part.files:
        if name.endswith(".tar"):
            found += dict.fromkeys(
                (name, split_name(entry)[0]) for entry, _, _ in read_headers(name) if _is_image(entry)
            )
        else:
            found.append((name, _id_of_file(name, part.root)))
    return found


def read_records(part: Part):
    """Yields the Record of every image of a part."""
    for name in part.files:
        for record in _records_of_tar(name) if name.endswith(".tar") else (_record_of_file(name, part.root),):
            if part.captions is None:
                yield record
            elif record.id in part.captions:
                yield replace(record, captions=part.captions[record.id])


def _id_of_file(name: str, root: str | None) -> str:
    path = Path(name)
    return str(path.relative_to(root).with_suffix("")) if root else path.stem


def _record_of_file(name: str, root: str | None) -> Record:
    path = Path(name)
    text = path.with_suffix(".txt")
    try:
        caption = text.read_text(encoding="utf-8", errors="replace") if text.exists() else ""
        return Record(_id_of_file(name, root), path.read_bytes(), name, _one(caption))
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None


def _one(caption: str) -> tuple[str, ...]:
    """The captions of a text file: one, whatever lines it has; none where it is blank."""
    return (caption.strip(),) if caption.strip() else ()


def _records_of_tar(name: str):
    key, image, captions = None, None, ()
    with tarfile.open(name, "r:") as tar:
        for entry in tar:
            if not entry.isfile():
                continue
            entry_key, suffix = split_name(entry.name)
            if entry_key != key:
                if image:
                    yield Record(key, image[1], f"{name}#{image[0]}", captions)
                key, image, captions = entry_key, None, ()
            if suffix.lower() in SUFFIXES:
                image = entry.name, tar.extractfile(entry).read()
            elif suffix == "txt":
                captions = _one(tar.extractfile(entry).read().decode(errors="replace"))
        if image:
            yield Record(key, image[1], f"{name}#{image[0]}", captions)


def read_source(source: str) -> bytes:
    """The bytes of an image from a Record's source; UserError where they are not there any more."""
    name, _, member = source.partition("#")
    try:
        if member:
            with tarfile.open(name, "r:") as tar:
                return tar.extractfile(member).read()
        return Path(name).read_bytes()
    except (OSError, KeyError, tarfile.TarError) as error:
        raise UserError(f"{source}: the image cannot be read ({error})") from None
