"""Questions about images that people bring, answered with all that a page shows of an answer."""

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

from finetune.attention import explained_page
from finetune.choices import Prediction
from finetune.predict import LazyPredictor
from finetune.query import IMAGES, Query, check_text, parse_boxes
from finetune.regions import Regions, region_folder
from finetune.task import Box, Example, Task
from finetune.tasks import find_task
from finetune.uploads import Uploads
from shards.errors import UserError
from shards.inspect import source_of

CANDIDATES = 8  # regions among which to choose where no boxes are given
TOP = 5
SHOWN = 480  # pixels of an image's longer side on the page, at the least
LINE, MARK = 4, "#e69f00"  # of the drawn box
EXAMPLES = 200  # of a task's validation split, the first, from which one is drawn


@dataclass(frozen=True)
class Answer:
    """What a page shows. shown: the image with the box that was chosen; ranking: images with captions, best first;
    attention: a page of its own."""

    prediction: Prediction
    shown: np.ndarray
    ranking: list[tuple[np.ndarray, str]]
    attention: str
    seconds: float


class Desk:
    """Answers questions about images with a run's model.

    images: files that retrieval ranks where fewer than two are brought; none: some of the run's own validation.
    """

    def __init__(self, predictor: LazyPredictor, uploads: Uploads, images: Sequence[str] = (), ranked: int = 24):
        self.predictor, self.uploads = predictor, uploads
        self.images, self.ranked = list(images), ranked
        self.tasks: dict[str, Task] = {find_task(name).title: find_task(name) for name in predictor.tasks}
        self._examples: dict[str, list[tuple[Example, list[str]]]] = {}
        self._copies = tempfile.TemporaryDirectory(prefix="examples-")

    def ask(self, title: str, text: str, files: Sequence[str], boxes: str = "") -> Answer:
        """title: of the task; files: paths of images; boxes: of candidates, as text in pixels of the first file, empty
        for regions of the detector's."""
        began, task = time.perf_counter(), self.tasks[title]
        check_text(text)
        files, wanted = list(files or ()), IMAGES.get(task.name, 1)
        if task.head == "retrieval" and len(files) < 2:
            files += self.pool(task)
        if task.head == "retrieval" and len(files) < 2:
            raise UserError(f"{task.title} ranks images, and fewer than two are here")
        if task.head != "retrieval" and len(files) != wanted:
            raise UserError(f"{task.title} is asked of {wanted} image{'s' * (wanted > 1)}, and {len(files)} are here")
        images, scales = zip(*map(self.uploads.read, files), strict=True)
        given = parse_boxes(boxes)
        inside = (np.array(given) * scales[0]).tolist() if task.head == "candidates" else []
        query = self.predictor.query(task.name, text, *images, boxes=inside, proposals=CANDIDATES)
        query.names = [Path(file).name for file in files]
        said, ranking = self.predictor.answer(query, TOP), []
        explained, of = query, said
        if task.head == "retrieval":
            ranking = [(images[n], f"{share:.0%}") for n, share in zip(said.numbers, said.confidence, strict=True)]
            best = said.numbers[0]
            explained, of = Query(task, text, [query.names[best]], [images[best]], [query.samples[best]]), None
        shown = drawn(explained.pixels[0], said.boxes[0] if said.boxes else None)
        page = explained_page(self.predictor, explained, of, lines=False)
        return Answer(said, shown, ranking, page, time.perf_counter() - began)

    def pool(self, task: Task) -> list[str]:
        """The files that retrieval ranks by itself."""
        if self.images:
            return self.images[: self.ranked]
        try:
            files = (file for _, files in self.examples(task) for file in files)
            return list(dict.fromkeys(files))[: self.ranked]
        except UserError:  # neither annotations nor images need be at hand
            return []

    def example(self, title: str) -> tuple[str, list[str], str]:
        """(text, image files, boxes as text) of an example of the run's data; of retrieval of an image that is ranked,
        without files."""
        task = self.tasks[title]
        ranks = task.head == "retrieval"
        pool = set(self.pool(task)) if ranks and not self.images else None
        chosen = [pair for pair in self.examples(task) if pool is None or pair[1][0] in pool]
        example, files = random.choice(chosen)
        boxes = "; ".join(",".join(f"{value:.0f}" for value in box) for box in example.candidates)
        return example.text, [] if ranks else list(map(self._copy, files)), boxes

    def _copy(self, file: str) -> str:
        """A copy of an image below the folder of temporary files: a page may show no others than these and those below
        the working directory, and the data need not be there."""
        folder = Path(self._copies.name) / hashlib.sha256(os.path.abspath(file).encode()).hexdigest()[:16]
        folder.mkdir(exist_ok=True)
        return shutil.copy(file, folder)

    def examples(self, task: Task) -> list[tuple[Example, list[str]]]:
        """Examples of the task's validation split with their image files, of those whose images are files here."""
        if task.name not in self._examples:
            self._examples[task.name] = self._read_examples(task)
        return self._examples[task.name]

    def _read_examples(self, task: Task) -> list[tuple[Example, list[str]]]:
        data = self.predictor.data
        regions, found = Regions(region_folder(data, task.images)), []
        for example in task.read(task.folder(data), task.splits[1])[:EXAMPLES]:
            there = [image for image in example.images if image in regions]
            with contextlib.suppress(UserError):  # of an image that is not at hand
                files = [source_of(regions[image], regions.dataset.folder) for image in there]
                if len(files) == len(example.images) and all(Path(file).is_file() for file in files):
                    found.append((example, files))
        if not found:
            raise UserError(f"{data}: the images of {task.title} are not at hand")
        return found


def drawn(image: np.ndarray, box: Box | None) -> np.ndarray:
    """The image, SHOWN pixels at the least, with a box on it."""
    picture = Image.fromarray(image)
    scale = max(1, SHOWN / max(picture.size))
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    if box is not None:
        corners = [value * scale for value in box]
        ImageDraw.Draw(picture).rectangle(corners, outline=MARK, width=max(LINE, max(picture.size) // 150))
    return np.asarray(picture)
