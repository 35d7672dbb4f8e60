"""Known test sets: the names of their photos in all collections, and what is needed to recognise their images."""

import hashlib
import io
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
from PIL import Image

from finetune.decontamination.perceptual_hash import THUMBNAIL, TRIMMED, grey, image_hashes, thumbnail
from shards.common.errors import UserError
from shards.common.process_pool import advance
from shards.images.image_files import BadImage, ImageRecord, Part, decode_image, read_records

QUALITY = 90  # of the JPEG thumbnails, which have 1.3 KB each


class KnownName(msgspec.Struct):
    """A name of a test photo.

    photo: one of the names of the photo, the same for all of them; sets: the test sets with the photo; names: from this
    name to the one in a test set; evidence: the source of the link between each name and the next.
    """

    photo: str
    sets: tuple[str, ...]
    names: tuple[str, ...]
    evidence: tuple[str, ...] = ()


@dataclass
class Pictures:
    """What is known of the images of test photos.

    Attributes:
        names: the name of each image's photo.
        sha256: uint8 (n, 32), the checksum of each file.
        hashes: uint64 (n, 6), see perceptual_hash.image_hashes.
        thumbnails: JPEG files, see perceptual_hash.thumbnail.
    """

    names: list[str] = field(default_factory=list)
    sha256: np.ndarray = field(default_factory=lambda: np.empty((0, 32), np.uint8))
    hashes: np.ndarray = field(default_factory=lambda: np.empty((0, len(TRIMMED)), np.uint64))
    thumbnails: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, row: int) -> Image.Image:
        """The greyscale thumbnail of an image. Raises UserError if it is damaged or larger than a thumbnail."""
        try:
            return Image.fromarray(decode_image(self.thumbnails[row], THUMBNAIL**2)).convert("L")
        except BadImage as error:
            raise UserError(f"the thumbnail of {self.names[row]} {error}") from None


@dataclass
class KnownTests:
    """The photos of known test sets by their names in all collections, and their images, as far as there are any."""

    names: dict[str, KnownName] = field(default_factory=dict)
    pictures: Pictures = field(default_factory=Pictures)

    def sets(self) -> dict[str, tuple[int, int]]:
        """Test set -> (number of its photos, number of these with an image), in alphabetical order."""
        photos: dict[str, set[str]] = {}
        for known in self.names.values():
            for name in known.sets:
                photos.setdefault(name, set()).add(known.photo)
        pictured = {self.names[name].photo for name in self.pictures.names}
        return {name: (len(photos[name]), len(photos[name] & pictured)) for name in sorted(photos)}

    def merged(self, other: "KnownTests") -> "KnownTests":
        """The photos of both; a name in both belongs to the test sets of both."""
        same = {known.photo: self.names[name].photo for name, known in other.names.items() if name in self.names}
        theirs = {
            name: msgspec.structs.replace(known, photo=same.get(known.photo, known.photo))
            for name, known in other.names.items()
        }
        sets: dict[str, set[str]] = {}
        for known in (*self.names.values(), *theirs.values()):
            sets.setdefault(known.photo, set()).update(known.sets)
        names = {
            name: msgspec.structs.replace(known, sets=tuple(sorted(sets[known.photo])))
            for name, known in sorted((theirs | self.names).items())
        }
        present = {*zip(self.pictures.names, map(bytes, self.pictures.sha256), strict=True)}
        rows = [
            row
            for row, key in enumerate(zip(other.pictures.names, map(bytes, other.pictures.sha256), strict=True))
            if key not in present
        ]
        mine, added = self.pictures, other.pictures
        pictures = Pictures(
            mine.names + [added.names[row] for row in rows],
            np.concatenate([mine.sha256, added.sha256[rows]]),
            np.concatenate([mine.hashes, added.hashes[rows]]),
            mine.thumbnails + [added.thumbnails[row] for row in rows],
        )
        return KnownTests(names, pictures)


class ImageFingerprint(NamedTuple):
    """An image file of a test set. Without hashes and thumbnail if it cannot be decoded, for the reason `bad`."""

    source: str
    sha256: bytes
    hashes: np.ndarray | None
    thumbnail: bytes
    bad: str


def fingerprint_part(part: Part) -> list[ImageFingerprint]:
    """The fingerprints of all images of a part, in a worker process."""
    found = []
    for record in read_records(part):
        found.append(image_fingerprint(record))
        advance()
    return found


def image_fingerprint(record: ImageRecord) -> ImageFingerprint:
    """Checksum, hashes and thumbnail of an image."""
    try:
        image = grey(record.data)
    except BadImage as error:
        return ImageFingerprint(record.source, b"", None, b"", str(error))
    file = io.BytesIO()
    thumbnail(image).save(file, "JPEG", quality=QUALITY)
    sha256 = hashlib.sha256(record.data).digest()
    return ImageFingerprint(record.source, sha256, image_hashes(image), file.getvalue(), "")
