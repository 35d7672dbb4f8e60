"""The operators in plain torch operations, used without compiled ones and as their reference."""

import torch
from torch import Tensor

ROWS = 64  # regions compared at a time, so that memory grows with N and not with N x N


def mask_overlapping(boxes: Tensor, seeds: Tensor, valid: Tensor | None, threshold: float) -> Tensor:
    """Bit-identical to the compiled operator; see ops.mask_overlapping."""
    boxes = boxes.float()
    seeds = seeds if valid is None else seeds & valid
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    hit = seeds.clone()
    for begin in range(0, boxes.shape[1], ROWS):
        part = slice(begin, begin + ROWS)
        low = torch.maximum(boxes[:, part, None, :2], boxes[:, None, :, :2])
        high = torch.minimum(boxes[:, part, None, 2:], boxes[:, None, :, 2:])
        sides = (high - low).clamp(min=0)
        shared = sides[..., 0] * sides[..., 1]
        union = (area[:, part, None] + area[:, None, :]) - shared
        near = (shared > 0) & (shared >= threshold * union)
        hit[:, part] |= (near & seeds[:, None, :]).any(-1)
    return hit if valid is None else hit & valid


def mask_regions(features: Tensor, visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Equal to the compiled operator except for the summation order of row 0; see ops.mask_regions."""
    size, regions, width = features.shape
    rows = features.new_empty(size, regions + 1, width, dtype=torch.float32)
    rows[:, 1:] = features.masked_fill(~visible[..., None], 0)
    torch.sum(rows[:, 1:], 1, out=rows[:, 0])
    rows[:, 0] /= visible.sum(1, keepdim=True).clamp(min=1)
    return rows.to(dtype)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


GOLDEN, MULTIPLIER1, MULTIPLIER2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (>> is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, elementwise: shards.common.counter_rng.mix, which this package cannot import."""
    x = (x ^ _shift(x, 30)) * MULTIPLIER1
    x = (x ^ _shift(x, 27)) * MULTIPLIER2
    return x ^ _shift(x, 31)


def _draw(keys: Tensor, counters: Tensor | int) -> Tensor:
    steps = (counters + 1) * GOLDEN
    return _mix(keys + (_signed(steps) if isinstance(steps, int) else steps))


def dropped_columns(keys: Tensor, site: int, width: int, p: float) -> Tensor:
    """Whether dropout drops a column: bool (n, width) for int64 keys (n,); see ops.dropout."""
    groups = torch.arange((width + 3) // 4, device=keys.device)
    bits = _draw(_draw(keys, site)[:, None], groups)
    lanes = bits[..., None] >> torch.arange(0, 64, 16, device=keys.device) & 0xFFFF
    return lanes.flatten(1)[:, :width] < threshold(p, 16)


def dropped_pairs(query_keys: Tensor, key_keys: Tensor, site: int, heads: int, p: float) -> Tensor:
    """Whether dropout drops a probability: bool (B, heads, L, M); see ops.attention_dropout."""
    counters = site * heads + torch.arange(heads, device=query_keys.device)
    queries = _draw(query_keys[:, None], counters[:, None])
    return _shift(_mix(queries[..., None] + key_keys[:, None, None]), 40) < threshold(p, 24)


def threshold(p: float, bits: int) -> int:
    """A value is dropped if its random number, with this number of bits, is below this threshold."""
    return round(p * 2**bits)


def keep_scale(p: float, bits: int) -> float:
    """The factor on kept values: the reciprocal of the exact probability of keeping one."""
    return 2**bits / (2**bits - threshold(p, bits))


def _compute_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _drop(x: Tensor, dropped: Tensor, scale: float) -> Tensor:
    """Zero for dropped values, otherwise x * scale, in the compute dtype."""
    dtype = _compute_type(x)
    return (x.to(dtype) * torch.tensor(scale, dtype=dtype, device=x.device)).masked_fill(dropped, 0)


def dropout(x: Tensor, keys: Tensor, site: int, p: float) -> Tensor:
    """Bit-identical to the compiled operator; see ops.dropout."""
    return _drop(x, dropped_columns(keys, site, x.shape[1], p), keep_scale(p, 16)).to(x.dtype)


def attention_dropout(probs: Tensor, query_keys: Tensor, key_keys: Tensor, site: int, p: float) -> Tensor:
    """Bit-identical to the compiled operator; see ops.attention_dropout."""
    dropped = dropped_pairs(query_keys, key_keys, site, probs.shape[1], p)
    return _drop(probs, dropped, keep_scale(p, 24)).to(probs.dtype)


def _dropout_add(x: Tensor, residual: Tensor | None, keys: Tensor | None, site: int, p: float) -> Tensor:
    """dropout(x) + residual in the compute dtype."""
    total = _drop(x, dropped_columns(keys, site, x.shape[1], p), keep_scale(p, 16)) if p > 0 else x.to(_compute_type(x))
    return total if residual is None else total + residual.to(total.dtype)


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    keys: Tensor | None,
    site: int,
    p: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the mean and reciprocal standard deviation of each row; see ops.dropout_add_layer_norm."""
    total = _dropout_add(x, residual, keys, site, p)
    mean = total.mean(1)
    centred = total - mean[:, None]
    rstd = (centred.square().mean(1) + eps).rsqrt()
    return (centred * rstd[:, None] * weight + bias).to(dtype), mean, rstd


def dropout_add_layer_norm_backward(
    gradient: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    keys: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    site: int,
    p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, the residual (empty without one), weight and bias."""
    normal = (_dropout_add(x, residual, keys, site, p) - mean[:, None]) * rstd[:, None]
    gradient = gradient.to(normal.dtype)
    scaled = gradient * weight
    level, slope = scaled.mean(1, keepdim=True), (scaled * normal).mean(1, keepdim=True)
    total = (scaled - level - normal * slope) * rstd[:, None]
    dx = _drop(total, dropped_columns(keys, site, x.shape[1], p), keep_scale(p, 16)) if p > 0 else total.clone()
    dresidual = x.new_empty(0) if residual is None else total.to(residual.dtype)
    return dx.to(x.dtype), dresidual, (gradient * normal).sum(0), gradient.sum(0)
