"""Queries to a model: a text about images, with their regions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from finetune.annotations.example import Box, Example, as_box
from finetune.data.task_collate import TaskCollator
from finetune.heads.base import Scene
from finetune.task_types.base import Task
from pretrain.data.collate import Limits
from pretrain.models.model_config import ModelConfig
from pretrain.tokenizer.tokenizer import WordPieceTokenizer
from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.untrusted_input import LARGEST_SIDE, is_number, refuse_special_file
from shards.detection.base import DetectedRegions
from shards.images.image_files import BadImage, decode_image
from shards.storage.sample import Sample

LONGEST_TEXT = 10_000  # characters; the longest dialogues of GuessWhat have a third of this

ImageLike = str | Path | bytes | Image.Image | np.ndarray  # what read_image takes


@dataclass
class Query:
    """A text about images; for retrieval, about each image separately.

    Attributes:
        names: of the images.
        pixels: uint8 RGB (H, W, 3) of each.
        samples: their regions.
        boxes: candidate boxes in pixels.
        candidates: regions of the candidate boxes, or None. For an image of the data set, they include the image's
            other given boxes.
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
        """(width, height) of the first image, in the pixels of `boxes`."""
        return self.samples[0].side("width"), self.samples[0].side("height")

    @property
    def scene(self) -> Scene:
        """What the choices refer to."""
        return Scene(self.names, self.samples[0].boxes, self.size, self.boxes)

    def collator(self, tokenizer: WordPieceTokenizer, sizes: ModelConfig) -> TaskCollator:
        """The collator whose only batch is the query. tokenizer: the tokenizer; sizes: model configuration."""
        keys = [str(number) for number in range(len(self.samples))]
        own = [(key,) for key in keys] if self.task.head.ranks_images else [tuple(keys)]
        ids = tuple(str(number) for number in range(len(self.boxes)))
        examples = [
            Example(number, self.text, images, candidates=tuple(map(as_box, self.boxes)), candidate_ids=ids)
            for number, images in enumerate(own)
        ]
        max_tokens = min(self.task.max_tokens, sizes.max_position_embeddings)
        return TaskCollator(
            task=self.task,
            examples=examples,
            regions=dict(zip(keys, self.samples, strict=True)),
            tokenizer=tokenizer,
            limits=Limits(max_tokens, self.task.max_regions, sizes.v_feature_size),
            boxes={"0": self.candidates} if self.candidates is not None else None,
        )


def check_query(task: Task, text: str, images: int, boxes: bool) -> None:
    """Raises UserError for a query that the task does not support.

    Args:
        task: the task.
        text: the text.
        images: number of images.
        boxes: whether candidate boxes are given.
    """
    head = task.head
    if head.ranks_images and images < 1:
        raise UserError(f"{task.name}: ranks images; give some")
    if not head.ranks_images and images != head.images_per_example:
        raise UserError(f"{task.name}: takes {counted(head.images_per_example, 'image')}; {images} were given")
    if head.has_candidates != boxes:
        problem = "needs candidate boxes" if head.has_candidates else "takes no candidate boxes"
        raise UserError(f"{task.name}: {problem} (--boxes)")
    check_text(text)


def check_text(text: str, name: str = "the text", where: str = " (--text)") -> None:
    """Raises UserError for an empty, too long or invalid text. name, where: what the message names."""
    if not (text or "").strip():
        raise UserError(f"{name} is empty{where}")
    if len(text) > LONGEST_TEXT:
        raise UserError(f"{name} has {len(text)} characters; at most {LONGEST_TEXT} are allowed{where}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} contains a lone surrogate, which is not valid Unicode{where}") from None


def read_image(image: ImageLike) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a path, the bytes of a file, a PIL image, or an array (see _rgb)."""
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if isinstance(image, np.ndarray):
        return _rgb(image)
    name = "the image" if isinstance(image, bytes) else image
    if not isinstance(image, bytes):
        refuse_special_file(image)
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


def sample_of(name: str, image: np.ndarray, found: DetectedRegions) -> Sample:
    """A detector's regions in the format of region shards."""
    height, width = image.shape[:2]
    return Sample(
        key=name,
        features=found.features.astype(np.float16),
        boxes=found.boxes / np.array([width, height] * 2, np.float32),
        class_ids=found.class_ids,
        class_probs=found.class_probs,
        info={"id": name, "width": width, "height": height},
    )


def candidates_of(name: str, image: np.ndarray, found: DetectedRegions) -> Sample:
    """Regions of candidate boxes in the format of shards of given boxes; ids are the numbers of the boxes."""
    sample = sample_of(name, image, found)
    sample.info["box_ids"] = [str(number) for number in range(len(found.boxes))]
    return sample


def parse_boxes(text: str | None) -> list[Box]:
    """Parses boxes such as "1,2,30,40; 5,6,70,80"."""
    boxes = []
    if text and len(text) > LONGEST_TEXT:
        raise UserError(f"--boxes has {len(text)} characters; at most {LONGEST_TEXT} are allowed")
    for part in (text or "").split(";") if text else ():
        try:
            x1, y1, x2, y2 = numbers = list(map(float, part.split(",")))
            if not all(is_number(number, -LARGEST_SIDE, LARGEST_SIDE) for number in numbers):
                raise ValueError
        except ValueError:
            raise UserError(f"--boxes {part.strip()[:60]}: should be four numbers of pixels, x1,y1,x2,y2") from None
        if x2 <= x1 or y2 <= y1:
            raise UserError(f"--boxes {part.strip()}: has no area; x1,y1 should be the top left corner")
        boxes.append((x1, y1, x2, y2))
    return boxes
