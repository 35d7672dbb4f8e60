"""From samples to the tensors of a batch: reading, swapping captions, cutting to the limits, padding."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from pretrain import masking
from pretrain.pairs import Captions, Swaps
from pretrain.tokenizer import WordPieces
from shards.errors import UserError
from shards.reader import RegionReader
from shards.sample import Sample


@dataclass
class Batch:
    """Pairs as read, nothing masked yet; B pairs, L words of the longest caption, N regions of the richest image.

    keys int64 (B,): the samples' random keys; input_ids int64 (B, L); lengths int64 (B,), with [CLS] and [SEP];
    features float16 (B, N, D); boxes float32 (B, N, 4); valid bool (B, N); class_ids int16 and class_probs
    float16 (B, N, k), or (B, N, 0) where there are no classes; misaligned bool (B,). word_count and
    region_count: how many of them will be predicted.
    """

    keys: Tensor
    input_ids: Tensor
    lengths: Tensor
    features: Tensor
    boxes: Tensor
    valid: Tensor
    class_ids: Tensor
    class_probs: Tensor
    misaligned: Tensor
    word_count: int = 0
    region_count: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def _map(self, function) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(x) for name, x in tensors.items() if isinstance(x, Tensor)})

    def pin_memory(self) -> "Batch":
        return self._map(Tensor.pin_memory)

    def to(self, device) -> "Batch":
        return self._map(lambda x: x.to(device, non_blocking=True))


@dataclass(frozen=True)
class Limits:
    """words: of a caption with [CLS] and [SEP]; regions: of an image, the best first; feature_size: D."""

    words: int
    regions: int
    feature_size: int


def check_sample(sample: Sample, limits: Limits, needs_classes: bool) -> None:
    """Refuses a sample that the model cannot take, by name."""
    if not len(sample.features):
        raise UserError(f"{sample.key}: the image has no regions; extract it again, or leave it out")
    if sample.features.shape[1] != limits.feature_size:
        raise UserError(
            f"{sample.key}: its features are {sample.features.shape[1]} wide and the model's {limits.feature_size}; "
            "use shards of one detector"
        )
    if needs_classes and sample.class_ids is None:
        raise UserError(
            f"{sample.key}: has no class distribution; use --region_target features (or none) for such shards"
        )
    if _not_finite(sample.features):
        raise UserError(f"{sample.key}: has features that are NaN or infinite; extract it again")


def _not_finite(features: np.ndarray) -> bool:
    """Whether any float16 is NaN or infinite, by its exponent bits: several times faster than numpy's isfinite."""
    if features.dtype == np.float16:
        return bool(((features.view(np.uint16) & 0x7FFF) >= 0x7C00).any())
    return not np.isfinite(features).all()


def stack(samples: list[Sample], token_ids: list[list[int]], keys, misaligned, limits: Limits) -> Batch:
    """Pads samples and their word pieces to a batch."""
    counts = [min(len(sample.features), limits.regions) for sample in samples]
    length, regions = max(map(len, token_ids)), max(counts)
    per_region = 0 if samples[0].class_ids is None else samples[0].class_ids.shape[1]
    size = len(samples)
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
        lengths=torch.tensor([len(ids) for ids in token_ids]),
        features=torch.from_numpy(features),
        boxes=torch.from_numpy(boxes),
        valid=torch.arange(regions) < torch.tensor(counts)[:, None],
        class_ids=torch.from_numpy(class_ids),
        class_probs=torch.from_numpy(class_probs),
        misaligned=torch.from_numpy(np.asarray(misaligned, bool)),
    )


class PairBatches(torch.utils.data.Dataset):
    """Batches by (epoch, sample numbers), for a DataLoader whose workers do the reading.

    A UserError is returned instead of raised: torch would wrap it in a worker's traceback.
    """

    def __init__(self, reader: RegionReader, captions: Captions, numbers, pieces: WordPieces, objective, seed, limits):
        self.reader, self.captions, self.pieces = reader, captions, pieces
        self.swaps = Swaps(captions, numbers)
        self.objective, self.seed, self.limits = objective, seed, limits

    def __getitem__(self, request: tuple[int, np.ndarray]) -> Batch | UserError:
        epoch, numbers = request
        try:
            return self.read(epoch, numbers)
        except UserError as error:
            return error

    def read(self, epoch: int, numbers: np.ndarray) -> Batch:
        keys = masking.sample_keys(self.seed, epoch, numbers)
        swapped = masking.swapped(keys)
        samples, texts = [], []
        for number, key, swap in zip(numbers.tolist(), keys.tolist(), swapped.tolist(), strict=True):
            sample = self.reader[number]
            check_sample(sample, self.limits, self.objective.region_target == "classes")
            samples.append(sample)
            texts.append(self.captions[self.swaps.partner(number, key) if swap else number])
        token_ids = self.pieces.encode(texts, self.limits.words)
        batch = stack(samples, token_ids, keys, swapped, self.limits)
        batch.word_count, batch.region_count = self.objective.count(batch)
        return batch
