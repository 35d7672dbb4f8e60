"""What a model is asked: a text about images, with the regions that were found in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from finetune.batch import TaskCollator
from finetune.task import Box, Example, Task
from pretrain.collate import Limits
from pretrain.config import ModelConfig
from pretrain.tokenizer import WordPieces
from shards.detector import Found
from shards.errors import UserError
from shards.images import BadImage, decode_image
from shards.reading import LARGEST_SIDE, is_number
from shards.sample import Sample

LONGEST_TEXT = 10_000  # characters; the longest dialogues of GuessWhat have a third of it
IMAGES = {"nlvr2": 2}  # that a task's example has, where it is not one


@dataclass
class Query:
    """A text about images; of retrieval, about each of them alone.

    names: of the images; pixels: uint8 RGB (H, W, 3) of each; samples: their regions; boxes: of the candidates, in
    pixels of the image; candidates: their regions, or None, with those of the image's other given boxes among them
    where the image is one of the data set (an image file has no other boxes).
    """

    task: Task
    text: str
    names: list[str]
    pixels: list[np.ndarray]
    samples: list[Sample]
    boxes: Sequence[Box] = ()
    candidates: Sample | None = None

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the first image, in the pixels of boxes."""
        return float(self.samples[0].info["width"]), float(self.samples[0].info["height"])

    def collator(self, pieces: WordPieces, sizes: ModelConfig) -> TaskCollator:
        """Makes the one batch that the query is. sizes: of the model."""
        keys = [str(number) for number in range(len(self.samples))]
        own = [(key,) for key in keys] if self.task.head == "retrieval" else [tuple(keys)]
        ids = tuple(str(number) for number in range(len(self.boxes)))
        examples = [
            Example(number, self.text, images, candidates=tuple(map(tuple, self.boxes)), candidate_ids=ids)
            for number, images in enumerate(own)
        ]
        return TaskCollator(
            task=self.task,
            examples=examples,
            regions=dict(zip(keys, self.samples, strict=True)),
            pieces=pieces,
            limits=Limits(min(self.task.words, sizes.max_position_embeddings), self.task.regions, sizes.v_feature_size),
            boxes={"0": self.candidates} if self.candidates is not None else None,
        )


def check_query(task: Task, text: str, images: int, boxes: bool) -> None:
    """Refuses what a task cannot be asked. images: how many; boxes: whether there are candidates."""
    wanted = IMAGES.get(task.name, 1)
    if task.head == "retrieval" and images < 1:
        raise UserError(f"{task.name}: ranks images; give some")
    if task.head != "retrieval" and images != wanted:
        raise UserError(f"{task.name}: is asked of {wanted} image{'s' * (wanted > 1)}, and {images} are given")
    if (task.head == "candidates") != boxes:
        mend = "needs the boxes of its candidates" if task.head == "candidates" else "has no candidates"
        raise UserError(f"{task.name}: {mend} (--boxes)")
    check_text(text)


def check_text(text: str) -> None:
    """Refuses a text that cannot be asked."""
    if not (text or "").strip():
        raise UserError("the text is empty (--text)")
    if len(text) > LONGEST_TEXT:
        raise UserError(f"the text has {len(text)} characters, more than the {LONGEST_TEXT} that are taken (--text)")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("the text has half a character, a lone surrogate (--text)") from None


def read_image(image) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a path, the bytes of a file, a PIL image, or an array (see _rgb)."""
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if isinstance(image, np.ndarray):
        return _rgb(image)
    name = "the image" if isinstance(image, bytes) else image
    try:
        return decode_image(image if isinstance(image, bytes) else Path(image).read_bytes())
    except BadImage as error:
        raise UserError(f"{name}: {error}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a uint8 array (H, W, 3), (H, W, 4) or (H, W)."""
    shape = pixels.shape
    if (
        pixels.dtype != np.uint8
        or len(shape) not in (2, 3)
        or 0 in shape
        or (len(shape) == 3 and shape[2] not in (3, 4))
    ):
        raise UserError(f"images: an array of {pixels.dtype} {shape}; should be uint8 (H, W, 3), in RGB order")
    return np.stack([pixels] * 3, -1) if len(shape) == 2 else np.ascontiguousarray(pixels[..., :3])


def sample_of(name: str, image: np.ndarray, found: Found) -> Sample:
    """A detector's regions as shards have them."""
    height, width = image.shape[:2]
    return Sample(
        key=name,
        features=found.features.astype(np.float16),
        boxes=found.boxes / np.array([width, height] * 2, np.float32),
        class_ids=found.class_ids,
        class_probs=found.class_probs,
        info={"id": name, "width": width, "height": height},
    )


def candidates_of(name: str, image: np.ndarray, found: Found) -> Sample:
    """Described boxes as shards of given boxes have them, each under its number."""
    sample = sample_of(name, image, found)
    sample.info["box_ids"] = [str(number) for number in range(len(found.boxes))]
    return sample


def parse_boxes(text: str | None) -> list[Box]:
    """Boxes of a text like "1,2,30,40; 5,6,70,80"."""
    boxes = []
    if text and len(text) > LONGEST_TEXT:
        raise UserError(f"--boxes has {len(text)} characters, more than the {LONGEST_TEXT} that are taken")
    for part in (text or "").split(";") if text else ():
        try:
            x1, y1, x2, y2 = numbers = list(map(float, part.split(",")))
            if not all(is_number(number, -LARGEST_SIDE, LARGEST_SIDE) for number in numbers):
                raise ValueError
        except ValueError:
            raise UserError(f"--boxes {part.strip()[:60]}: should be four numbers of pixels, x1,y1,x2,y2") from None
        if x2 <= x1 or y2 <= y1:
            raise UserError(f"--boxes {part.strip()}: has no inside; x1,y1 is the corner at the top left")
        boxes.append((x1, y1, x2, y2))
    return boxes
