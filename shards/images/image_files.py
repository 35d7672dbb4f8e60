"""Finding and decoding images in folders, or in tars in the layout of img2dataset."""

import io
import itertools
import os
import re
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.files import (
    expand,
    files_below,
    folders_below,
    is_remote,
    is_utf8,
    printable,
)
from shards.common.image_id import (
    NOT_UTF8,
    SAME_ID,
    SUFFIXES,
    image_id,
    is_image,
    printable_id,
    unread_format,
)
from shards.common.untrusted_input import parse_json, refuse_special_file
from shards.images.tar_directory import Member, Unused, read_directory, split_path
from shards.parsing.text_encoding import decode_text
from shards.storage.dataset import UNFINISHED
from shards.storage.index import read_headers

MAX_PIXELS = 80_000_000  # below the size from which Pillow warns

# Of corrupt EXIF data and the like: they do not name the file, and its pixels can be used. `catch_warnings` around the
# decoding would not be thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImage(Exception):
    """An image that cannot be decoded, with the reason."""


@dataclass
class ImageRecord:
    """One image before decoding.

    data: its bytes, or the error of reading them; source: `FILE` or `TAR#MEMBER`; info: the content of KEY.json, if it
    is read, such as the URL of an image of img2dataset.
    """

    id: str
    data: bytes | BadImage
    source: str
    captions: tuple[str, ...] = ()
    info: dict = field(default_factory=dict)


def decode_image(data: bytes | BadImage, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image to RGB uint8 (H, W, 3), with EXIF rotation applied and transparent pixels on white.

    The size in the header is checked before decoding, because a small file can declare a huge image.

    Raises:
        BadImage: the image cannot be decoded.
    """
    if isinstance(data, BadImage):
        raise data
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise BadImage(f"has {image.width} x {image.height} pixels, more than {max_pixels}")
            image.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("cannot be decoded (unknown image format)") from None
    except Image.DecompressionBombError:  # a size for which Pillow does not report width and height
        raise BadImage(f"has more than {max_pixels} pixels") from None
    except Exception as error:  # Pillow's decoders raise almost any exception for damaged data
        raise BadImage(f"cannot be decoded ({error or type(error).__name__})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, np.float64))
        if image.mode == "F" and 0 < values.max(initial=0) <= 1:  # floating-point images usually end at 1
            values = values * 255
        elif image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = values / 257
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


@dataclass
class Part:
    """The input of one shard of an extraction: some files of a folder, or one tar.

    Attributes:
        count: number of images.
        captions: image id -> captions, instead of those next to the images; only these images are read.
        ignored: images of a folder that are in no part, because of their format; in its first part.
    """

    files: list[str]
    count: int
    captions: dict[str, tuple[str, ...]] | None = None
    ignored: list[Unused] = field(default_factory=list)


class FoundImage(NamedTuple):
    """An image in the input. file: the image file, or the tar; source: see ImageRecord."""

    file: str
    source: str
    id: str


def find_parts(images: str, per_part: int, unique: bool = True) -> list[Part]:
    """Finds images and divides them into parts that can be read independently.

    Folders are searched recursively; tars in a folder are used only if it contains no images.

    Args:
        images: a folder, or a path or pattern of image files or tars.
        per_part: images per part, if they are files.
        unique: raise UserError for two images with the same id.
    """
    files = _image_files(images) if os.path.isdir(images) else []
    if os.path.isdir(images) and not files and not any(Path(images).glob("*.tar")):
        if tars := files_below(images, lambda name: name.endswith(".tar")):
            raise UserError(
                f"{images}: contains no images, and .tar files only in subfolders ({tars[0]}); give these as a "
                f"pattern, for example '{images}/*/*.tar'"
            )
        others = "".join(f"; it has {found.reason}" for found in _unread_files(images))
        raise UserError(f"{images}: contains no images ({', '.join(SUFFIXES)}) and no .tar files{others}")
    names = files or expand(images)
    parts, hashes = [], array("q")  # ids take ten times as much memory, too much for millions of images
    if all(map(is_image, names)):
        hashes.extend(hash(image_id(name)) for name in names)
        groups = (names[begin : begin + per_part] for begin in range(0, len(names), per_part))
        parts = [Part(group, len(group)) for group in groups]
        if files:
            parts[0].ignored = _unread_files(images)
    else:
        for name in names:
            if is_remote(name) or not name.endswith(".tar"):
                raise UserError(f"{name}: should be a folder of images, images, or local .tar files")
            members = read_directory(name).images
            if not members:
                raise UserError(f"{name}: contains no images ({', '.join(SUFFIXES)})")
            hashes.extend(hash(image_id(member)) for member in members)
            parts.append(Part([name], len(members)))
    if unique and len(np.unique(hashes)) < len(hashes):
        _refuse_same_ids(parts)
    return parts


def _refuse_same_ids(parts: list[Part]) -> None:
    seen: dict[str, str] = {}
    for found in itertools.chain.from_iterable(map(find_images, parts)):
        if found.id in seen:
            raise UserError(f"{seen[found.id]} and {found.source}: {SAME_ID.format(image=found.id)}")
        seen[found.id] = found.source


def _image_files(folder: str) -> list[str]:
    """Image files in a folder and its subfolders, in natural order (2 before 10)."""
    found = files_below(folder, is_image)
    return sorted(found, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)])


def _unread_files(folder: str) -> list[Unused]:
    """The files of a folder of images and its subfolders that are not read although they may be data, by kind.

    These are images whose names have no suffix, or that of a format that is not read; captions without an image; tars,
    except region shards; images and folders with names as systems and editors give them.
    """
    formats: Counter[str] = Counter()
    captions, tars, stray = [], [], []
    for base, names, skipped in folders_below(folder):
        images = {os.path.splitext(name)[0] for name in names if is_image(name)}
        for name in names:
            path, (stem, suffix) = os.path.join(base, name), os.path.splitext(name)
            if suffix.lower() == ".txt" and stem not in images:
                captions.append(path)
            elif suffix == ".tar" and not {"dataset.json", UNFINISHED} & set(names):
                tars.append(path)
            elif (form := unread_format(name)) or (form == "" and _begins_as_image(path)):
                formats[form] += 1
        paths = (os.path.join(base, name) for name in skipped)
        stray += [path for path in paths if is_image(path) or os.path.isdir(path)]
    wanted = f"convert or rename them to {', '.join(SUFFIXES)}"
    found = [
        f"{counted(count, 'image')} {f'with the suffix .{form}' if form else 'without a suffix'}, {wanted}"
        for form, count in sorted(formats.items())
    ]
    for paths, what in (
        (captions, ".txt files without an image of the same name"),
        (tars, ".tar files in a folder of images; extract them separately"),
        (stray, "artifacts of a system or an editor"),
    ):
        if paths:
            found.append(f"{len(paths)} {what} ({printable(os.path.relpath(min(paths), folder))})")
    return [Unused(folder, reason) for reason in found]


def _begins_as_image(name: str) -> bool:
    """Whether a file begins like a JPEG, PNG, GIF or WebP."""
    try:
        refuse_special_file(name)
        with open(name, "rb") as file:
            begin = file.read(12)
    except (OSError, UserError):
        return False
    return begin.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8")) or (begin[:4], begin[8:]) == (b"RIFF", b"WEBP")


def find_images(part: Part) -> Iterator[FoundImage]:
    """Yields every image of a part, without reading it."""
    for name in part.files:
        if name.endswith(".tar"):
            for member in read_directory(name).images:
                yield FoundImage(name, f"{name}#{printable(member)}", printable_id(member))
        else:
            yield FoundImage(name, printable(name), printable_id(name))


def read_records(part: Part, unused: list[Unused] | None = None, with_info: bool = False) -> Iterator[ImageRecord]:
    """Yields the Record of every image of a part, and appends ignored files among them to `unused`.

    with_info: also read the KEY.json of every image.
    """
    unused = [] if unused is None else unused
    unused += part.ignored
    for name in part.files:
        if name.endswith(".tar"):
            yield from _records_of_tar(name, part.captions, unused, with_info)
        elif part.captions is None or printable_id(name) in part.captions:
            yield _record_of_file(name, part.captions, unused, with_info)


def _record_of_file(
    name: str, captions: dict[str, tuple[str, ...]] | None, unused: list[Unused], with_info: bool
) -> ImageRecord:
    image, source = printable_id(name), printable(name)
    if not is_utf8(name):
        return ImageRecord(image, BadImage(NOT_UTF8), source)
    if (data := _read_file(name)) is None:
        return ImageRecord(image, BadImage("is a link to a file that does not exist"), source)

    def neighbour(suffix: str) -> tuple[str, bytes] | None:
        for path in (str(Path(name).with_suffix(f".{form}")) for form in (suffix, suffix.upper())):
            if (content := _read_file(path)) is not None:
                return path, content
        return None

    own = _captions(neighbour, unused) if captions is None else captions[image]
    return ImageRecord(image, data, source, own, _info(neighbour) if with_info else {})


def _read_file(name: str) -> bytes | None:
    """The content of a file; None if it does not exist."""
    refuse_special_file(name)
    try:
        return Path(name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None


def _captions(neighbour: Callable[[str], tuple[str, bytes] | None], unused: list[Unused]) -> tuple[str, ...]:
    """The captions next to an image: the content of KEY.txt, or `caption` in KEY.json, which may be a list.

    They are empty if both are blank.

    neighbour: maps a suffix to (source, content) of the file next to the image, or None.
    """
    if found := neighbour("txt"):
        source, data = found
        try:
            if caption := decode_text(data).strip():
                return (caption,)
        except ValueError:
            unused.append(Unused(source, "is not a caption in UTF-8 or UTF-16"))
    if found := neighbour("json"):
        source, data = found
        try:
            value = parse_json(decode_text(data), finite=False)
        except ValueError:
            unused.append(Unused(source, "is not valid JSON with a caption"))
            return ()
        found = value.get("caption") if isinstance(value, dict) else None
        captions = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(caption, str) for caption in captions):
            unused.append(Unused(source, "has a caption that is not a text or a list of texts"))
            return ()
        return tuple(text for caption in captions if (text := caption.strip()))
    return ()


def _info(neighbour: Callable[[str], tuple[str, bytes] | None]) -> dict:
    """The content of the KEY.json next to an image; empty if it is not a JSON object."""
    try:
        found = neighbour("json")
        value = parse_json(decode_text(found[1]), finite=False) if found else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _records_of_tar(
    tar: str, captions: dict[str, tuple[str, ...]] | None, unused: list[Unused], with_info: bool
) -> Iterator[ImageRecord]:
    directory = read_directory(tar)
    unused += (Unused(f"{tar}#{printable(name)}" if name else tar, reason) for name, reason in directory.unused)
    with open(tar, "rb") as file:

        def read(member: Member) -> bytes:
            file.seek(member.offset)
            return file.read(member.size)

        def neighbour(path: str, suffix: str) -> tuple[str, bytes] | None:
            if (path, suffix) not in directory.texts:
                return None
            name, member = directory.texts[path, suffix]
            return f"{tar}#{printable(name)}", read(member)

        for name, member in directory.images.items():
            image, source = printable_id(name), f"{tar}#{printable(name)}"
            if captions is not None and image not in captions:
                continue
            if not is_utf8(name):
                yield ImageRecord(image, BadImage(NOT_UTF8), source)
                continue
            around = partial(neighbour, split_path(name)[0])
            own = _captions(around, unused) if captions is None else captions[image]
            yield ImageRecord(image, read(member), source, own, _info(around) if with_info else {})


def split_source(source: str) -> tuple[str, str]:
    """(file, member) of the source of a Record; the member is empty for an image file, whose path may contain #."""
    tar, found, member = source.partition(".tar#")
    return (f"{tar}.tar", member) if found else (source, "")


def read_source(source: str) -> bytes:
    """The bytes of an image from the source of a Record; UserError if it no longer exists."""
    name, member = split_source(source)
    refuse_special_file(name)
    try:
        if not member:
            return Path(name).read_bytes()
        offset, size = {printable(found): place for found, *place in read_headers(name)}[member]
        with open(name, "rb") as tar:
            tar.seek(offset)
            return tar.read(size)
    except (OSError, KeyError) as error:
        raise UserError(f"{source}: the image cannot be read ({error})") from None
