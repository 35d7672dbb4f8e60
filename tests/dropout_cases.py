"""Inputs of the dropout tests, and the random function once more, in numpy's unsigned arithmetic."""

import numpy as np
import torch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# One rounding of a result computed in float32 (float64).
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-12}


def random_keys(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mix(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def column_lanes(keys: torch.Tensor, site: int, h: int):
    """The 16 random bits of each column, uint64 (n, h), by the definition of the random function."""
    keys = keys.numpy().view(np.uint64)[:, None]
    columns = np.arange(h, dtype=np.uint64)
    row_site = mix(keys + np.array([site + 1], np.uint64) * GOLDEN)
    bits = mix(row_site + (columns // np.uint64(4) + np.uint64(1)) * GOLDEN)
    return bits >> np.uint64(16) * (columns % np.uint64(4)) & np.uint64(0xFFFF)


def kept_columns(keys: torch.Tensor, site: int, h: int, p: float) -> torch.Tensor:
    """bool (n, h)"""
    return torch.from_numpy(column_lanes(keys, site, h) >= np.uint64(round(p * 65536)))


def pair_bits(query_keys: torch.Tensor, key_keys: torch.Tensor, site: int, heads: int):
    """The 24 random bits of each probability, uint64 (B, heads, L, M), by the definition of the random function."""
    query = query_keys.numpy().view(np.uint64)[:, None, :, None]
    key = key_keys.numpy().view(np.uint64)[:, None, None, :]
    head = np.arange(heads, dtype=np.uint64)[:, None, None]
    start = mix(query + (np.uint64(site * heads) + head + np.uint64(1)) * GOLDEN)
    return mix(start + key) >> np.uint64(40)


def kept_pairs(query_keys: torch.Tensor, key_keys: torch.Tensor, site: int, heads: int, p: float) -> torch.Tensor:
    """bool (B, heads, L, M)"""
    return torch.from_numpy(pair_bits(query_keys, key_keys, site, heads) >= np.uint64(round(p * 2**24)))


def scale_of(p: float, bits: int = 16) -> float:
    return 2**bits / (2**bits - round(p * 2**bits))


def slow_layer_norm(x, residual, weight, bias, keys, site, p, eps, dtype):
    """LayerNorm(dropout(x) + residual) of torch's own operations in the compute type, with autograd's gradients."""
    total = x.to(weight.dtype)
    if p > 0:
        total = total * kept_columns(keys, site, x.shape[1], p) * scale_of(p)
    if residual is not None:
        total = total + residual.to(total.dtype)
    return torch.nn.functional.layer_norm(total, total.shape[1:], weight, bias, eps).to(dtype)
