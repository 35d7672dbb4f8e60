"""python -m finetune.embed --run RUN --images DIR --texts FILE --out embeddings.npz: embeddings of images and texts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from finetune.config import ModelFlags
from finetune.inference.embedder import Embedder, Embeddings
from shards.common.cli import REQUIRED, command, flag
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.images.image_files import BadImage, Record, decode_image, find_parts, read_records
from shards.parsing.text_encoding import decode_text
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader


@dataclass
class EmbedConfig(ModelFlags):
    """Flags of finetune.embed."""

    out: str = flag(REQUIRED, "the .npz file to write", written=True)
    images: str | None = flag(None, "region shards, a folder of image files, or tars of images", unset="no images")
    texts: str | None = flag(None, "a text file, one text per line", unset="no texts")
    task: str | None = flag(None, "the task whose token precedes a text", unset="the first that the run was trained on")
    parts: bool = flag(False, "also store a vector for each token and each image row")
    batch_size: int = flag(64, "images or texts per forward pass", low=1)


def run(config: EmbedConfig) -> None:
    if not config.images and not config.texts:
        raise UserError("there is nothing to embed; give --images, --texts or both")
    if not config.out.endswith(".npz"):
        raise UserError(f"--out {config.out}: should end in .npz")
    embedder = Embedder(regions=config.regions, task=config.task, batch_size=config.batch_size, **config.of_weights)
    arrays: dict[str, np.ndarray] = {}
    if config.texts:
        texts = read_texts(config.texts)
        arrays |= {"texts": np.array(texts)} | _arrays("text", [embedder.texts(texts)], config.parts)
    if config.images:
        ids, found = [], []
        for names, embeddings in image_embeddings(embedder, config.images):
            ids += names
            found.append(embeddings if config.parts else replace(embeddings, parts=[]))
        arrays |= {"image_ids": np.array(ids)} | _arrays("image", found, config.parts)
    with whole_file(config.out) as file:
        np.savez(file, **arrays)
    shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items())
    space = "texts and images share one space" if embedder.comparable else "texts and images have separate spaces"
    print(f"{config.out}: {shapes}; {space}")


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


def _arrays(kind: str, found, parts: bool) -> dict[str, np.ndarray]:
    """The arrays of some embeddings; those of parts one after the other, with the end of each input's."""
    arrays = {f"{kind}_embeddings": np.concatenate([one.pooled for one in found])}
    if parts:
        rows = [part for one in found for part in one.parts]
        arrays[f"{kind}_parts"] = np.concatenate(rows)
        arrays[f"{kind}_ends"] = np.cumsum([len(part) for part in rows])
    return arrays


if __name__ == "__main__":
    command(EmbedConfig, run, "finetune.embed", "Embeddings of images and texts.")
