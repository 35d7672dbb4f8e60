"""Caption-based image retrieval on COCO and Flickr30k, with Karpathy's splits."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, find_files, official, unique
from finetune.annotations.reference_annotations import captions
from finetune.annotations.source_files import once
from finetune.heads.retrieval_head import RetrievalHead
from finetune.task_types.base import Task
from shards.common.errors import UserError
from shards.parsing.karpathy_file import read_karpathy

RECALL_PLACES = (1, 5, 10)
AT_ONCE = 1000  # images that an evaluation ranks, as in COCO's usual protocol


@dataclass(frozen=True)
class Retrieval(Task):
    """An example is a caption with its image.

    Predictions: scores, float (captions, images), with the images in order of first appearance. The id of an image is
    its `cocoid` in the official file, or the stem of its file name. val and test are the first thousand images, val5k
    and test5k all of them, fold0 to fold4 five folds of a thousand test images each.

    stand_in: name of a file that may replace the official one.
    """

    stand_in: str = ""

    def missing_files(self, folder: Path) -> list[str]:
        return [] if self._file(folder).exists() else super().missing_files(folder)

    def _file(self, folder: Path) -> Path:
        """The path of the official file, or of its replacement if that exists."""
        official, *others = [find_file(folder, name) for name in (*self.files, self.stand_in) if name]
        found = [path for path in (official, *others) if path.exists()]
        if len(found) > 1:
            raise UserError(f"{folder}: found both {' and '.join(path.name for path in found)}; keep one")
        return found[0] if found else official

    @property
    def learned(self) -> tuple[str, ...]:
        return "train", "val5k" if "val5k" in self.splits else "val"

    def is_test(self, split: str) -> bool:
        return split.startswith(("test", "fold"))

    @property
    def reported(self) -> tuple[str, ...]:
        return ("test",)

    def examples(self, folder: Path, split: str) -> list[Example]:
        path = self._file(folder)
        images = self._images(path, split) if path.exists() or not _lines(folder, split) else _processed(folder, split)
        examples = []
        for name, sentences in images[_thousand(split)]:
            examples += [Example(sentence, text.strip(), (name,)) for sentence, text in sentences]
        unique((example.id for example in examples), str(path))
        return examples

    def _images(self, path: Path, split: str) -> list[tuple[str, list[tuple[int, str]]]]:
        """(image, [(id, text) of its captions]) of a split of the official file."""
        wanted = {"train": "train", "val": "val", "val5k": "val"}.get(split, "test")
        return [(name, sentences) for of, name, sentences in karpathy_images(path) if of == wanted]

    def scores(self, examples: Sequence[Example], predictions: np.ndarray) -> dict[str, np.ndarray]:
        """R@k: image retrieval, per caption; TR@k: text retrieval, per image. Ties count as wrong."""
        own = own_images(examples)
        images = image_ranks(predictions, own)
        captions = caption_ranks(predictions, own)
        return {f"R@{k}": (images < k).astype(float) for k in RECALL_PLACES} | {
            f"TR@{k}": (captions < k).astype(float) for k in RECALL_PLACES
        }

    def submission(self, examples: Sequence[Example], predictions: np.ndarray) -> str:
        """A JSON object from each caption's id to its ten best images; there is no official server."""
        names = list(dict.fromkeys(example.images[0] for example in examples))
        best = np.argsort(-predictions, axis=1, kind="stable")[:, : RECALL_PLACES[-1]]
        return json.dumps({e.id: [names[n] for n in row] for e, row in zip(examples, best.tolist(), strict=True)})


@once
def karpathy_images(path: Path) -> list[tuple[str, str, list[tuple[int, str]]]]:
    """(split, image, [(id, text) of its captions]) of every image of an official file."""
    images = []
    for image in official(path, read_karpathy(path)):
        sentences = [(sentence.sentid, sentence.raw) for sentence in image.sentences]
        if any(number is None for number, _ in sentences):
            raise UserError(f"{image.where}: has a sentence without sentid; download the file again")
        images.append((image.split, image.id, sentences))
    return images


def _lines(folder: Path, split: str) -> list[Path]:
    """The reference implementation's files of a split; those for evaluation have a thousand images each."""
    part = {"train": "train", "val": "val_set*", "val5k": "val_set*"}.get(split, "test_set*")
    return find_files(folder, f"all_data_final_{part}_2014.jsonline")


def _processed(folder: Path, split: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(image, [(id, text) of its captions]) of the reference implementation's files, which have no caption ids."""
    images = (image for path in _lines(folder, split) for image in captions(path))
    return [(name, [(f"{name}-{n}", text) for n, text in enumerate(texts)]) for name, texts in images]


def _thousand(split: str) -> slice:
    """The images of a split among those of its files."""
    if split.startswith("fold"):
        begin = int(split.removeprefix("fold")) * AT_ONCE
        return slice(begin, begin + AT_ONCE)
    return slice(0, AT_ONCE) if split in ("val", "test") else slice(None)


def own_images(examples: Sequence[Example]) -> np.ndarray:
    """int (captions,): the number of each caption's image, in order of first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(example.images[0], len(numbers)) for example in examples])


def image_ranks(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """int (captions,): the rank of each caption's image, the number of other images with at least its score."""
    return (scores >= scores[np.arange(len(own)), own][:, None]).sum(1) - 1


def caption_ranks(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """int (images,): the rank of each image's best caption, the number of other images' captions with at least its
    score."""
    best, mine = np.full(scores.shape[1], -np.inf), scores[np.arange(len(own)), own]
    np.maximum.at(best, own, mine)
    return (scores >= best).sum(0) - np.bincount(own[mine >= best[own]], minlength=len(best))


_SETTINGS = {"group": "G2", "head": RetrievalHead(), "max_tokens": 30, "batch_size": 128, "lr": 2e-5}
_FOLDS = tuple(f"fold{n}" for n in range(5))

TASKS = (
    Retrieval(
        name="coco_retrieval",
        title="COCO retrieval",
        token=7,
        images="coco",
        splits=("train", "val", "test", "val5k", "test5k", *_FOLDS),
        tests=("test5k",),
        files=("dataset_coco.json",),
        published="cocoRetreival",
        **_SETTINGS,
    ),
    Retrieval(
        name="flickr_retrieval",
        title="Flickr30k retrieval",
        token=8,
        images="flickr",
        splits=("train", "val", "test"),
        tests=("test",),
        files=("dataset_flickr30k.json",),
        stand_in="dataset_flickr8k.json",
        published="flickr30k",
        **_SETTINGS,
    ),
)
