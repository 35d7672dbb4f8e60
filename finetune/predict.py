"""python -m finetune.predict IMAGE --run RUN --task vqa --text "...": what a model says of an image file.

from finetune.predict import Predictor
print(Predictor("runs/mt")("vqa", "What color is the star?", "scene.png"))
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from finetune.batch import WHOLE, TaskCollator
from finetune.evaluate import check_trained
from finetune.heads import POINTING, TaskModel
from finetune.regions import region_folder
from finetune.start import choose_start
from finetune.task import Box, Example, Task
from finetune.tasks import find_task
from finetune.work import TaskPass
from pretrain.collate import Limits
from pretrain.distributed import choose_device
from pretrain.run_folder import CONFIG
from pretrain.settings import PRECISIONS
from pretrain.step import Precision
from shards.detector import Found
from shards.detectors import detector_of
from shards.errors import UserError
from shards.files import read_json
from shards.flags import REQUIRED, command, flag
from shards.images import BadImage, decode_image
from shards.ranks import ALONE
from shards.sample import Sample

IMAGES = {"nlvr2": 2}  # that a task's example has, where it is not one


@dataclass
class PredictConfig:
    """Flags of finetune.predict."""

    image: str = flag(REQUIRED, "an image file, or several with commas between them", first=True)
    run: str = flag(REQUIRED, "the directory of a run of finetune.st or finetune.mt")
    task: str = flag(REQUIRED, "the task, vqa for one; a wrong name lists them")
    text: str = flag(REQUIRED, "the question, expression, caption or statement")
    boxes: str | None = flag(None, "of the candidates: x1,y1,x2,y2 in pixels, with semicolons between them")
    regions: str | None = flag(None, "region shards whose detector to use (else those that the run was trained on)")
    top: int = flag(5, "how many of the likeliest are shown", low=1)
    precision: str = flag("float32", "of matrix work; float64: of all", choices=PRECISIONS)
    device: str = flag("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))


@dataclass
class Prediction:
    """What a model says, the likeliest first.

    choices: answers, labels, images by their names, or "region N" and "candidate N"; confidence: of each between 0 and
    1, by itself (a sigmoid, as it was trained), of images among those that were given (a softmax); boxes: where the
    regions are, in pixels.
    """

    task: str
    choices: list[str]
    confidence: list[float]
    boxes: list[Box] = field(default_factory=list)

    def __str__(self) -> str:
        places = [f"  at {', '.join(f'{value:.0f}' for value in box)}" for box in self.boxes]
        places = places or [""] * len(self.choices)
        rows = zip(self.choices, self.confidence, places, strict=True)
        return "\n".join(f"{share:6.1%}  {choice}{place}" for choice, share, place in rows)


class Predictor:
    """A run's model with the detector of the regions that it was trained on. Loading takes seconds, a prediction less.

    regions: a folder of region shards whose detector to use, else the run's own.
    """

    def __init__(self, run, regions=None, device: str = "auto", precision: str = "float32"):
        self.run = str(run)
        facts = read_json(Path(run) / CONFIG) if (Path(run) / CONFIG).exists() else None
        if facts is None or "tasks" not in facts:
            raise UserError(f"--run {run}: is no run of finetune.st or finetune.mt")
        self.tasks: list[str] = facts["tasks"]
        first = find_task(self.tasks[0])
        self.regions = Path(regions or region_folder(facts["flags"]["data"], first.images))
        self.device = choose_device(device, ALONE)
        self.precision = Precision(precision, self.device)

    @cached_property
    def detector(self):
        return detector_of(self.regions, str(self.device.type))

    @cached_property
    def start(self):
        width = read_json(self.regions / "dataset.json")["feature_size"]
        return choose_start(self.run, None, None, (), width, flag="--run")

    @cached_property
    def model(self) -> TaskModel:
        vocabularies = self.start.vocabularies
        model = TaskModel(self.start.sizes, {head: len(answers) for head, answers in vocabularies.items()})
        self.start.load(model)
        return model.to(self.device, self.precision.weights).eval()

    def __call__(self, task: str, text: str, *images, boxes: Sequence[Box] = (), top: int = 5) -> Prediction:
        """images: paths, bytes of files, or uint8 RGB arrays (H, W, 3); boxes: of the candidates, in pixels."""
        found, detector = find_task(task), self.detector
        check_trained(self.start, found)
        _check(found, text, images, boxes)
        names = [str(image) if isinstance(image, str | Path) else f"image {n}" for n, image in enumerate(images)]
        pixels = [read_image(image) for image in images]
        samples = {str(n): _sample(str(n), image, detector.detect([image])[0]) for n, image in enumerate(pixels)}
        given = None
        if boxes:
            inside = np.array(boxes, np.float32)
            given = {"0": _sample("0", pixels[0], detector.describe(pixels[:1], [inside])[0])}
            given["0"].info["box_ids"] = [str(n) for n in range(len(boxes))]
        own = [tuple(samples)] if found.head != "retrieval" else [(name,) for name in samples]
        candidates = {"candidates": tuple(map(tuple, boxes)), "candidate_ids": tuple(map(str, range(len(boxes))))}
        examples = [Example(n, text, of_example, **candidates) for n, of_example in enumerate(own)]
        scores = self._scores(found, examples, samples, given)
        if found.head == "retrieval":
            return _ranked(found, names, scores.softmax(0), top)
        share = scores[0].sigmoid()
        if found.head == "regions":
            return self._pointed(found, share, samples["0"], top)
        return _ranked(found, self._choices(found, len(share)), share, top, boxes)

    @torch.no_grad()
    def _scores(self, task: Task, examples: list[Example], samples: dict, given: dict | None) -> torch.Tensor:
        sizes = self.start.sizes
        collator = TaskCollator(
            task=task,
            examples=examples,
            regions=samples,
            pieces=self.start.pieces,
            limits=Limits(min(task.words, sizes.max_position_embeddings), task.regions, sizes.v_feature_size),
            boxes=given,
        )
        work = TaskPass(self.model, task, self.precision, self.start.token(task))
        return work.scores(collator(0, np.arange(len(examples))).to(self.device)).float().cpu()

    def _choices(self, task: Task, count: int) -> list[str]:
        if task.head in self.start.vocabularies:
            return self.start.vocabularies[task.head].answers
        if task.head in POINTING:
            return [f"candidate {n}" for n in range(count)]
        return list(task.labels)

    def _pointed(self, task: Task, share: torch.Tensor, sample: Sample, top: int) -> Prediction:
        places = np.concatenate([WHOLE, sample.boxes]) * np.array([sample.info["width"], sample.info["height"]] * 2)
        names = ["the whole image", *(f"region {n}" for n in range(len(sample.boxes)))]
        return _ranked(task, names, share[: len(names)], top, places.tolist())


def _check(task: Task, text: str, images: Sequence, boxes: Sequence) -> None:
    wanted = IMAGES.get(task.name, 1)
    if task.head == "retrieval" and len(images) < 2:
        raise UserError(f"{task.name}: ranks images; give two or more")
    if task.head != "retrieval" and len(images) != wanted:
        raise UserError(f"{task.name}: is asked of {wanted} image{'s' * (wanted > 1)}, and {len(images)} are given")
    if (task.head == "candidates") != bool(boxes):
        mend = "give --boxes" if task.head == "candidates" else "--boxes is of visual7w and guesswhat"
        raise UserError(f"{task.name}: {mend}")
    if not text.strip():
        raise UserError("--text: is empty")


def _ranked(task: Task, names: Sequence[str], share: torch.Tensor, top: int, places: Sequence[Box] = ()) -> Prediction:
    best = share.argsort(descending=True, stable=True)[:top].tolist()
    return Prediction(
        task.name,
        [names[n] for n in best],
        [float(share[n]) for n in best],
        [tuple(map(float, places[n])) for n in best] if len(places) else [],
    )


def read_image(image) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a path, the bytes of a file, or such an array itself."""
    if isinstance(image, np.ndarray):
        return image
    name = "the image" if isinstance(image, bytes) else image
    try:
        return decode_image(image if isinstance(image, bytes) else Path(image).read_bytes())
    except BadImage as error:
        raise UserError(f"{name}: {error}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None


def _sample(name: str, image: np.ndarray, found: Found) -> Sample:
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


def parse_boxes(text: str | None) -> list[Box]:
    """Boxes of a text like "1,2,30,40; 5,6,70,80"."""
    boxes = []
    for part in (text or "").split(";") if text else ():
        try:
            x1, y1, x2, y2 = map(float, part.split(","))
        except ValueError:
            raise UserError(f"--boxes {part.strip()}: should be four numbers, x1,y1,x2,y2") from None
        if x2 <= x1 or y2 <= y1:
            raise UserError(f"--boxes {part.strip()}: has no inside; x1,y1 is the corner at the top left")
        boxes.append((x1, y1, x2, y2))
    return boxes


def run(config: PredictConfig) -> None:
    predictor = Predictor(config.run, config.regions, config.device, config.precision)
    images = config.image.split(",")
    print(predictor(config.task, config.text, *images, boxes=parse_boxes(config.boxes), top=config.top))


if __name__ == "__main__":
    command(PredictConfig, run, "finetune.predict", "What a model says of an image, from its pixels on.")
