"""Lists of images that are excluded from training: text files with one image id per line."""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.image_id import composed, image_id, is_image
from shards.common.untrusted_input import byte_lines, reading, refuse_special_file

EXCLUDED = "excluded.txt"


def write_excluded(path, ids: Iterable[str]) -> None:
    """Writes image ids in alphabetical order, without duplicates."""
    with whole_file(path, "w", encoding="utf-8") as file:
        file.writelines(f"{image}\n" for image in sorted(set(ids)))


def read_excluded(path) -> frozenset[str]:
    """The image ids of a list, or of the `excluded.txt` in an output folder of finetune.clean.

    Raises:
        UserError: the file does not exist or is not text in UTF-8.
    """
    file = Path(path) / EXCLUDED if Path(path).is_dir() else Path(path)
    refuse_special_file(file, "--exclude ")
    if not file.exists():
        raise UserError(f"--exclude {path}: no such file; create it with finetune.clean --corpus")
    with reading(f"--exclude {file}", "it should be a text file with one image id per line"):
        return frozenset(composed(line.decode().rstrip("\r\n")) for line in byte_lines(file) if line.strip())


def not_excluded(path) -> Callable[[dict], bool]:
    """A condition for `select` of a webdataset pipeline: whether a sample's image is not in a list of read_excluded.

    It belongs before `rename` and `to_tuple`: webdataset divides file names at the first dot, so that the name of
    a.b.jpg is known by the key a together with the field b.jpg. Fields are in lower case, and so are the compared ids.
    """
    return partial(_is_kept, frozenset(image.lower() for image in read_excluded(path)))


def _is_kept(excluded: frozenset[str], sample: dict) -> bool:
    key = sample["__key__"]
    names = [key, *(f"{key}.{field}" for field in sample if is_image(f".{field}"))]
    return excluded.isdisjoint(image_id(name).lower() for name in names)


def digest_of(ids: frozenset[str]) -> str:
    """SHA-256 of a list, in hexadecimal; empty lists have the empty string."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest() if ids else ""
