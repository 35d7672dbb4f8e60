"""Reads the images and texts to embed, and forms the arrays to store."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from finetune.inference.embedder import Embedder, Embeddings
from shards.common.errors import UserError
from shards.images.image_files import BadImage, Record, decode_image, find_parts, read_records
from shards.parsing.text_encoding import decode_text
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader


def read_texts(path: str) -> list[str]:
    """The lines of a text file, none of which may be empty."""
    try:
        lines = decode_text(Path(path).read_bytes()).splitlines()
    except OSError as error:
        raise UserError(f"--texts {path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"--texts {path}: is not text in UTF-8 or UTF-16") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"--texts {path}, line {number}: is empty")
    if not lines:
        raise UserError(f"--texts {path}: is empty")
    return lines


def image_embeddings(embedder: Embedder, images: str) -> Iterator[tuple[list[str], Embeddings]]:
    """(ids, embeddings) of some images at a time, from region shards or image files."""
    if (Path(images) / "dataset.json").exists():
        reader = RegionReader(open_dataset(images))
        for begin in range(0, len(reader), embedder.batch_size):
            samples = [reader[number] for number in range(begin, min(begin + embedder.batch_size, len(reader)))]
            yield [sample.info["id"] for sample in samples], embedder.regions(samples)
        return
    for part in find_parts(images, embedder.batch_size):
        records = read_records(part)
        while chosen := list(islice(records, embedder.batch_size)):
            yield [record.id for record in chosen], embedder.images([_pixels(record) for record in chosen])


def _pixels(record: Record) -> np.ndarray:
    try:
        return decode_image(record.data)
    except BadImage as error:
        raise UserError(f"{record.source}: {error}; remove it, or extract region shards, which skips it") from None


def arrays_of(kind: str, found, parts: bool) -> dict[str, np.ndarray]:
    """The arrays of some embeddings; those of parts one after the other, with the end of each input's."""
    arrays = {f"{kind}_embeddings": np.concatenate([one.pooled for one in found])}
    if parts:
        rows = [part for one in found for part in one.parts]
        arrays[f"{kind}_parts"] = np.concatenate(rows)
        arrays[f"{kind}_ends"] = np.cumsum([len(part) for part in rows])
    return arrays
