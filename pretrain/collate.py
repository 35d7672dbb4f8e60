"""From samples to the tensors of a batch: swapping captions, cutting to the limits, padding."""

from dataclasses import dataclass

import numpy as np
import torch

from pretrain import masking
from pretrain.batch import Batch
from pretrain.objective import Objective
from pretrain.pairs import Captions, Swaps
from pretrain.tokenizer import WordPieces
from shards.errors import UserError
from shards.half import finite
from shards.sample import Sample, check_values


@dataclass(frozen=True)
class Limits:
    """What the model takes. words: of a caption with [CLS] and [SEP]; regions: of an image, the best first.

    feature_size: D; num_classes and per_region: of the class distribution, both 0 where none is needed.
    """

    words: int
    regions: int
    feature_size: int
    num_classes: int = 0
    per_region: int = 0


def check_sample(sample: Sample, limits: Limits) -> None:
    """Refuses a sample that the model cannot take, by name."""
    name = f"{sample.shard}: {sample.key}"
    if not len(sample.features):
        raise UserError(f"{name} has no regions; extract it again, or leave it out")
    if sample.features.shape[1] != limits.feature_size:
        raise UserError(
            f"{name} has features {sample.features.shape[1]} wide and the model's are {limits.feature_size}; "
            "use shards of one detector"
        )
    if not finite(sample.features[: limits.regions]):
        raise UserError(f"{name} has features that are NaN or infinite in float16; extract it again")
    check_values(sample)
    if limits.num_classes:
        if sample.class_ids is None:
            raise UserError(f"{name} has no class distribution; use --region_target features (or none) for such shards")
        if sample.class_ids.shape[1] != limits.per_region:
            raise UserError(f"{name} has {sample.class_ids.shape[1]} classes a region and others {limits.per_region}")
        if sample.class_ids.min() < 0 or sample.class_ids.max() >= limits.num_classes:
            raise UserError(f"{name} has a class beyond the {limits.num_classes} of its data set")


def stack(samples: list[Sample], token_ids: list[list[int]], keys, misaligned, limits: Limits) -> Batch:
    """Pads samples (that check_sample accepts) and their word pieces to a batch; there may be none."""
    counts = [min(len(sample.features), limits.regions) for sample in samples]
    length, regions = max(map(len, token_ids), default=2), max(counts, default=1)
    size, per_region = len(samples), limits.per_region
    input_ids = np.zeros((size, length), np.int64)
    features = np.zeros((size, regions, limits.feature_size), np.float16)
    boxes = np.zeros((size, regions, 4), np.float32)
    class_ids = np.zeros((size, regions, per_region), np.int16)
    class_probs = np.zeros((size, regions, per_region), np.float16)
    for row, (sample, ids, count) in enumerate(zip(samples, token_ids, counts, strict=True)):
        input_ids[row, : len(ids)] = ids
        features[row, :count] = sample.features[:count]
        boxes[row, :count] = sample.boxes[:count]
        if per_region:
            class_ids[row, :count] = sample.class_ids[:count]
            class_probs[row, :count] = sample.class_probs[:count]
    return Batch(
        keys=torch.from_numpy(np.asarray(keys, np.int64)),
        input_ids=torch.from_numpy(input_ids),
        lengths=torch.tensor([len(ids) for ids in token_ids], dtype=torch.int64),
        features=torch.from_numpy(features),
        boxes=torch.from_numpy(boxes),
        valid=torch.arange(regions) < torch.tensor(counts, dtype=torch.int64)[:, None],
        class_ids=torch.from_numpy(class_ids),
        class_probs=torch.from_numpy(class_probs),
        misaligned=torch.from_numpy(np.asarray(misaligned, bool)),
        pieces=sum(map(len, token_ids)),
        regions=sum(counts),
    )


@dataclass(frozen=True)
class Collator:
    """Makes batches of samples: swaps captions, encodes texts, pads, and counts what will be predicted.

    draw_captions: numbers are those of images, and each gets one of its captions, drawn anew in every epoch; otherwise
    they are those of captions. swaps: None where every image keeps its own caption. skip_bad: leave out samples that
    cannot be read or that the model cannot take, instead of raising UserError.
    """

    captions: Captions
    swaps: Swaps | None
    pieces: WordPieces
    objective: Objective
    seed: int
    limits: Limits
    draw_captions: bool = False
    skip_bad: bool = False

    def __call__(self, epoch: int, numbers: np.ndarray, samples: list[Sample | UserError]) -> Batch:
        """The batch of `samples`, whose pair numbers are `numbers` int64 (B,), in an epoch.

        An error in a sample's place says why it could not be read.
        """
        errors = [self._error(sample) for sample in samples]
        problems = tuple(str(error) for error in errors if error)
        if problems:
            if not self.skip_bad:
                raise next(error for error in errors if error)
            good = [row for row, error in enumerate(errors) if error is None]
            numbers, samples = numbers[good], [samples[row] for row in good]
        keys = masking.sample_keys(self.seed, epoch, numbers)
        own = self.captions.drawn(numbers, keys) if self.draw_captions else numbers
        swapped = np.zeros(len(keys), bool) if self.swaps is None else masking.swapped(keys)
        chosen = own.copy()
        for row in np.flatnonzero(swapped).tolist():
            chosen[row] = self.swaps.partner(int(own[row]), int(keys[row]))
        token_ids = self.pieces.encode([self.captions[number] for number in chosen.tolist()], self.limits.words)
        batch = stack(samples, token_ids, keys, swapped, self.limits)
        if self.objective.contrastive:
            batch.image_ids = torch.from_numpy(self.captions.images_of(own))
            batch.text_ids = torch.from_numpy(self.captions.text_ids[chosen])
        batch.word_count, batch.region_count = self.objective.count(batch)
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
