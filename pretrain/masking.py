"""Which words and regions are hidden and predicted: pure functions of (seed, epoch, sample number).

Nothing here keeps a state. Each decision about a position is a hash of the sample's key and the position, in
whole numbers, so the processor that collates a batch and the device that trains on it agree to the bit.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import ops
from shards import hashing

SWAP, PARTNER, WORD, WORD_ACTION, WORD_RANDOM, REGION, REGION_ACTION = range(7)
_PURPOSES = 8

WORD_SHARE = 0.15  # of the words are predicted
MASKED, RANDOM = 0.8, 0.1  # of those: replaced by [MASK], by a random word; the rest stay
REGION_SHARE = 0.15  # of the regions are predicted
ZEROED = 0.9  # of those are hidden; the rest stay, and hide nothing
OVERLAP = 0.4  # IoU with a hidden region from which a region is hidden too
SWAP_SHARE = 0.5  # of the pairs get the caption of another image


def sample_keys(seed: int, epoch: int, numbers: np.ndarray) -> np.ndarray:
    """int64 keys of samples, from which everything random about them in this epoch follows."""
    return hashing.draw(np.int64(hashing.key(seed, epoch)), np.asarray(numbers, np.int64))


def draw(keys, counters, purpose: int):
    """Random numbers for keys (n,) and counters (m,): (n, m); arrays or tensors."""
    return hashing.draw(keys[:, None], counters[None, :] * _PURPOSES + purpose)


def _happens(keys: Tensor, length: int, purpose: int, probability: float) -> Tensor:
    """bool (B, length), true with `probability`."""
    counters = torch.arange(length, device=keys.device)
    return hashing.uniform24(draw(keys, counters, purpose)) < hashing.threshold(probability)


def swapped(keys: np.ndarray) -> np.ndarray:
    """bool (B,): which pairs get another caption."""
    numbers = draw(keys, np.zeros(1, np.int64), SWAP)[:, 0]
    return hashing.uniform24(numbers) < hashing.threshold(SWAP_SHARE)


def choose_captions(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64 (B,): which of its captions each image gets in this epoch, below counts int64 (B,).

    All eight purposes are taken (dropout has the last); of SWAP, `swapped` uses counter 0 alone, this is counter 1, and
    `negative_keys` is counter 2.
    """
    return hashing.below(draw(keys, np.ones(1, np.int64), SWAP)[:, 0], counts)


def negative_keys(keys: Tensor) -> Tensor:
    """int64 (B,): of each pair, what its hard negative is drawn with (see choose_captions for the counter)."""
    return hashing.draw(keys, 2 * _PURPOSES + SWAP)


def choose_words(keys: Tensor, lengths: Tensor, width: int) -> Tensor:
    """bool (B, width): the words to predict. lengths (B,) count [CLS] and [SEP], which are never chosen."""
    position = torch.arange(width, device=keys.device)
    inside = (position > 0) & (position < lengths[:, None] - 1)
    return inside & _happens(keys, width, WORD, WORD_SHARE)


def mask_words(input_ids: Tensor, chosen: Tensor, keys: Tensor, mask_id: int, ordinary_ids: Tensor) -> Tensor:
    """The words as the model sees them: of the chosen 80% [MASK], 10% one of ordinary_ids (n,), 10% as they are."""
    counters = torch.arange(input_ids.shape[1], device=keys.device)
    action = hashing.uniform24(draw(keys, counters, WORD_ACTION))
    pick = hashing.below(draw(keys, counters, WORD_RANDOM), len(ordinary_ids))
    masked = chosen & (action < hashing.threshold(MASKED))
    random = chosen & ~masked & (action < hashing.threshold(MASKED + RANDOM))
    return torch.where(random, ordinary_ids[pick], input_ids).masked_fill(masked, mask_id)


def choose_regions(keys: Tensor, valid: Tensor) -> Tensor:
    """bool (B, N): the regions to predict, of those that are `valid` (B, N)."""
    return valid & _happens(keys, valid.shape[1], REGION, REGION_SHARE)


@dataclass
class HiddenRegions:
    """bool (B, N) each: chosen (to be predicted), zeroed (chosen and hidden), hidden (zeroed or overlapping it)."""

    chosen: Tensor
    zeroed: Tensor
    hidden: Tensor


def hide_regions(keys: Tensor, boxes: Tensor, valid: Tensor, overlap: float | None = OVERLAP) -> HiddenRegions:
    """Chooses regions, and hides with each zeroed one every region that overlaps it (paper, section 8.2).

    boxes: (B, N, 4) as shares of width and height; overlap None hides the zeroed ones alone.
    """
    chosen = choose_regions(keys, valid)
    zeroed = chosen & _happens(keys, valid.shape[1], REGION_ACTION, ZEROED)
    hidden = zeroed if overlap is None else ops.mask_overlapping(boxes, zeroed, valid, overlap)
    return HiddenRegions(chosen, zeroed, hidden)


def image_rows(
    features: Tensor, boxes: Tensor, visible: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """What the image stream gets: features (B, N + 1, D) and locations (B, N + 1, 5), of type `dtype`.

    Row 0 is the whole image: the mean of the visible regions (zeros where none is). Regions that are not
    visible are zeroed. features: (B, N, D) of any floating type; boxes: (B, N, 4) as shares; visible: bool (B, N).
    """
    size, regions = visible.shape
    locations = boxes.new_empty(size, regions + 1, 5, dtype=torch.float32)
    locations[:, 0, :2] = 0.0
    locations[:, 0, 2:] = 1.0
    locations[:, 1:, :4] = boxes
    locations[:, 1:, 4] = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return ops.mask_regions(features, visible, dtype), locations.to(dtype)
