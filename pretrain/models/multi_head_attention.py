"""Multi-head self-attention of the two streams and co-attention between them.

Dropout on the probabilities is counter-based (see ops), so it does not depend on padding, packing or the division of a
batch. For short sequences on a GPU, attention works on packed rows without padding; otherwise sequences are padded.
"""

import math

import torch.nn.functional as F
from torch import Tensor

import ops
from ops.short_attention import packed_cross_attention, packed_self_attention
from pretrain.models.dropout import Dropout
from pretrain.models.packing import SequenceLayout


def self_attention(
    query_key_value: Tensor, layout: SequenceLayout, heads: int, dropout: Dropout, maps: list | None = None
) -> Tensor:
    """Self-attention within each sequence.

    Args:
        query_key_value: (num_tokens, 3h) if the layout is packed, else (B, L, 3h).
        maps: if given, the probabilities (B, heads, L, L) are appended to it; fused attention is then not used.

    Returns:
        (num_tokens, h) or (B, L, h).
    """
    if layout.starts is not None and maps is None:
        rows = query_key_value.flatten(0, -2)
        length = layout.mask.shape[1]
        context = packed_self_attention(rows, layout.starts, layout.row_keys, heads, dropout.site, dropout.rate, length)
        return context.view(*query_key_value.shape[:-1], -1)
    query, key, value = _by_head(query_key_value, layout, heads)
    return layout.pack(_attend(query, key, value, layout, layout, dropout, maps))


def co_attention(
    image: Tensor,
    text: Tensor,
    image_layout: SequenceLayout,
    text_layout: SequenceLayout,
    heads: int,
    image_dropout: Dropout,
    text_dropout: Dropout,
    image_maps: list | None = None,
    text_maps: list | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-attention in both directions: from the regions to the tokens and from the tokens to the regions.

    Args:
        image, text: queries, keys and values of each stream; (rows, 3h) if its layout is packed, else (B, L, 3h).
        image_dropout, text_dropout: dropout on the probabilities of each stream's queries.
        image_maps, text_maps: if given, the probabilities (B, heads, R, L) and (B, heads, L, R) are appended to them.

    Returns:
        The context of the image stream and of the text stream.
    """
    if image_layout.starts is not None and text_layout.starts is not None and image_maps is None and text_maps is None:
        for_image, for_text = packed_cross_attention(
            first_qkv=image.flatten(0, -2),
            second_qkv=text.flatten(0, -2),
            first_starts=image_layout.starts,
            second_starts=text_layout.starts,
            first_keys=image_layout.row_keys,
            second_keys=text_layout.row_keys,
            heads=heads,
            site=image_dropout.site,  # the site of text_dropout is the next number
            first_p=image_dropout.rate,
            second_p=text_dropout.rate,
            max_first=image_layout.mask.shape[1],
            max_second=text_layout.mask.shape[1],
        )
        return for_image.view(*image.shape[:-1], -1), for_text.view(*text.shape[:-1], -1)
    q1, k1, v1 = _by_head(image, image_layout, heads)
    q2, k2, v2 = _by_head(text, text_layout, heads)
    for_image = _attend(q1, k2, v2, image_layout, text_layout, image_dropout, image_maps)
    for_text = _attend(q2, k1, v1, text_layout, image_layout, text_dropout, text_maps)
    return image_layout.pack(for_image), text_layout.pack(for_text)


def _by_head(query_key_value: Tensor, layout: SequenceLayout, heads: int) -> tuple[Tensor, ...]:
    """Padded queries, keys and values, (B, heads, L, h / heads) each."""
    parts = layout.pad(query_key_value).chunk(3, -1)
    return tuple(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_layout: SequenceLayout,
    key_layout: SequenceLayout,
    dropout: Dropout,
    maps: list | None,
) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v over the valid positions of the keys, with dropout on the probabilities.

    query: (B, heads, L, d); key, value: (B, heads, M, d); returns (B, L, heads * d).
    """
    allowed = key_layout.mask[:, None, None, :]
    if maps is None and not dropout.rate:
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    else:
        scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
        probs = scores.masked_fill(~allowed, -math.inf).softmax(-1)
        if maps is not None:
            maps.append(probs)
        probs = probs.to(value.dtype)
        if dropout.rate:
            probs = ops.attention_dropout(probs, query_layout.keys, key_layout.keys, dropout.site, dropout.rate)
        context = probs @ value
    return context.transpose(1, 2).flatten(2)
