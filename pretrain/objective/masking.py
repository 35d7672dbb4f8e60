"""Masking of tokens and regions: pure functions of (seed, epoch, sample number).

Nothing here has state. Each decision about a position is an integer hash of the sample's key and the position, so the
CPU that collates a batch and the device that trains on it get identical results.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import ops
from pretrain.data.random_choices import draw
from shards.common import counter_rng
from shards.common.random_purposes import SamplePurpose

TOKEN_SHARE = 0.15  # share of the tokens that are predicted
TOKEN_MASKED, TOKEN_RANDOM = 0.8, 0.1  # shares of those that become [MASK] and a random token; the rest is unchanged
REGION_SHARE = 0.15  # share of the regions that are predicted
REGION_MASKED = 0.9  # share of those that are masked; the rest is unchanged, and regions that overlap it are not masked
OVERLAP = 0.4  # regions with at least this IoU with a masked region are masked too


def _bernoulli(keys: Tensor, length: int, purpose: SamplePurpose, probability: float) -> Tensor:
    """bool (B, length), true with the given probability."""
    counters = torch.arange(length, device=keys.device)
    return counter_rng.uniform24(draw(keys, counters, purpose)) < counter_rng.threshold(probability)


def choose_tokens(keys: Tensor, lengths: Tensor, width: int) -> Tensor:
    """bool (B, width): the tokens to predict. lengths (B,) include [CLS] and [SEP], which are never chosen."""
    position = torch.arange(width, device=keys.device)
    inside = (position > 0) & (position < lengths[:, None] - 1)
    return inside & _bernoulli(keys, width, SamplePurpose.WORD, TOKEN_SHARE)


def mask_tokens(input_ids: Tensor, chosen: Tensor, keys: Tensor, mask_id: int, ordinary_ids: Tensor) -> Tensor:
    """Masks tokens: of the chosen ones, 80% become [MASK], 10% one of ordinary_ids (n,), and 10% stay unchanged."""
    counters = torch.arange(input_ids.shape[1], device=keys.device)
    action = counter_rng.uniform24(draw(keys, counters, SamplePurpose.WORD_ACTION))
    pick = counter_rng.below(draw(keys, counters, SamplePurpose.WORD_RANDOM), len(ordinary_ids))
    masked = chosen & (action < counter_rng.threshold(TOKEN_MASKED))
    random = chosen & ~masked & (action < counter_rng.threshold(TOKEN_MASKED + TOKEN_RANDOM))
    return torch.where(random, ordinary_ids[pick], input_ids).masked_fill(masked, mask_id)


def choose_regions(keys: Tensor, valid: Tensor) -> Tensor:
    """bool (B, N): the regions to predict, among the valid ones, bool (B, N)."""
    return valid & _bernoulli(keys, valid.shape[1], SamplePurpose.REGION, REGION_SHARE)


@dataclass
class MaskedRegions:
    """Which regions are predicted and masked; bool (B, N) each.

    Attributes:
        chosen: to be predicted.
        seeds: chosen and masked.
        masked: the seeds, and the regions that overlap them.
    """

    chosen: Tensor
    seeds: Tensor
    masked: Tensor


@dataclass
class MaskedInputs:
    """A masked batch on the device: the encoder's arguments, and the positions and labels to predict.

    Attributes:
        token_positions, region_positions: int64 (n,), flat indices into (B, L) and (B, N).
        token_labels: int64 (n,).
        token_weights, region_weights: bool (n,), false for padding up to the capacity, which has no loss.
        masked_regions: which regions are predicted and masked.
    """

    input_ids: Tensor
    text_mask: Tensor
    features: Tensor
    locations: Tensor
    image_mask: Tensor
    token_positions: Tensor
    token_labels: Tensor
    token_weights: Tensor
    region_positions: Tensor
    region_weights: Tensor
    masked_regions: MaskedRegions


def choose_masked_regions(keys: Tensor, boxes: Tensor, valid: Tensor, overlap: float | None = OVERLAP) -> MaskedRegions:
    """Chooses the regions to predict, and masks those that overlap a masked one (paper, section 8.2).

    Args:
        boxes: (B, N, 4), relative to width and height.
        overlap: IoU threshold; None for no overlap masking.
    """
    chosen = choose_regions(keys, valid)
    seeds = chosen & _bernoulli(keys, valid.shape[1], SamplePurpose.REGION_ACTION, REGION_MASKED)
    masked = seeds if overlap is None else ops.mask_overlapping(boxes, seeds, valid, overlap)
    return MaskedRegions(chosen, seeds, masked)
