"""The backend of the demo: predictions for uploaded images, with boxes, rankings and attention pages."""

import contextlib
import hashlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from finetune.annotations.example import Box, Example
from finetune.data.regions import Regions, region_folder
from finetune.inference.decoding import Prediction
from finetune.inference.image_upload import Uploads
from finetune.inference.predictor import LazyPredictor
from finetune.inference.request import Query, check_text, parse_boxes
from finetune.pages.attention_page import explained_page
from finetune.prepared.prepare_data import open_examples
from finetune.task_types.base import Task
from finetune.tasks import find_task
from shards.common.errors import UserError
from shards.images.source_image import source_of

CANDIDATES = 8  # detected regions that serve as candidates if no boxes are given
TOP = 5  # predictions that are shown
SHOWN = 480  # minimum length, in pixels, of an image's longer side on the page
LINE, MARK = 4, "#e69f00"  # minimum line width in pixels, and colour, of the drawn box
EXAMPLES = 200  # examples, the first of a task's validation split, from which one is drawn at random


@dataclass(frozen=True)
class Answer:
    """The outputs for the page.

    shown: the image with the predicted box; ranking: images with their confidence as text, best first; attention: HTML
    page of attention maps; seconds: time of the prediction.
    """

    prediction: Prediction
    shown: np.ndarray
    ranking: list[tuple[np.ndarray, str]]
    attention: str
    seconds: float


class DemoBackend:
    """Predicts for uploaded images with a run's model.

    Args:
        predictor: the model.
        uploads: reads uploaded images within limits.
        images: files that retrieval ranks if fewer than two are uploaded; empty: validation images of the run's data.
        ranked: maximum number of these images.
    """

    def __init__(self, predictor: LazyPredictor, uploads: Uploads, images: Sequence[str] = (), ranked: int = 24):
        self.predictor, self.uploads = predictor, uploads
        self.images, self.ranked = list(images), ranked
        self.tasks: dict[str, Task] = {find_task(name).title: find_task(name) for name in predictor.tasks}
        self._examples: dict[str, list[tuple[Example, list[str]]]] = {}
        self._copies = tempfile.TemporaryDirectory(prefix="examples-")

    def ask(self, title: str, text: str, files: Sequence[str], boxes: str = "") -> Answer:
        """Predicts for a text and images.

        Args:
            title: of the task.
            text: question, expression, caption or statement.
            files: paths of images.
            boxes: candidate boxes as text, in pixels of the first file; empty for detected regions.
        """
        began, task = time.perf_counter(), self.tasks[title]
        check_text(text)
        files, wanted = list(files or ()), task.head.images_per_example
        if task.head.ranks_images and len(files) < 2:
            files += self.pool(task)
        if task.head.ranks_images and len(files) < 2:
            raise UserError(f"{task.title} ranks images; add two or more")
        if not task.head.ranks_images and len(files) != wanted:
            raise UserError(f"{task.title} takes {wanted} image{'s' * (wanted > 1)}; {len(files)} were given")
        images, scales = zip(*map(self.uploads.read, files), strict=True)
        given = parse_boxes(boxes)
        inside = (np.array(given) * scales[0]).tolist() if task.head.has_candidates else []
        query = self.predictor.query(task.name, text, *images, boxes=inside, proposals=CANDIDATES)
        query.names = [Path(file).name for file in files]
        found, ranking = self.predictor.answer(query, TOP), []
        explained, of = query, found
        if task.head.ranks_images:
            ranking = [(images[n], f"{share:.0%}") for n, share in zip(found.numbers, found.confidence, strict=True)]
            best = found.numbers[0]
            explained, of = Query(task, text, [query.names[best]], [images[best]], [query.samples[best]]), None
        shown = drawn(explained.pixels[0], found.boxes[0] if found.boxes else None)
        page = explained_page(self.predictor, explained, of, lines=False)
        return Answer(found, shown, ranking, page, time.perf_counter() - began)

    def pool(self, task: Task) -> list[str]:
        """The files that retrieval ranks if fewer than two are uploaded."""
        if self.images:
            return self.images[: self.ranked]
        try:
            files = (file for _, files in self.examples(task) for file in files)
            return list(dict.fromkeys(files))[: self.ranked]
        except UserError:  # annotations and image files are optional
            return []

    def example(self, title: str) -> tuple[str, list[str], str]:
        """(text, image files, boxes as text) of a random example of the run's data.

        For retrieval, the example's image is among the ranked ones, and no files are returned.
        """
        task = self.tasks[title]
        ranks = task.head.ranks_images
        pool = set(self.pool(task)) if ranks and not self.images else None
        chosen = [pair for pair in self.examples(task) if pool is None or pair[1][0] in pool]
        example, files = random.choice(chosen)
        boxes = "; ".join(",".join(f"{value:.0f}" for value in box) for box in example.candidates)
        return example.text, [] if ranks else list(map(self._copy, files)), boxes

    def _copy(self, file: str) -> str:
        """Copies an image to a temporary folder: gradio serves files only from there and from the working directory,
        and the data may be elsewhere."""
        folder = Path(self._copies.name) / hashlib.sha256(os.path.abspath(file).encode()).hexdigest()[:16]
        folder.mkdir(exist_ok=True)
        return shutil.copy(file, folder)

    def examples(self, task: Task) -> list[tuple[Example, list[str]]]:
        """Examples of the task's validation split whose image files exist, with these files."""
        if task.name not in self._examples:
            self._examples[task.name] = self._read_examples(task)
        return self._examples[task.name]

    def _read_examples(self, task: Task) -> list[tuple[Example, list[str]]]:
        data = self.predictor.data
        regions, found = Regions(region_folder(data, task.images)), []
        for example in open_examples(data, task, task.splits[1])[:EXAMPLES]:
            known = [image for image in example.images if image in regions]
            with contextlib.suppress(UserError):  # the image file does not exist
                files = [source_of(regions[image], regions.dataset.folder) for image in known]
                if len(files) == len(example.images) and all(Path(file).is_file() for file in files):
                    found.append((example, files))
        if not found:
            raise UserError(f"{data}: image files of {task.title} not found")
        return found


def drawn(image: np.ndarray, box: Box | None) -> np.ndarray:
    """The image, enlarged to at least SHOWN pixels, with the box drawn on it. box: in pixels of `image`."""
    picture = Image.fromarray(image)
    scale = max(1, SHOWN / max(picture.size))
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    if box is not None:
        corners = [value * scale for value in box]
        ImageDraw.Draw(picture).rectangle(corners, outline=MARK, width=max(LINE, max(picture.size) // 150))
    return np.asarray(picture)
