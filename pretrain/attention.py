"""Multi-head attention over padded sequences, for the streams and for the connections between them."""

import math

import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, h) -> (B, heads, L, h / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float, maps: list | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v over the positions that `mask` allows.

    q: (B, heads, L, d); k, v: (B, heads, M, d); mask: bool (B, M), true where a position may be looked at;
    returns (B, L, heads * d). Fused, through torch's scaled_dot_product_attention; where `maps` is a list the
    probabilities (B, heads, L, M) are worked out one by one and appended to it.
    """
    allowed = mask[:, None, None, :]
    if maps is None:
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
    else:
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        probs = scores.float().masked_fill(~allowed, -math.inf).softmax(-1)
        maps.append(probs)
        context = F.dropout(probs.to(v.dtype), dropout, dropout > 0) @ v
    return context.transpose(1, 2).flatten(2)
