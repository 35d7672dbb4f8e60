"""Captions from a separate file: a Karpathy file, or rows of (image, caption) as TSV or JSON Lines."""

import itertools
import re
from collections.abc import Iterator

from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.image_id import image_id
from shards.common.untrusted_input import parse_json, reason_of, refuse_special_file
from shards.images.image_files import Part, find_images
from shards.parsing.karpathy_file import read_karpathy
from shards.parsing.text_encoding import encoding_of

SPLITS = ("train", "val", "test")
_NUMBERED = re.compile(r"(.+)#\d+$")  # an image with a caption number, as in Flickr30k's 1000092795.jpg#0


def read_caption_file(path: str, splits: str | None = None) -> dict[str, tuple[str, ...]]:
    """Reads captions: image id -> its captions, in the order of the file.

    Args:
        path: a Karpathy file (.json); JSON Lines (.jsonl), {"image": ..., "caption": ...}; or any other name for TSV
            rows of image and caption, where the image may have a caption number, as in Flickr30k's
            results_20130124.token (1000092795.jpg#0).
        splits: comma-separated splits of a Karpathy file to read; train includes restval.
    """
    wanted = _wanted(path, splits)
    refuse_special_file(path, "--captions ")
    if path.endswith(".json"):
        try:
            found = _karpathy(path, wanted)
        except FileNotFoundError as error:
            raise UserError(f"--captions {path}: cannot be read ({reason_of(error)})") from None
    else:
        found, places = {}, {}
        for number, name, caption in _rows(path):
            image, numbered = image_id(_NUMBERED.sub(r"\1", name)), _NUMBERED.match(name)
            first = places.setdefault((image, name if numbered else caption), number)
            if first != number:
                what = name if numbered else f"a caption of {name}"
                raise UserError(f"{path}, line {number}: duplicate of line {first} ({what}); remove one of them")
            found.setdefault(image, []).append(caption)
    if not found:
        of_splits = f" of --captions_split {splits}" if splits else ""
        raise UserError(f"--captions {path}: contains no captions{of_splits}")
    return {image: tuple(captions) for image, captions in found.items()}


def with_captions(parts: list[Part], captions: dict[str, tuple[str, ...]], per_part: int) -> tuple[list[Part], str]:
    """Restricts the parts of an extraction to images with captions.

    Args:
        parts: result of find_parts.
        captions: image id -> captions.
        per_part: images per part, if they are files in a folder.

    Returns:
        The parts, and the counts as text for the console.
    """
    matched: dict[str, str] = {}  # image id -> its file
    total = 0
    for part in parts:
        for found in find_images(part):
            total += 1
            if found.id in captions:
                matched[found.id] = found.file
    if not matched:
        raise UserError(
            f"{parts[0].files[0]}: --captions has captions for none of the images; it has captions for image "
            f"{next(iter(captions))}, for example, but not for {next(find_images(parts[0])).id}"
        )
    counts = f"{counted(sum(len(captions[image]) for image in matched), 'caption')} of {counted(len(matched), 'image')}"
    if len(captions) > len(matched):
        counts += f"; {counted(len(captions) - len(matched), 'image')} of the file not found"
    if total > len(matched):
        counts += f"; {counted(total - len(matched), 'image')} without captions skipped"
    rows = [(file, image, captions[image]) for image, file in matched.items()]
    if rows[0][0].endswith(".tar"):
        groups = [list(group) for _, group in itertools.groupby(rows, key=lambda one: one[0])]
    else:
        groups = [rows[begin : begin + per_part] for begin in range(0, len(rows), per_part)]
    chosen = []
    for group in groups:
        files = list(dict.fromkeys(file for file, _, _ in group))
        chosen.append(Part(files, len(group), {image: texts for _, image, texts in group}))
    chosen[0].ignored = parts[0].ignored
    return chosen, counts


def _wanted(path: str, splits: str | None) -> set[str] | None:
    if splits is None:
        return None
    wanted = {name.strip() for name in splits.split(",")}
    for name in wanted - set(SPLITS):
        raise UserError(f"--captions_split {name}: should be one or more of {', '.join(SPLITS)}")
    if not path.endswith(".json"):
        raise UserError(f"--captions_split {splits}: only Karpathy files (.json) have splits; {path} is not one")
    return wanted


def _karpathy(path: str, wanted: set[str] | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for image in read_karpathy(path):
        captions = [sentence.raw.strip() for sentence in image.sentences]
        if not all(captions):
            raise UserError(f"{image.where}: has an empty caption; remove it")
        if image.id in found:
            raise UserError(f"{image.where}: duplicate image {image.id}; remove one of them")
        found[image.id] = captions if wanted is None or image.split in wanted else []
    return {name: captions for name, captions in found.items() if captions}


def _rows(path: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line number, image, caption) of every row."""
    columns = _json_columns if path.endswith((".jsonl", ".jsonline")) else _tsv_columns
    number = 0
    try:
        with open(path, "rb") as file:
            encoding = encoding_of(file.read(4))
        with open(path, encoding=encoding, newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                image, caption = columns(line.rstrip("\r\n"), f"{path}, line {number}")
                if not image.strip() or not caption.strip():
                    missing = "caption" if image.strip() else "image"
                    raise UserError(f"{path}, line {number}: has no {missing}; remove it")
                yield number, image.strip(), caption.strip()
    except UnicodeError as error:
        raise UserError(
            f"--captions {path}, after line {number}: is not text in UTF-8, or in UTF-16 with a byte order mark "
            f"({error}); convert it to UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"--captions {path}: cannot be read ({error})") from None


def _tsv_columns(line: str, where: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise UserError(f"{where}: has {len(columns)} columns; should be an image, a TAB and a caption")
    return columns[0], columns[1]


def _json_columns(line: str, where: str) -> tuple[str, str]:
    try:
        row = parse_json(line)
        image, caption = str(row["image"]), row["caption"]
        if not isinstance(caption, str):
            raise TypeError(f"caption is {type(caption).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{where}: should be {{"image": ..., "caption": ...}} ({error!r})') from None
    return image, caption
