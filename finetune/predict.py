"""python -m finetune.predict IMAGE --run RUN --task vqa --text "...": what a model says of an image file.

from finetune.predict import Predictor
print(Predictor("runs/mt")("vqa", "What color is the star?", "scene.png"))
"""

import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import torch

from finetune.batch import TaskBatch
from finetune.choices import Prediction, prediction, ranked
from finetune.evaluate import check_trained
from finetune.heads import TaskModel
from finetune.processed import answer_file
from finetune.query import Query, candidates_of, check_query, parse_boxes, read_image, sample_of
from finetune.regions import Regions, region_folder
from finetune.run_data import choose_data, own_data, warn_of_other_data
from finetune.settings import WeightsFlags
from finetune.start import Start, Vocabularies, trained_start, vocabulary_of_head
from finetune.task import Box, Task
from finetune.tasks import all_tasks, find_task
from finetune.work import TaskPass
from pretrain.distributed import choose_device
from pretrain.run_folder import CONFIG, DETECTOR, read_config
from pretrain.step import Precision
from shards.detectors import detector_of
from shards.errors import UserError
from shards.files import read_json
from shards.flags import REQUIRED, command, flag
from shards.inspect import image_of
from shards.ranks import ALONE

_FLAG = re.compile(r"(?<![\w-])--(\w+)")


class _Width(msgspec.Struct):
    """The field of a dataset.json that is counted on; that of a kept detector has no shards."""

    feature_size: int


@dataclass(kw_only=True)
class ModelFlags(WeightsFlags):
    """Flags of commands that show a model something. None: what the run itself says."""

    regions: str | None = flag(
        None, "region shards whose detector looks at files", unset="the run's, or that of --data"
    )

    def predictor(self) -> "LazyPredictor":
        return LazyPredictor(regions=self.regions, **self.of_weights)


@dataclass
class PredictConfig(ModelFlags):
    """Flags of finetune.predict."""

    image: str = flag(REQUIRED, "an image file, or several with commas between them", first=True)
    task: str = flag(REQUIRED, "the task, vqa for one; a wrong name lists them")
    text: str = flag(REQUIRED, "the question, expression, caption or statement")
    boxes: str | None = flag(
        None, "of the candidates: x1,y1,x2,y2 in pixels, with semicolons between them", unset="none"
    )
    top: int = flag(5, "how many of the likeliest are shown", low=1)


class LazyPredictor:
    """A run's model with the detector of the regions that it was trained on, each loaded when it is first needed.

    What the commands use: errors name their flags. For the arguments see Predictor.
    """

    def __init__(
        self,
        run,
        data=None,
        regions=None,
        config: str | None = None,
        tokenizer: str | None = None,
        vqa_answers=None,
        gqa_answers=None,
        precision: str = "float32",
        device: str = "auto",
    ):
        self.run, self._given = str(run), (config, tokenizer)
        self._data, self._regions = data and str(data), regions
        warn_of_other_data(run, self._data)
        facts = read_config(run) if (Path(run) / CONFIG).exists() else {}
        own = facts["flags"].get("data") if facts else None
        # The region shards that a pretraining run was trained on: without --data, its images are theirs.
        self.pairs = Path(own) if own and data is None and "tasks" not in facts else None
        self._trained = facts.get("tasks", list(all_tasks()))
        self.answers = {"vqa": vqa_answers, "gqa": gqa_answers}
        self.device = choose_device(device, ALONE)
        self.precision = Precision(precision, self.device)

    @cached_property
    def data(self) -> Path:
        """The data folder, which images that are given by their ids and examples come from."""
        return Path(choose_data(self.run, self._data))

    @cached_property
    def regions(self) -> Path:
        """The folder of region shards, or of a run's own description of its detector (shards.detectors)."""
        kept = Path(self.run) / DETECTOR
        if self._regions or (self._data is None and (kept / "dataset.json").exists()):
            return Path(self._regions or kept)
        if self.pairs:
            return self.pairs
        images = dict.fromkeys(task.images for name, task in all_tasks().items() if name in self._trained)
        folders = [region_folder(self.data, name) for name in images]
        return next((folder for folder in folders if (folder / "dataset.json").exists()), folders[0])

    @cached_property
    def tasks(self) -> list[str]:
        """Those that it was trained on, see Start.tasks."""
        return [task.name for task in self.start.tasks]

    @cached_property
    def detector(self):
        return detector_of(self.regions, str(self.device.type))

    @cached_property
    def start(self) -> Start:
        path = self.regions / "dataset.json"
        if not path.exists():
            raise UserError(f"{self.regions}: holds no finished region shards; name some with --regions")
        return trained_start(self.run, *self._given, read_json(path, _Width)["feature_size"])

    @cached_property
    def vocabularies(self) -> Vocabularies:
        """Of the answer heads whose answers are known."""
        known = dict(self.start.vocabularies)
        for head, file in self.answers.items():
            if head in known or head not in self.start.weights.heads:
                continue
            data = self._data or own_data(self.run)
            folders = [task.folder(data) for task in all_tasks().values() if data and task.head == head]
            file = file or next(filter(None, map(answer_file, folders)), None)
            if file is not None:
                known[head] = vocabulary_of_head(file, self.start, head)
        return known

    @cached_property
    def model(self) -> TaskModel:
        model = TaskModel(self.start.sizes, {head: len(answers) for head, answers in self.vocabularies.items()})
        self.start.load(model)
        return model.to(self.device, self.precision.weights).eval()

    def __call__(self, task: str, text: str, *images, boxes: Sequence[Box] = (), top: int = 5) -> Prediction:
        """See Predictor."""
        if find_task(task).head == "retrieval" and len(images) < 2:
            raise UserError(f"{task}: ranks images; give two or more")
        return self.answer(self.query(task, text, *images, boxes=boxes), top)

    def query(self, task: str, text: str, *images, boxes: Sequence[Box] = (), proposals: int = 0) -> Query:
        """The query of image files, with the regions that the detector finds.

        proposals: of a task that chooses among candidates, so many of these regions are they where no boxes are given.
        """
        proposes = not boxes and proposals > 0 and find_task(task).head == "candidates"
        found = self._asked(task, text, len(images), proposes or bool(boxes))
        names = [str(image) if isinstance(image, str | Path) else f"image {n}" for n, image in enumerate(images)]
        pixels, detector = [read_image(image) for image in images], self.detector
        regions = [detector.detect([image])[0] for image in pixels]
        samples = list(map(sample_of, names, pixels, regions))
        if proposes:
            boxes = regions[0].boxes[:proposals].tolist()
        candidates = None
        if boxes:
            described = detector.describe(pixels[:1], [np.array(boxes, np.float32)])[0]
            candidates = candidates_of(names[0], pixels[0], described)
        return Query(found, text, names, pixels, samples, boxes, candidates)

    def query_by_id(self, task: str, text: str, *ids: str, boxes: Sequence[Box] = ()) -> Query:
        """The query of images of the data that the run was trained on, with the regions that shards have of them.

        Of a pretraining run without a data folder they are the images of its own image-caption pairs.
        Candidates are known by where they lie. An image whose pixels are not at hand is blank.
        """
        found = self._asked(task, text, len(ids), bool(boxes))
        regions = Regions(self.pairs or region_folder(self.data, found.images))
        for name in ids:
            if name not in regions:
                first = next(iter(regions.numbers))
                raise UserError(
                    f"{name}: is neither a file nor the id of an image in {regions.dataset.folder} ({first} is one)"
                )
        samples = [regions[name] for name in ids]
        pixels = [np.asarray(image_of(sample, regions.dataset.folder)[0].convert("RGB")) for sample in samples]
        candidates = Regions(region_folder(self.data, f"{found.name}_boxes"))[ids[0]] if boxes else None
        if candidates is not None:
            candidates.info = {side: candidates.info[side] for side in ("width", "height")}
        return Query(found, text, list(ids), pixels, samples, boxes, candidates)

    def _asked(self, task: str, text: str, images: int, boxes: bool) -> Task:
        found = find_task(task)
        if not self.start.zero_shot:  # attention of pretraining weights needs no head
            self._check_answers(found)
        check_query(found, text, images, boxes)
        return found

    def _check_answers(self, task: Task) -> None:
        """Refuses a task whose head was not trained, or whose answers are not known."""
        check_trained(self.start, task)
        if hasattr(task, "vocabulary") and task.head not in self.vocabularies:
            mend = f"give a file of them in the order in which it was trained (--{task.head}_answers)"
            raise UserError(f"--run {self.run}: does not say what its answers of {task.name} are; {mend}")

    def batch(self, query: Query) -> tuple[TaskPass, TaskBatch]:
        """The query as the model takes it, and the model."""
        work = TaskPass(self.model, query.task, self.precision, self.start.token(query.task))
        collator = query.collator(self.start.pieces, self.start.sizes)
        return work, collator(0, np.arange(len(collator.examples))).to(self.device)

    @torch.no_grad()
    def answer(self, query: Query, top: int = 5) -> Prediction:
        """The likeliest of what there is to choose from."""
        self._check_answers(query.task)
        work, batch = self.batch(query)
        scores = work.scores(batch).float().cpu()
        if query.task.head == "retrieval":
            return ranked(query.task, query.names, scores.softmax(0), top)
        answers, sample = self.vocabularies.get(query.task.head), query.samples[0]
        return prediction(query.task, scores[0], top, answers, sample.boxes, query.size, query.boxes)


class Predictor(LazyPredictor):
    """A run's model with the detector of the regions that it was trained on, ready for predictions.

    Loading takes seconds, a prediction less.

    Args:
        run: a run directory of finetune.mt, finetune.st or pretrain.run, or a file of published weights.
        data: the data folder, by default the run's own.
        regions: region shards whose detector describes the images, by default the run's own detector.
        config, tokenizer: of published weights: the JSON file of their sizes, and a BERT's directory, vocab.txt or hub
            name.
        vqa_answers, gqa_answers: of published weights: files of the answers in the order of the head.
        precision: float32, bf16, fp16 or float64.
        device: cpu, cuda, or auto.

    Raises:
        UserError: something does not exist, cannot be read or does not fit; the message names the argument.
    """

    def __init__(
        self,
        run,
        data=None,
        regions=None,
        config: str | None = None,
        tokenizer: str | None = None,
        vqa_answers=None,
        gqa_answers=None,
        precision: str = "float32",
        device: str = "auto",
    ):
        with _naming_arguments():
            super().__init__(run, data, regions, config, tokenizer, vqa_answers, gqa_answers, precision, device)
            _ = self.detector, self.model

    def __call__(self, task: str, text: str, *images, boxes: Sequence[Box] = (), top: int = 5) -> Prediction:
        """The likeliest answers, boxes, candidates, labels or images.

        Args:
            task: its name, such as vqa; `tasks` lists those that the run was trained on.
            text: the question, expression, caption or statement.
            images: as many as the task takes: paths, bytes of files, PIL images, or uint8 arrays of RGB (H, W, 3),
                with an alpha channel (H, W, 4), which is ignored, or of grey values (H, W).
            boxes: of the candidates (Visual7W, GuessWhat): x1, y1, x2, y2 in pixels.
            top: how many choices are returned, most likely first.

        Raises:
            UserError: see the class.
        """
        with _naming_arguments():
            return super().__call__(task, text, *images, boxes=boxes, top=top)


@contextmanager
def _naming_arguments():
    """Errors that name flags (--boxes) name the arguments (boxes) instead."""
    try:
        yield
    except UserError as error:
        raise UserError(_FLAG.sub(r"\1", str(error))) from None


def run(config: PredictConfig) -> None:
    predictor = config.predictor()
    images = config.image.split(",")
    print(predictor(config.task, config.text, *images, boxes=parse_boxes(config.boxes), top=config.top))


if __name__ == "__main__":
    command(PredictConfig, run, "finetune.predict", "What a model says of an image, from its pixels on.")
