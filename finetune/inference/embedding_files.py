"""Reads the images and texts to embed, and forms the arrays to store."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from finetune.data.task_data import open_data
from finetune.inference.embedder import Embedder, Embeddings
from finetune.inference.request import check_text
from finetune.task_types.base import Task
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.untrusted_input import refuse_special_file
from shards.images.image_files import BadImage, ImageRecord, Unused, decode_image, find_parts, read_records
from shards.images.source_image import image_of
from shards.parsing.text_encoding import decode_text
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader
from shards.storage.sample import Sample
from shards.storage.skip_log import SHOWN


class EmbeddedImages(NamedTuple):
    """Some images, in order, with their embeddings.

    captions: those of each image; picture: maps the number of an image to its pixels, or None if they do not exist.
    """

    ids: list[str]
    captions: list[tuple[str, ...]]
    embeddings: Embeddings
    picture: Callable[[int], Image.Image | None]


def read_texts(path: str) -> list[str]:
    """The lines of a text file, none of which may be empty."""
    refuse_special_file(path, "--texts ")
    try:
        text = decode_text(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"--texts {path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"--texts {path}: is not text in UTF-8 or UTF-16") from None
    if not text:
        raise UserError(f"--texts {path}: is empty")
    # Not str.splitlines, which also splits at form feeds and Unicode's separators: a text then has no line number.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"--texts {path}, line {number}: is empty")
        check_text(line, f"--texts {path}, line {number}: the text", "")
    return lines


def embed_images(embedder: Embedder, images: str) -> Iterator[EmbeddedImages]:
    """Embeds a batch of images at a time, from region shards or image files, with the captions next to them."""
    if (Path(images) / "dataset.json").exists():
        reader = RegionReader(open_dataset(images))
        for begin in range(0, len(reader), embedder.batch_size):
            samples = [reader[number] for number in range(begin, min(begin + embedder.batch_size, len(reader)))]
            captions = [sample.captions for sample in samples]
            yield _embed_samples(embedder, samples, captions, reader.dataset.folder)
        return
    unused: list[Unused] = []
    for part in find_parts(images, embedder.batch_size):
        records = read_records(part, unused)
        while chosen := list(islice(records, embedder.batch_size)):
            pixels = [_pixels(record) for record in chosen]
            ids, captions = [record.id for record in chosen], [record.captions for record in chosen]
            yield EmbeddedImages(ids, captions, embedder.images(pixels), _pictures(pixels))
    for source, reason in unused[:SHOWN]:
        print(f"skipped {source}: {reason}")
    if len(unused) > SHOWN:
        print(f"{len(unused) - SHOWN} more skipped")


def embed_retrieval(embedder: Embedder, task: Task, data: str) -> Iterator[EmbeddedImages]:
    """Embeds the images of a retrieval task's validation split, with their captions. data: data folder."""
    opened = open_data(task, data, "stop")
    captions: dict[str, tuple[str, ...]] = {}
    for example in opened.examples(task.splits[1]):
        captions[example.images[0]] = (*captions.get(example.images[0], ()), example.text)
    names = iter(captions)
    while chosen := list(islice(names, embedder.batch_size)):
        samples = [opened.regions[name] for name in chosen]
        of_images = [captions[name] for name in chosen]
        yield _embed_samples(embedder, samples, of_images, opened.regions.dataset.folder)


def _embed_samples(
    embedder: Embedder, samples: Sequence[Sample], captions: list[tuple[str, ...]], folder: Path
) -> EmbeddedImages:
    """folder: of the region shards."""

    def picture(number: int) -> Image.Image | None:
        image, problem = image_of(samples[number], folder)
        return None if problem else image

    ids = [str(sample.info.get("id", sample.key)) for sample in samples]
    return EmbeddedImages(ids, captions, embedder.regions(samples), picture)


def _pictures(pixels: Sequence[np.ndarray]) -> Callable[[int], Image.Image]:
    return lambda number: Image.fromarray(pixels[number])


def _pixels(record: ImageRecord) -> np.ndarray:
    try:
        return decode_image(record.data)
    except BadImage as error:
        raise UserError(f"{record.source}: {error}; remove it, or extract region shards, which skips it") from None


def embed_all(
    embedder: Embedder, images: Iterable[EmbeddedImages], texts: Sequence[str], captions: bool, parts: bool
) -> dict[str, np.ndarray]:
    """The arrays that finetune.embed stores (docs/embeddings.md).

    Args:
        embedder: the model.
        images: embedded images, none for arrays of texts alone.
        texts: texts, none for arrays of images alone.
        captions: embed the captions of the images instead of `texts`.
        parts: also a vector per token and per image row.

    Raises:
        UserError: no image has a caption, although `captions` is true.
    """
    arrays: dict[str, np.ndarray] = {}
    ids: list[str] = []
    found, pairs = [], []
    for part in images:
        ids += part.ids
        found.append(part.embeddings if parts else replace(part.embeddings, parts=[]))
        of_part = [(text, image) for image, of in zip(part.ids, part.captions, strict=True) for text in of]
        if captions:
            for text, image in of_part:
                check_text(text, f"image {image}: a caption", "")
        pairs += of_part
    if captions:
        if not pairs:
            raise UserError("--captions true: none of the images has a caption; give texts by --texts")
        texts = [text for text, _ in pairs]
    if texts:
        batches = (texts[begin : begin + embedder.batch_size] for begin in range(0, len(texts), embedder.batch_size))
        embedded = [one if parts else replace(one, parts=[]) for one in map(embedder.texts, batches)]
        arrays |= {"texts": np.array(texts)} | _arrays_of("text", embedded, parts)
    if captions:
        arrays["text_images"] = np.array([image for _, image in pairs])
    if found:
        arrays |= {"image_ids": np.array(ids)} | _arrays_of("image", found, parts)
    return arrays


def _arrays_of(kind: str, found: Sequence[Embeddings], parts: bool) -> dict[str, np.ndarray]:
    """The arrays of some embeddings; those of parts one after the other, with the end of each input's."""
    arrays = {f"{kind}_embeddings": np.concatenate([one.pooled for one in found])}
    if parts:
        rows = [part for one in found for part in one.parts]
        arrays[f"{kind}_parts"] = np.concatenate(rows)
        arrays[f"{kind}_ends"] = np.cumsum([len(part) for part in rows])
    return arrays


def write_arrays(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays of embed_all to an .npz file, or to a .parquet file with a row per image and text."""
    with whole_file(path) as file:
        if path.endswith(".npz"):
            np.savez(file, **arrays)
            return
        import pyarrow  # an optional package
        from pyarrow import parquet

        kinds = [kind for kind in ("image", "text") if f"{kind}_embeddings" in arrays]
        parquet.write_table(pyarrow.concat_tables(_table(kind, arrays) for kind in kinds), file)


def _table(kind: str, arrays: dict[str, np.ndarray]) -> Any:
    """The pyarrow.Table of all images or all texts; its columns are in docs/embeddings.md. kind: "image" or "text"."""
    import pyarrow

    def lists(rows: np.ndarray) -> Any:
        """A list of numbers per row of a matrix."""
        rows = rows.astype(np.float32, copy=False)
        return pyarrow.LargeListArray.from_arrays(np.arange(len(rows) + 1) * rows.shape[1], rows.ravel())

    embeddings = arrays[f"{kind}_embeddings"]
    count, none = len(embeddings), pyarrow.nulls(len(embeddings), pyarrow.string())
    ids, texts = (arrays.get(name) for name in (("image_ids", "") if kind == "image" else ("text_images", "texts")))
    columns = {
        "kind": pyarrow.array([kind] * count),
        "image": none if ids is None else pyarrow.array(ids.tolist()),
        "text": none if texts is None else pyarrow.array(texts.tolist()),
        "embedding": lists(embeddings),
    }
    if f"{kind}_parts" in arrays:
        ends = np.concatenate([[0], arrays[f"{kind}_ends"]])
        columns["parts"] = pyarrow.LargeListArray.from_arrays(ends, lists(arrays[f"{kind}_parts"]))
    return pyarrow.table(columns)
