"""Batches of a task's examples: collation of texts, regions and targets, and conversion to model inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.example import Example
from finetune.data.hard_negatives import RetrievalNegatives
from finetune.data.regions import SamplesById, rows_of_boxes
from finetune.heads.inputs import TaskInputs
from finetune.task_types.base import Task
from pretrain.data import random_choices
from pretrain.data.batch import Batch
from pretrain.data.collate import Limits, check_sample, stack
from pretrain.models.dropout import CANDIDATES, OTHER_BOXES
from pretrain.models.image_input import image_stream_input
from pretrain.tokenizer.tokenizer import WordPieceTokenizer
from shards.common import counter_rng
from shards.storage.sample import Sample


@dataclass
class TaskBatch:
    """A batch of text-image rows (see TaskInputs) with their targets (see Head.targets).

    Attributes:
        rows: texts with their images.
        candidates: candidate boxes of each row, or None.
        target: None if it is not needed or not known.
        examples: number of the task's examples in the batch, which may have several rows each.
        problems: see pretrain.data.batch.
        other_boxes: other given boxes of each image, or None; the model attends to them but does not score them.
    """

    rows: Batch
    candidates: Batch | None
    target: Tensor | None
    examples: int
    problems: tuple[str, ...] = ()
    other_boxes: Batch | None = None

    def _map(self, function) -> "TaskBatch":
        parts = {name: getattr(self, name) for name in ("rows", "candidates", "target", "other_boxes")}
        return replace(self, **{name: function(part) for name, part in parts.items() if part is not None})

    def __len__(self) -> int:
        return self.examples

    def pin_memory(self) -> "TaskBatch":
        return self._map(lambda part: part.pin_memory())

    def to(self, device) -> "TaskBatch":
        return self._map(lambda p: p.to(device, non_blocking=True) if isinstance(p, Tensor) else p.to(device))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        self._map(lambda part: part.record_stream(stream))

    def inputs(self, token: int | None, dtype: torch.dtype) -> TaskInputs:
        """The model inputs, on the batch's device.

        Args:
            token: number of the task token, None for a model without task tokens.
            dtype: of the features.
        """
        rows, candidates = self.rows, self.candidates
        features, locations = image_stream_input(rows.features, rows.boxes, rows.valid, dtype)
        image_mask, image_count = F.pad(rows.valid, (1, 0), value=True), rows.image_row_count
        positions = None
        if candidates is not None:
            device = image_mask.device
            features, locations, masks = [features], [locations], [image_mask]
            positions = [torch.arange(image_mask.shape[1], device=device)]
            for boxes, first in ((self.other_boxes, OTHER_BOXES), (candidates, CANDIDATES)):
                if boxes is None:
                    continue
                extra = image_stream_input(boxes.features, boxes.boxes, boxes.valid, dtype)
                features.append(extra[0][:, 1:])  # row 0 stays the mean of the detector's regions
                locations.append(extra[1][:, 1:])
                masks.append(boxes.valid)
                positions.append(first + torch.arange(boxes.valid.shape[1], device=device))
                image_count += boxes.total_regions
            features, locations, image_mask = (torch.cat(parts, 1) for parts in (features, locations, masks))
            positions = torch.cat(positions)
        length = torch.arange(rows.input_ids.shape[1], device=rows.lengths.device)
        return TaskInputs(
            input_ids=rows.input_ids,
            text_mask=length < rows.lengths[:, None],
            features=features,
            locations=locations,
            image_mask=image_mask,
            task_ids=None if token is None else torch.full_like(rows.lengths, token),
            candidates=0 if candidates is None else candidates.valid.shape[1],
            text_count=rows.total_tokens,
            image_count=image_count,
            sample_keys=rows.keys,
            image_positions=positions,
        )


@dataclass(frozen=True)
class TaskCollator:
    """Collates a task's examples into batches.

    Args:
        task: the task.
        examples: all examples; batches are chosen by their numbers.
        regions: regions of the images.
        tokenizer: the tokenizer.
        limits: maximum numbers of tokens and regions, and the feature size.
        boxes: regions of the images' given boxes, for tasks with candidates.
        annotated: annotated boxes that are added to each image's regions.
        vocabulary: answers, for answer heads.
        negatives: those of retrieval in training; without it, each caption and its image are one row.
        seed: random seed of dropout.
    """

    task: Task
    examples: Sequence[Example]
    regions: SamplesById
    tokenizer: WordPieceTokenizer
    limits: Limits
    boxes: SamplesById | None = None
    annotated: SamplesById | None = None
    vocabulary: AnswerVocabulary | None = None
    negatives: RetrievalNegatives | None = None
    seed: int = 0

    def __call__(self, epoch: int, numbers: np.ndarray) -> TaskBatch:
        """The batch of the examples with these numbers, int (n,), in an epoch."""
        chosen = [self.examples[number] for number in numbers.tolist()]
        texts_images = [pair for number in numbers.tolist() for pair in self._rows(epoch, number)]
        samples, limits = [self._sample(self.regions, image) for _, image in texts_images], self.limits
        if self.annotated is not None and samples:
            more = [self._sample(self.annotated, image) for _, image in texts_images]
            samples = [joined(sample, other, limits) for sample, other in zip(samples, more, strict=True)]
            limits = replace(limits, max_regions=max(len(sample.boxes) for sample in samples))
        ids = self.tokenizer.encode([text for text, _ in texts_images], self.limits.max_tokens)
        candidates, others = self._given_boxes(chosen) if self.boxes is not None else (None, None)
        rows = self._stack(samples, ids, limits, self._keys(epoch, numbers, len(samples)))
        target = self._target(chosen, samples, rows, candidates)
        return TaskBatch(rows, candidates, target, len(chosen), other_boxes=others)

    def _rows(self, epoch: int, number: int) -> list[tuple[str, str]]:
        example = self.examples[number]
        if self.negatives is None:
            return [(example.text, image) for image in example.images]
        caption, image, hard = self.negatives.draw(epoch, number)
        own = example.images[0]
        return [
            (example.text, own),
            (self.examples[caption].text, own),
            (example.text, image),
            (self.examples[hard].text, own),
        ]

    def _sample(self, regions: SamplesById, image: str) -> Sample:
        sample = regions[image]
        check_sample(sample, self.limits)
        return sample

    def _keys(self, epoch: int, numbers: np.ndarray, rows: int) -> np.ndarray:
        """int64 (rows,): random keys of the batch's rows; every example has the same number of rows."""
        each = rows // max(len(numbers), 1)
        counted = np.repeat(numbers, each) * each + np.tile(np.arange(each), len(numbers))
        return random_choices.sample_keys(
            counter_rng.key(self.seed, counter_rng.text_key(self.task.name)), epoch, counted
        )

    def _stack(self, samples: list[Sample], ids: list[list[int]], limits: Limits, keys=None) -> Batch:
        none = np.zeros(len(samples), np.int64)
        return stack(samples, ids, none if keys is None else keys, none, limits)

    def _given_boxes(self, chosen: list[Example]) -> tuple[Batch, Batch | None]:
        """(candidates of the examples, other given boxes of their images or None).

        As in the reference implementation, the image stream contains the boxes of all questions about an image. If
        there are more than task.max_boxes, other boxes are dropped; candidates are always kept.
        """
        candidates, others = [], []
        for example in chosen:
            sample = self.boxes[example.images[0]]
            check_sample(sample, replace(self.limits, max_regions=len(sample.boxes)))
            scored = rows_of_boxes(sample, example.candidate_ids, example.candidates)
            room = max(0, self.task.max_boxes - len(scored))
            rest = np.setdiff1d(np.arange(len(sample.boxes)), scored)[:room]
            for part, rows in ((candidates, scored), (others, rest)):
                part.append(replace(sample, features=sample.features[rows], boxes=sample.boxes[rows]))
        return self._stack_boxes(candidates), self._stack_boxes(others) if any(len(s.boxes) for s in others) else None

    def _stack_boxes(self, samples: list[Sample]) -> Batch:
        most = max((len(sample.boxes) for sample in samples), default=1)
        return self._stack(samples, [[0]] * len(samples), replace(self.limits, max_regions=most))

    def _target(self, chosen: list[Example], samples: list[Sample], rows: Batch, candidates: Batch | None):
        """The targets, or None if an example has none; retrieval's follow from its negatives."""
        if self.negatives is None and any(example.target is None for example in chosen):
            return None
        scored = rows.valid.shape[1] + 1 if candidates is None else candidates.valid.shape[1]
        return self.task.head.targets(chosen, samples, scored, self.vocabulary)


def joined(sample: Sample, more: Sample, limits: Limits) -> Sample:
    """A sample's regions, cut to the limit, followed by all regions of another sample."""
    count = limits.max_regions
    features = np.concatenate([sample.features[:count], more.features])
    return replace(sample, features=features, boxes=np.concatenate([sample.boxes[:count], more.boxes]))
