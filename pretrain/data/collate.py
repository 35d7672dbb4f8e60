"""Collates samples to a batch: replaces captions by misaligned ones, truncates and pads."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pretrain.data import random_choices
from pretrain.data.batch import Batch, PaddedRegions
from pretrain.data.caption_pairs import Captions, MisalignedCaptions
from pretrain.tokenizer.tokenizer import WordPieceTokenizer
from shards.common.errors import UserError
from shards.common.fp16 import finite
from shards.storage.sample import Sample, check_values


@dataclass(frozen=True)
class Limits:
    """The input sizes of the model.

    Attributes:
        max_tokens: maximum number of tokens per caption, including [CLS] and [SEP].
        max_regions: maximum number of regions per image; the first ones, which have the highest scores, are used.
        feature_size: D.
        num_classes, per_region: number of classes, and of stored classes per region; both 0 without a class target.
    """

    max_tokens: int
    max_regions: int
    feature_size: int
    num_classes: int = 0
    per_region: int = 0


def check_sample(sample: Sample, limits: Limits) -> None:
    """Raises UserError, with shard and key, if the model cannot use a sample."""
    name = f"{sample.shard}: {sample.key}"
    if not len(sample.features):
        raise UserError(f"{name} has no regions; extract it again, or remove it")
    if sample.features.shape[1] != limits.feature_size:
        raise UserError(
            f"{name} has features of size {sample.features.shape[1]}, the model expects {limits.feature_size}; "
            "use shards of one detector"
        )
    if not finite(sample.features[: limits.max_regions]):
        raise UserError(f"{name} has features that are NaN or infinite in float16; extract it again")
    check_values(sample)
    if limits.num_classes:
        if sample.class_ids is None:
            raise UserError(f"{name} has no class distribution; use --region_target features (or none) for such shards")
        if sample.class_ids.shape[1] != limits.per_region:
            raise UserError(
                f"{name} has {sample.class_ids.shape[1]} classes per region, other samples have {limits.per_region}"
            )
        if sample.class_ids.min() < 0 or sample.class_ids.max() >= limits.num_classes:
            raise UserError(f"{name} has a class id outside the {limits.num_classes} classes of its data set")


def pad_regions(samples: list[Sample], max_regions: int, feature_size: int) -> PaddedRegions:
    """The first max_regions regions of samples with features of size feature_size, padded; there may be no sample."""
    counts = [min(len(sample.features), max_regions) for sample in samples]
    regions = max(counts, default=1)
    features = np.zeros((len(samples), regions, feature_size), np.float16)
    boxes = np.zeros((len(samples), regions, 4), np.float32)
    for row, (sample, count) in enumerate(zip(samples, counts, strict=True)):
        features[row, :count] = sample.features[:count]
        boxes[row, :count] = sample.boxes[:count]
    return PaddedRegions(
        features=torch.from_numpy(features),
        boxes=torch.from_numpy(boxes),
        valid=torch.arange(regions) < torch.tensor(counts, dtype=torch.int64)[:, None],
        total=sum(counts),
    )


def stack(samples: list[Sample], token_ids: list[list[int]], keys, misaligned, limits: Limits) -> Batch:
    """Pads samples that passed check_sample, and their token ids, to a batch, which may be empty."""
    regions = pad_regions(samples, limits.max_regions, limits.feature_size)
    length = max(map(len, token_ids), default=2)
    input_ids = np.zeros((len(samples), length), np.int64)
    class_ids = np.zeros((*regions.valid.shape, limits.per_region), np.int16)
    class_probs = np.zeros((*regions.valid.shape, limits.per_region), np.float16)
    for row, (sample, ids) in enumerate(zip(samples, token_ids, strict=True)):
        input_ids[row, : len(ids)] = ids
        if limits.per_region:
            count = min(len(sample.features), limits.max_regions)
            class_ids[row, :count] = sample.class_ids[:count]
            class_probs[row, :count] = sample.class_probs[:count]
    return Batch(
        keys=torch.from_numpy(np.asarray(keys, np.int64)),
        input_ids=torch.from_numpy(input_ids),
        lengths=torch.tensor([len(ids) for ids in token_ids], dtype=torch.int64),
        features=regions.features,
        boxes=regions.boxes,
        valid=regions.valid,
        class_ids=torch.from_numpy(class_ids),
        class_probs=torch.from_numpy(class_probs),
        misaligned=torch.from_numpy(np.asarray(misaligned, bool)),
        total_tokens=sum(map(len, token_ids)),
        total_regions=regions.total,
    )


class CountsPredictions(Protocol):
    """What collation needs of an objective (see pretrain/objective/pretraining_loss.py)."""

    @property
    def compares_pairs(self) -> bool:
        """Whether batches need image_ids and text_ids."""

    def count_predictions(self, batch: Batch) -> tuple[int, int]:
        """The numbers of tokens and of regions to predict in a batch."""


@dataclass(frozen=True)
class Collator:
    """Collates samples: replaces captions, tokenizes, pads, and counts the positions to predict.

    Attributes:
        negatives: source of misaligned captions; None if every image keeps its own caption.
        draw_captions: pair numbers are image numbers, and one caption of each image is sampled per epoch; otherwise
            pair numbers are caption numbers.
        skip_bad: skip samples that cannot be read or that the model cannot use, instead of raising UserError.
    """

    captions: Captions
    negatives: MisalignedCaptions | None
    tokenizer: WordPieceTokenizer
    objective: CountsPredictions
    seed: int
    limits: Limits
    draw_captions: bool = False
    skip_bad: bool = False

    def __call__(self, epoch: int, numbers: np.ndarray, samples: list[Sample | UserError]) -> Batch:
        """Collates the samples of some pairs in an epoch.

        Args:
            numbers: int64 (B,), the pair numbers.
            samples: the samples; a UserError in place of one that could not be read.
        """
        errors = [self._error(sample) for sample in samples]
        problems = tuple(str(error) for error in errors if error)
        if problems:
            if not self.skip_bad:
                raise next(error for error in errors if error)
            good = [row for row, error in enumerate(errors) if error is None]
            numbers, samples = numbers[good], [samples[row] for row in good]
        keys = random_choices.sample_keys(self.seed, epoch, numbers)
        own = self.captions.drawn(numbers, keys) if self.draw_captions else numbers
        misaligned = np.zeros(len(keys), bool) if self.negatives is None else random_choices.misaligned(keys)
        chosen = own.copy()
        for row in np.flatnonzero(misaligned).tolist():
            chosen[row] = self.negatives.partner(int(own[row]), int(keys[row]))
        token_ids = self.tokenizer.encode([self.captions[number] for number in chosen.tolist()], self.limits.max_tokens)
        batch = stack(samples, token_ids, keys, misaligned, self.limits)
        if self.objective.compares_pairs:
            batch.image_ids = torch.from_numpy(self.captions.images_of(own))
            batch.text_ids = torch.from_numpy(self.captions.text_ids[chosen])
        batch.predicted_tokens, batch.predicted_regions = self.objective.count_predictions(batch)
        batch.problems = problems
        return batch

    def _error(self, sample: Sample | UserError) -> UserError | None:
        try:
            if isinstance(sample, UserError):
                return sample
            check_sample(sample, self.limits)
        except UserError as error:
            return error
        return None
