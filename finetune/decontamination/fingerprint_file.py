"""Fingerprint files: known test sets without their images, to be shared and to be searched for in other data.

A fingerprint file is a safetensors file. Its metadata has one entry, `fingerprint`, a JSON object with the format and,
for every test set, the number of photos and of photos with an image. Its tensors:

    names          uint8 (bytes,): JSON Lines in UTF-8, one line per name of a photo, a KnownName with its name
    pictures       int32 (n,): the line of the photo of each image
    sha256         uint8 (n, 32): checksums of the image files
    hashes         uint64 (n, 6): perceptual hashes of the image and of its crops, see perceptual_hash.py
    thumbnails     uint8 (bytes,): greyscale JPEGs of 48 x 48 pixels, one after another
    thumbnail_ends int64 (n,): the end of each thumbnail
"""

import json
from pathlib import Path

import msgspec
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from finetune.decontamination.known_tests import KnownName, KnownTests, Pictures
from finetune.decontamination.perceptual_hash import TRIMMED
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.untrusted_input import reading, refuse_special_file

FORMAT = 1
KEY = "fingerprint"
AGAIN = "make it again with finetune.clean --fingerprint"


class _Line(msgspec.Struct):
    name: str
    photo: str
    sets: tuple[str, ...]
    names: tuple[str, ...]
    evidence: tuple[str, ...]


def write_fingerprint(path, known: KnownTests) -> None:
    """Writes known test sets; the same sets give the same bytes."""
    row = {name: number for number, name in enumerate(known.names)}
    lines = [_Line(name, one.photo, one.sets, one.names, one.evidence) for name, one in known.names.items()]
    names = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    pictures = known.pictures
    arrays = {
        "names": np.frombuffer(names, np.uint8),
        "pictures": np.array([row[name] for name in pictures.names], np.int32),
        "sha256": pictures.sha256,
        "hashes": pictures.hashes,
        "thumbnails": np.frombuffer(b"".join(pictures.thumbnails), np.uint8),
        "thumbnail_ends": np.cumsum([len(data) for data in pictures.thumbnails], dtype=np.int64),
    }
    sets = {name: {"photos": photos, "pictures": seen} for name, (photos, seen) in known.sets().items()}
    # One entry, because safetensors writes several in random order.
    metadata = {KEY: json.dumps({"format": FORMAT, "sets": sets}, ensure_ascii=False, sort_keys=True)}
    with whole_file(path) as file:
        file.write(save(arrays, metadata))


def read_checked_fingerprint(path) -> KnownTests:
    """Reads a fingerprint file of unknown origin; also raises UserError for a thumbnail that is no image."""
    known = read_fingerprint(path)
    with reading(path, AGAIN):
        for row in range(len(known.pictures)):
            try:
                known.pictures.image(row)
            except UserError as error:
                raise ValueError(str(error)) from None
    return known


def read_fingerprint(path) -> KnownTests:
    """Reads a fingerprint file.

    Raises:
        UserError: it does not exist, is damaged, or is not a fingerprint file. Thumbnails are not decoded.
    """
    refuse_special_file(path)
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; {AGAIN}")
    with reading(path, AGAIN):
        with safe_open(path, framework="np") as file:
            described = json.loads((file.metadata() or {}).get(KEY) or "{}")
            if described.get("format") != FORMAT:
                raise UserError(f"{path}: is not a fingerprint file of this version; {AGAIN}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        decoder = msgspec.json.Decoder(_Line)
        lines = [decoder.decode(line) for line in arrays["names"].tobytes().splitlines()]
        ends, data = arrays["thumbnail_ends"], arrays["thumbnails"].tobytes()
        begins = np.concatenate([[0], ends])[:-1].astype(np.int64)
        count = len(ends)
        shapes = {"pictures": (count,), "sha256": (count, 32), "hashes": (count, len(TRIMMED))}
        if any(arrays[name].shape != shape for name, shape in shapes.items()) or (count and ends[-1] != len(data)):
            raise ValueError("its tensors have inconsistent sizes")
        if count and arrays["pictures"].min() < 0:
            raise ValueError("it contains a negative number of a photo")
        pictures = Pictures(
            [lines[number].name for number in arrays["pictures"].tolist()],
            arrays["sha256"].astype(np.uint8, casting="safe"),
            arrays["hashes"].astype(np.uint64, casting="safe"),
            [data[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)],
        )
    return KnownTests(
        {line.name: KnownName(line.photo, line.sets, line.names, line.evidence) for line in lines}, pictures
    )
