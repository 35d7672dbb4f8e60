"""The directory of a local tar of images, as img2dataset or anybody's tar program writes them."""

import posixpath
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from shards.files import is_stray
from shards.image_id import is_image
from shards.index import read_headers

REPLACED = "is replaced by a later member of the same name"


class Unused(NamedTuple):
    """What lies among images and is not used, and why."""

    source: str
    reason: str


class Member(NamedTuple):
    """A file in a tar: where its data begin, and how many bytes they are."""

    offset: int
    size: int


@dataclass
class Directory:
    """What a tar of images holds. images: by the names of their members; texts: by path without the suffix, and
    suffix (txt or json); unused: names of members, and why they are not used."""

    images: dict[str, Member]
    texts: dict[tuple[str, str], tuple[str, Member]]
    unused: list[Unused]


def read_directory(tar: str) -> Directory:
    """The directory of a local tar, whose members may come in any order.

    A member's suffix begins at the last dot, as that of a file does.
    """
    found, others = Directory({}, {}, []), Counter()
    for name, *place in read_headers(tar):
        member, (path, suffix) = Member(*place), split_path(name)
        if is_stray(name):
            found.unused.append(Unused(name, "was left by a system or an editor"))
        elif is_image(name):
            if name in found.images:
                found.unused.append(Unused(name, REPLACED))
            found.images[name] = member
        elif suffix in ("txt", "json"):
            if (path, suffix) in found.texts:
                found.unused.append(Unused(name, REPLACED))
            found.texts[path, suffix] = name, member
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
    """(path without the suffix, suffix) of a member of a tar; a/./b.txt is a/b.txt."""
    path, dot, suffix = posixpath.normpath(name).rpartition(".")
    return (path, suffix) if dot and "/" not in suffix else (path + dot + suffix, "")
