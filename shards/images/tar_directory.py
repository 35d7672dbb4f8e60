"""The directory of a local tar of images, written by img2dataset or any tar program."""

import posixpath
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from shards.common.files import is_stray
from shards.common.image_id import is_image
from shards.storage.index import read_headers

REPLACED = "is replaced by a later member of the same name"


class Unused(NamedTuple):
    """A file among images that is ignored, and the reason."""

    source: str
    reason: str


class Member(NamedTuple):
    """A file in a tar: offset and size of its data, in bytes."""

    offset: int
    size: int


@dataclass
class Directory:
    """The content of a tar of images.

    Attributes:
        images: by member name.
        texts: (member name, member) by (path without suffix, suffix txt or json).
        unused: ignored members.
    """

    images: dict[str, Member]
    texts: dict[tuple[str, str], tuple[str, Member]]
    unused: list[Unused]


def read_directory(tar: str) -> Directory:
    """Reads the directory of a local tar. Members can be in any order; their suffix starts at the last dot."""
    found, others = Directory({}, {}, []), Counter()
    for name, *place in read_headers(tar):
        member, (path, suffix) = Member(*place), split_path(name)
        if is_stray(name):
            found.unused.append(Unused(name, "is an artifact of a system or an editor"))
        elif is_image(name):
            if name in found.images:
                found.unused.append(Unused(name, REPLACED))
            found.images[name] = member
        elif suffix.lower() in ("txt", "json"):
            if (path, suffix.lower()) in found.texts:
                found.unused.append(Unused(name, REPLACED))
            found.texts[path, suffix.lower()] = name, member
        else:
            others[suffix] += 1
    with_image = {split_path(name)[0] for name in found.images}
    for (path, suffix), (name, _) in found.texts.items():
        if path not in with_image and suffix == "txt":
            found.unused.append(Unused(name, "is a caption without an image"))
        elif path not in with_image:
            others["json (without an image)"] += 1
    for suffix, count in others.items():
        found.unused.append(Unused("", f"{count} members with the suffix {suffix!r}: neither images nor captions"))
    return found


def split_path(name: str) -> tuple[str, str]:
    """(path without suffix, suffix) of a member of a tar; a/./b.txt is a/b.txt."""
    path, dot, suffix = posixpath.normpath(name).rpartition(".")
    return (path, suffix) if dot and "/" not in suffix else (path + dot + suffix, "")
