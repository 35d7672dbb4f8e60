"""Predictions of a run's model for image files, with the detector of the regions that it was trained on."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import torch

from finetune.annotations.example import Box
from finetune.annotations.reference_annotations import answer_file
from finetune.config import ModelFlags, answer_files
from finetune.data.regions import Regions, region_folder
from finetune.data.task_collate import TaskBatch
from finetune.inference.argument_errors import current_arguments, naming_arguments
from finetune.inference.decoding import Prediction, prediction
from finetune.inference.model_loader import check_trained
from finetune.inference.pretrained_methods import PretrainedMethods
from finetune.inference.request import ImageLike, Query, candidates_of, check_query, read_image, sample_of
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import TaskPass
from finetune.run_dirs.answer_vocabularies import Vocabularies
from finetune.run_dirs.model_source import ModelSource, trained_source, vocabulary_of_head
from finetune.run_dirs.run_data_folder import check_exists, choose_data, own_data, warn_of_other_data
from finetune.task_types.base import Task
from finetune.tasks import add_task_files_of, all_tasks, find_task
from pretrain.engine.distributed import choose_device
from pretrain.engine.run_dir import CONFIG, DETECTOR, read_config
from pretrain.models.precision import Precision
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.common.files import read_json
from shards.common.model_hub import local_model
from shards.detection.base import Detector
from shards.detectors import detector_of
from shards.images.source_image import image_of


class _Width(msgspec.Struct):
    """The field of dataset.json that is read; the dataset.json of a kept detector has no shards."""

    feature_size: int


class LazyPredictor:
    """A run's model with the detector of the regions that it was trained on, both loaded on first use.

    Used by the commands: error messages name flags.
    """

    def __init__(self, flags: ModelFlags):
        run = local_model(flags.run)
        self.run, self._given = run, (flags.config, flags.tokenizer)
        self._data, self._regions = flags.data and str(flags.data), flags.region_shards
        warn_of_other_data(run, self._data)
        add_task_files_of(run)
        run_config = read_config(run) if (Path(run) / CONFIG).exists() else {}
        own = run_config["flags"].get("data") if run_config else None
        # The region shards of a pretraining run: without --data, query_by_id takes images from them.
        self.pairs = Path(own) if own and self._data is None and "tasks" not in run_config else None
        self._trained: list[str] = run_config.get("tasks", list(all_tasks()))
        self.answers = answer_files(flags)
        self.device = choose_device(flags.device, ALONE)
        self.precision = Precision(flags.precision, self.device)

    @cached_property
    def data(self) -> Path:
        """The data folder, for examples and for images given by id."""
        return Path(choose_data(self.run, self._data))

    @cached_property
    def regions(self) -> Path:
        """The folder of the region shards, or of the run's description of its detector (see shards.detectors)."""
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
        """Names of the tasks that the model can predict, see ModelSource.tasks."""
        return [task.name for task in self.source.tasks]

    def task_or_only(self, task: str | None) -> str:
        """The name of a task, by default the only one that the run was trained on.

        Raises:
            UserError: no task is given, and the run was not trained on exactly one.
        """
        if task is not None:
            return task
        check_exists(self.run)
        if len(self._trained) != 1:
            raise UserError(f"--task is missing; it should be one of {', '.join(self._trained)}")
        return self._trained[0]

    @cached_property
    def detector(self) -> Detector:
        return detector_of(self.regions, str(self.device.type))

    @cached_property
    def source(self) -> ModelSource:
        path = self.regions / "dataset.json"
        if not path.exists():
            raise UserError(f"{self.regions}: contains no finished region shards; give some by --region_shards")
        return trained_source(self.run, *self._given, read_json(path, _Width)["feature_size"])

    @cached_property
    def vocabularies(self) -> Vocabularies:
        """Answer head -> answers, for the heads whose answers are known."""
        known = dict(self.source.vocabularies)
        for head, given in self.answers.items():
            if head in known or head not in self.source.heads:
                continue
            data = self._data or own_data(self.run)
            folders = [task.folder(data) for task in all_tasks().values() if data and task.head.name == head]
            file = given or next(filter(None, map(answer_file, folders)), None)
            if file is not None:
                known[head] = vocabulary_of_head(file, self.source, head)
        return known

    @cached_property
    def model(self) -> TaskModel:
        return self.source.trained_model(self.vocabularies, self.precision)[0]

    def __call__(self, task: str, text: str, *images: ImageLike, boxes: Sequence[Box] = (), top: int = 5) -> Prediction:
        """See Predictor."""
        if find_task(task).head.ranks_images and len(images) < 2:
            raise UserError(f"{task}: ranks images; give two or more")
        return self.answer(self.query(task, text, *images, boxes=boxes), top)

    def query(self, task: str, text: str, *images: ImageLike, boxes: Sequence[Box] = (), proposals: int = 0) -> Query:
        """The query about image files, with regions of the detector.

        proposals: number of detected regions that serve as candidates of a task with candidates if no boxes are given.
        """
        proposes = not boxes and proposals > 0 and find_task(task).head.has_candidates
        found = self._checked_task(task, text, len(images), proposes or bool(boxes))
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
        """The query about images of the data folder, with regions from its shards.

        For a pretraining run without a data folder, the images are those of its image-caption pairs. Candidates are
        matched by position. An image whose file is not found is blank.
        """
        found = self._checked_task(task, text, len(ids), bool(boxes))
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
            candidates.info = {side: candidates.side(side) for side in ("width", "height")}
        return Query(found, text, list(ids), pixels, samples, boxes, candidates)

    def _checked_task(self, task: str, text: str, images: int, boxes: bool) -> Task:
        """The task of a query, which it and the model support."""
        found = find_task(task)
        if not self.source.zero_shot:  # attention of pretraining weights needs no head
            self._check_answers(found)
        check_query(found, text, images, boxes)
        return found

    def _check_answers(self, task: Task) -> None:
        """Raises UserError for a task whose head was not trained or whose answers are not known."""
        check_trained(self.source, task)
        if task.head.has_vocabulary and task.head.name not in self.vocabularies:
            hint = f"give a file of them in the order of training (--{task.head.name}_answers)"
            raise UserError(f"--run {self.run}: the answers of {task.name} are not known; {hint}")

    def batch(self, query: Query) -> tuple[TaskPass, TaskBatch]:
        """The model with the task of a query, and the query as a batch."""
        task_pass = TaskPass(self.model, query.task, self.precision, self.source.task_token(query.task))
        collator = query.collator(self.source.tokenizer, self.source.sizes)
        return task_pass, collator(0, np.arange(len(collator.examples))).to(self.device)

    @torch.no_grad()
    def answer(self, query: Query, top: int = 5) -> Prediction:
        """The predictions for a query."""
        self._check_answers(query.task)
        task_pass, batch = self.batch(query)
        logits = task_pass.logits(batch).float().cpu()
        of_query = logits if query.task.head.ranks_images else logits[0]
        return prediction(query.task, of_query, query.scene, self.vocabularies.get(query.task.head.name), top)


class Predictor(LazyPredictor, PretrainedMethods):
    """A run's model with the detector of the regions that it was trained on, ready for predictions.

    Loading takes seconds, a prediction less.

    Args:
        run: run directory of finetune.mt, finetune.st or pretrain.run, a file of published weights, or hf:OWNER/NAME.
        data: data folder, by default the run's.
        region_shards: region shards whose detector is applied to the images, by default the run's detector.
        config, tokenizer: for published weights: JSON file of the model configuration, and a BERT directory, vocab.txt
            or hub name.
        vqa_answers, gqa_answers: for published weights: files of the answers in label order.
        precision: float32, bf16, fp16 or float64.
        device: cpu, cuda, or auto.
        regions: the former name of region_shards.

    Raises:
        UserError: a file does not exist, cannot be read or does not match the model; the message names the argument.
    """

    def __init__(
        self,
        run: str | Path,
        data: str | Path | None = None,
        region_shards: str | Path | None = None,
        config: str | None = None,
        tokenizer: str | None = None,
        vqa_answers: str | Path | None = None,
        gqa_answers: str | Path | None = None,
        precision: str = "float32",
        device: str = "auto",
        regions: str | Path | None = None,
    ):
        with naming_arguments():
            given = {"region_shards": region_shards, "regions": regions}
            given = current_arguments({name: value for name, value in given.items() if value is not None})
        flags = ModelFlags(
            run=str(run),
            data=_text(data),
            region_shards=_text(given.get("region_shards")),
            config=config,
            tokenizer=tokenizer,
            vqa_answers=_text(vqa_answers),
            gqa_answers=_text(gqa_answers),
            precision=precision,
            device=device,
        )
        with naming_arguments():
            super().__init__(flags)
            _ = self.detector, self.model

    def __call__(self, task: str, text: str, *images: ImageLike, boxes: Sequence[Box] = (), top: int = 5) -> Prediction:
        """The most likely answers, boxes, candidates, labels or images.

        Args:
            task: name of the task, such as vqa; `tasks` lists those that the run was trained on.
            text: question, expression, caption or statement.
            images: as many as the task takes: paths, bytes of files, PIL images, or uint8 arrays, RGB (H, W, 3), RGBA
                (H, W, 4), whose alpha channel is ignored, or greyscale (H, W).
            boxes: candidate boxes (Visual7W, GuessWhat): x1, y1, x2, y2 in pixels.
            top: number of choices that are returned, most likely first.

        Raises:
            UserError: see the class.
        """
        with naming_arguments():
            return super().__call__(task, text, *images, boxes=boxes, top=top)


def _text(path: str | Path | None) -> str | None:
    """A path as a flag has it."""
    return None if path is None else str(path)
