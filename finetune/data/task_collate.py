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
from pretrain.data.batch import Batch, PaddedRegions
from pretrain.data.collate import Limits, check_sample, pad_regions, stack
from pretrain.models.image_input import image_stream_input
from pretrain.tokenizer.tokenizer import WordPieceTokenizer
from shards.common import counter_rng
from shards.storage.sample import Sample

# Positions in the image stream by which dropout tells given boxes from regions, whose positions are their numbers.
FIRST_CANDIDATE = 1 << 20
FIRST_OTHER_BOX = 1 << 21


@dataclass
class TaskBatch:
    """A batch of image-text pairs with their targets (see Head.targets).

    Attributes:
        pairs: texts with their images.
        candidates: candidate boxes of each pair, or None.
        target: None if it is not needed or not known.
        examples: number of the task's examples in the batch, which may have several pairs each.
        problems: see pretrain.data.batch.
        other_boxes: other given boxes of each image, or None; the model attends to them but does not score them.
    """

    pairs: Batch
    candidates: PaddedRegions | None
    target: Tensor | None
    examples: int
    problems: tuple[str, ...] = ()
    other_boxes: PaddedRegions | None = None

    def _map(self, function) -> "TaskBatch":
        parts = {name: getattr(self, name) for name in ("pairs", "candidates", "target", "other_boxes")}
        return replace(self, **{name: function(part) for name, part in parts.items() if part is not None})

    def __len__(self) -> int:
        return self.examples

    def pin_memory(self) -> "TaskBatch":
        return self._map(lambda part: part.pin_memory())

    def to(self, device) -> "TaskBatch":
        return self._map(lambda p: p.to(device, non_blocking=True) if isinstance(p, Tensor) else p.to(device))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        self._map(lambda part: part.record_stream(stream))

    def inputs(self, task_token: int | None, dtype: torch.dtype) -> TaskInputs:
        """The model inputs, on the batch's device.

        Args:
            task_token: number of the task token, None for a model without task tokens.
            dtype: of the features.
        """
        pairs, candidates = self.pairs, self.candidates
        length = torch.arange(pairs.input_ids.shape[1], device=pairs.lengths.device)
        features, locations, image_mask, positions = self._image_stream(dtype)
        given = [boxes.total for boxes in (candidates, self.other_boxes) if boxes is not None]
        return TaskInputs(
            input_ids=pairs.input_ids,
            text_mask=length < pairs.lengths[:, None],
            features=features,
            locations=locations,
            image_mask=image_mask,
            task_ids=None if task_token is None else torch.full_like(pairs.lengths, task_token),
            candidates=0 if candidates is None else candidates.valid.shape[1],
            text_count=pairs.total_tokens,
            image_count=None if pairs.image_row_count is None else pairs.image_row_count + sum(given),
            sample_keys=pairs.keys,
            image_positions=positions,
        )

    def _image_stream(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Features, locations, mask and positions of the image stream: regions, other given boxes, candidates.

        The positions are None if there are only regions.
        """
        pairs = self.pairs
        features, locations = image_stream_input(pairs.features, pairs.boxes, pairs.valid, dtype)
        mask = F.pad(pairs.valid, (1, 0), value=True)
        if self.candidates is None:
            return features, locations, mask, None
        parts = [(features, locations, mask, torch.arange(mask.shape[1], device=mask.device))]
        for boxes, first in ((self.other_boxes, FIRST_OTHER_BOX), (self.candidates, FIRST_CANDIDATE)):
            if boxes is not None:
                features, locations = image_stream_input(boxes.features, boxes.boxes, boxes.valid, dtype)
                positions = first + torch.arange(boxes.valid.shape[1], device=mask.device)
                # The image token stays the mean of the detector's regions.
                parts.append((features[:, 1:], locations[:, 1:], boxes.valid, positions))
        features, locations, masks, positions = zip(*parts, strict=True)
        return torch.cat(features, 1), torch.cat(locations, 1), torch.cat(masks, 1), torch.cat(positions)


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
        negatives: those of retrieval in training; without it, each caption and its image are one pair.
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
        texts_images = [pair for number in numbers.tolist() for pair in self._texts_images(epoch, number)]
        samples, limits = [self._sample(self.regions, image) for _, image in texts_images], self.limits
        if self.annotated is not None and samples:
            more = [self._sample(self.annotated, image) for _, image in texts_images]
            samples = [joined(sample, other, limits) for sample, other in zip(samples, more, strict=True)]
            limits = replace(limits, max_regions=max(len(sample.boxes) for sample in samples))
        ids = self.tokenizer.encode([text for text, _ in texts_images], self.limits.max_tokens)
        candidates, others = self._given_boxes(chosen) if self.boxes is not None else (None, None)
        aligned = np.zeros(len(samples), bool)  # for the interface of pretraining's batches
        pairs = stack(samples, ids, self._keys(epoch, numbers, len(samples)), aligned, limits)
        target = self._target(chosen, samples, pairs, candidates)
        return TaskBatch(pairs, candidates, target, len(chosen), other_boxes=others)

    def _texts_images(self, epoch: int, number: int) -> list[tuple[str, str]]:
        """The pairs of an example: (text, image)."""
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

    def _keys(self, epoch: int, numbers: np.ndarray, pairs: int) -> np.ndarray:
        """int64 (pairs,): random keys of the batch's pairs; every example has the same number of pairs."""
        each = pairs // max(len(numbers), 1)
        counted = np.repeat(numbers, each) * each + np.tile(np.arange(each), len(numbers))
        return random_choices.sample_keys(
            counter_rng.key(self.seed, counter_rng.text_key(self.task.name)), epoch, counted
        )

    def _given_boxes(self, chosen: list[Example]) -> tuple[PaddedRegions, PaddedRegions | None]:
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
        return self._padded(candidates), self._padded(others) if any(len(s.boxes) for s in others) else None

    def _padded(self, samples: list[Sample]) -> PaddedRegions:
        most = max((len(sample.boxes) for sample in samples), default=1)
        return pad_regions(samples, most, self.limits.feature_size)

    def _target(self, chosen: list[Example], samples: list[Sample], pairs: Batch, candidates: PaddedRegions | None):
        """The targets, or None if an example has none; retrieval's follow from its negatives."""
        if self.negatives is None and any(example.target is None for example in chosen):
            return None
        scored = pairs.valid.shape[1] + 1 if candidates is None else candidates.valid.shape[1]
        return self.task.head.targets(chosen, samples, scored, self.vocabulary)


def joined(sample: Sample, more: Sample, limits: Limits) -> Sample:
    """A sample's regions, cut to the limit, followed by all regions of another sample."""
    count = limits.max_regions
    features = np.concatenate([sample.features[:count], more.features])
    return replace(sample, features=features, boxes=np.concatenate([sample.boxes[:count], more.boxes]))
