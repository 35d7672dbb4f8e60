"""The images of training data in any form: tars, folders, region shards, parquet files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.decontamination.parquet_rows import parquet_rows
from shards.common.errors import UserError
from shards.common.files import expand, files_below, is_remote, printable
from shards.common.image_id import SUFFIXES, image_id, is_image, photo_names
from shards.common.untrusted_input import parse_json
from shards.images.image_files import BadImage, Part, read_records
from shards.images.tar_directory import read_directory
from shards.storage.index import saved_index, scan_tar
from shards.storage.sample import MEMBERS

PART = 500  # image files per part
TAR, PARQUET = ".tar", ".parquet"
KINDS = f"images ({', '.join(SUFFIXES)}), {TAR} or {PARQUET} files"


@dataclass(frozen=True)
class CorpusPart:
    """Image files, or one tar or parquet file, that one job reads. bytes: size of its files."""

    files: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class CorpusImage:
    """One image of a corpus.

    Attributes:
        id: the image id, by which it can be excluded from training.
        source: `FILE` or `TAR#MEMBER`.
        names: names of the photo in known collections, with the source of each: "file name", "URL ..." or
            "--collection ...".
        picture: bytes of the image file; None if the corpus does not contain them; or the error of reading them.
        sha256: checksum of the downloaded file according to img2dataset, hexadecimal; empty if unknown.
        bare: the id is a number without a collection, so that it could not be compared with ids.
    """

    id: str
    source: str
    names: tuple[tuple[str, str], ...]
    picture: bytes | BadImage | None
    sha256: str = ""
    bare: bool = False


def corpus_parts(corpus: str) -> list[CorpusPart]:
    """Divides a corpus into parts.

    Args:
        corpus: a folder, which is searched recursively, or a path or pattern of files.
    """

    def wanted(name: str) -> bool:
        return is_image(name) or name.endswith((TAR, PARQUET))

    folder = Path(corpus)
    names = files_below(folder, wanted) if folder.is_dir() else expand(corpus)
    if not names:
        raise UserError(f"--corpus {corpus}: contains no {KINDS}")
    for name in names:
        if is_remote(name) or not wanted(name):
            raise UserError(f"--corpus {name}: should be a folder, or local {KINDS}")
    images = [name for name in names if is_image(name)]
    groups = [images[begin : begin + PART] for begin in range(0, len(images), PART)]
    groups += [[name] for name in names if not is_image(name)]
    return [CorpusPart(tuple(group), sum(map(_size, group))) for group in groups]


def _size(name: str) -> int:
    try:
        return Path(name).stat().st_size
    except OSError:  # a broken link
        return 0


def corpus_images(part: CorpusPart, collection: str | None) -> Iterator[CorpusImage]:
    """Yields the images of a part in order.

    Args:
        collection: the data set whose ids the names of the corpus' images are; None if they are not ids.

    Raises:
        UserError: a file cannot be read, or has neither images nor region features.
    """
    first = part.files[0]
    if first.endswith(PARQUET):
        for row in parquet_rows(first):
            yield _image(row.id, row.source, row.urls, row.picture, row.sha256, collection)
    elif first.endswith(TAR) and not read_directory(first).images:
        yield from _region_samples(first, collection)
    else:
        for record in read_records(Part(list(part.files), len(part.files)), with_info=True):
            urls = _urls(record.info)
            sha256 = record.info.get("sha256")
            sha256 = sha256 if isinstance(sha256, str) else ""
            yield _image(record.id, record.source, urls, record.data, sha256, collection)


def _image(id: str, source: str, urls: list[str], picture, sha256: str, collection: str | None) -> CorpusImage:
    names = [(name, "file name") for name in photo_names(source.replace("#", "/"))]  # a member may be in a folder
    names += [(name, f"URL {url}") for url in urls for name in photo_names(url)]
    if collection:
        names.append((f"{collection}:{id}", f"--collection {collection}"))
    unique = {name: evidence for name, evidence in reversed(names)}  # the first evidence of each name
    ordered = tuple((name, unique[name]) for name in dict.fromkeys(name for name, _ in names))
    return CorpusImage(id, source, ordered, picture, sha256, bare=not names and id.isdigit())


def _urls(info: dict) -> list[str]:
    """The URLs in the JSON of an image, in order: `url` of img2dataset, `coco_url`, `flickr_url` and others.

    They may be in nested objects and lists; a value is a URL if a key that leads to it contains `url`.
    """
    found, waiting = [], [(info, False)]
    while waiting:  # not a recursion, because JSON may be nested deeply
        value, named = waiting.pop()
        if isinstance(value, dict):
            waiting += [(one, named or "url" in key.lower()) for key, one in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(one, named) for one in reversed(value)]
        elif named and isinstance(value, str):
            found.append(value)
    return found


def _region_samples(tar: str, collection: str | None) -> Iterator[CorpusImage]:
    """The samples of a region shard, which has ids and the names of the image files, but no images."""
    try:
        index = saved_index(tar) or scan_tar(tar)
    except UserError as error:
        if "no region features" not in str(error):
            raise
        raise UserError(f"{tar}: contains neither images ({', '.join(SUFFIXES)}) nor region features") from None
    column = MEMBERS.index("json")
    with open(tar, "rb") as file:
        for key, id, members in zip(index.keys.tolist(), index.ids.tolist(), index.members.tolist(), strict=True):
            offset, size = members[column]
            file.seek(offset)
            info = _object(file.read(size))
            source = info.get("source")
            own = image_id(str(info.get("id") or id))  # as --exclude of the commands compares it
            names = source if isinstance(source, str) else key
            found = _image(own, f"{printable(tar)}#{key}", _urls(info), None, "", collection)
            stated = tuple((name, f"source {names}") for name in photo_names(names.replace("#", "/")))
            yield CorpusImage(own, found.source, found.names + stated, None, "", found.bare and not stated)


def _object(data: bytes) -> dict:
    try:
        value = parse_json(data, finite=False)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
