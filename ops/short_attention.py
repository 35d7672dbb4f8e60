"""Multi-head attention for short sequences of varying length on packed rows, with counter-based dropout.

Packed means that padding is removed: the rows of all sequences are concatenated, and `starts` contains the first row of
each. On a GPU with Triton, one program computes one (sequence, head), forward or backward; elsewhere
`short_attention_reference` computes the same function in plain torch operations.

Dropout is a function only of the row keys, the `site` of the call and the head, so it does not depend on the
composition of the batch, the rank, gradient accumulation, or the implementation. With 64-bit wrap-around arithmetic,
GOLDEN = 0x9E3779B97F4A7C15 and `mix` as in shards/common/counter_rng.py, the probability at (query row, key row) is
dropped if

    mix(mix(query_key + (site * heads + head + 1) * GOLDEN) + key_key) >> 40  <  round(p * 2**24)

and otherwise divided by the exact probability of keeping it, 1 - round(p * 2**24) / 2**24.
"""

import importlib.util
import math
import os

import torch
from torch import Tensor

from ops.pure_torch import keep_scale, threshold
from ops.registration import NAMESPACE, attention_dropout

MAX_LENGTH = 128  # maximum length of a sequence, because its keys must fit one tile of the kernel
KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNEL_HEAD_SIZES = (16, 32, 64, 128)
BITS = 24  # random bits used by dropout
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = _HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"  # then the kernels accept CPU tensors


def short_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    query_keys: Tensor,
    key_keys: Tensor,
    heads: int,
    site: int,
    p: float,
    max_query: int,
    max_key: int,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v per head; the queries of sequence b attend to the keys of sequence b.

    Args:
        query: (n_q, heads * d), last dimension contiguous; chunks of a fused projection need no copy.
        key, value: (n_k, heads * d), of the same dtype.
        query_starts, key_starts: int32 (B + 1,), first row of each sequence and the end of the last. A sequence may be
            empty on either side. Rows beyond the last sequence (a static capacity) have output and gradient 0.
        query_keys, key_keys: int64 (n_q,), (n_k,), random key of each row; not read when p is 0.
        heads: number of heads.
        site: number of this call among those with the same row keys, so that each has an independent dropout mask.
        p: dropout probability of the attention probabilities; 0 compiles to a kernel without random numbers.
        max_query, max_key: upper bounds of the sequence lengths, at most 128. They determine the tile sizes; on a GPU
            the lengths are not compared with them, because that would wait for the device.

    Returns:
        (n_q, heads * d), contiguous, in the dtype of the inputs. Softmax is computed in float32 (or float64).

    Raises:
        ValueError: for other shapes or dtypes, for bounds over 128, and on the CPU for sequences over the bounds.
    """
    for name, rows in (("key", key), ("value", value)):
        _check(rows.dtype == query.dtype, f"{name} should be {query.dtype} like query and is {rows.dtype}")
    _check_side("query", query, query.shape[-1], query_starts, query_keys, heads, max_query)
    _check_side("key", key, query.shape[-1], key_starts, key_keys, heads, max_key)
    _check(value.shape == key.shape, f"value should be {tuple(key.shape)} like key and is {tuple(value.shape)}")
    _check_call(p, query_starts, key_starts)
    if not kernel_available(query, heads):
        return short_attention_reference(
            query, key, value, query_starts, key_starts, query_keys, key_keys, heads, site, p, max_query, max_key
        )
    return torch.ops.twelve_in_one.short_attention(
        query, key, value, query_starts, key_starts, query_keys, key_keys, heads, site, p, max_query, max_key
    )


def packed_self_attention(
    qkv: Tensor, starts: Tensor, keys: Tensor, heads: int, site: int, p: float, max_length: int
) -> Tensor:
    """Self-attention from a fused projection; its backward pass writes one fused gradient without a concatenation.

    Args:
        qkv: (n, 3 * heads * d): queries, keys and values of every row, in this order.
        starts: int32 (B + 1,), first row of each sequence and the end of the last.
        keys: int64 (n,), random key of each row.
        heads, site, p: as in `short_attention`.
        max_length: upper bound of the sequence lengths, at most 128.

    Returns:
        (n, heads * d), contiguous.

    Raises:
        ValueError: as `short_attention`.
    """
    _check(qkv.shape[-1] % 3 == 0, f"qkv should be (n, 3 * heads * d) and is {tuple(qkv.shape)}")
    _check_side("qkv", qkv, qkv.shape[-1], starts, keys, 3 * heads, max_length)
    _check_call(p, starts, starts)
    if not kernel_available(qkv, 3 * heads):
        parts = qkv.chunk(3, -1)
        return short_attention_reference(*parts, starts, starts, keys, keys, heads, site, p, max_length, max_length)
    return torch.ops.twelve_in_one.packed_self_attention(qkv, starts, keys, heads, site, p, max_length)


def packed_cross_attention(
    first_qkv: Tensor,
    second_qkv: Tensor,
    first_starts: Tensor,
    second_starts: Tensor,
    first_keys: Tensor,
    second_keys: Tensor,
    heads: int,
    site: int,
    first_p: float,
    second_p: float,
    max_first: int,
    max_second: int,
) -> tuple[Tensor, Tensor]:
    """Co-attention in both directions from the two streams' fused projections, with fused gradients.

    The queries of the first stream attend to the keys of the second at `site`, those of the second to the keys of the
    first at `site + 1`: a co-attention layer takes two numbers.

    Args:
        first_qkv, second_qkv: (n_1, 3 * heads * d), (n_2, 3 * heads * d), of one dtype.
        first_starts, second_starts: int32 (B + 1,), first row of each sequence of the stream and the end of the last.
        first_keys, second_keys: int64 (n_1,), (n_2,), random key of each row.
        heads, site: as in `short_attention`.
        first_p: dropout probability where the queries are the first stream's.
        second_p: dropout probability where the queries are the second stream's.
        max_first, max_second: upper bounds of the streams' sequence lengths, at most 128.

    Returns:
        The contexts of the first stream (n_1, heads * d) and of the second (n_2, heads * d).

    Raises:
        ValueError: as `short_attention`.
    """
    _check(first_qkv.shape[-1] % 3 == 0, f"first_qkv should be (n, 3 * heads * d) and is {tuple(first_qkv.shape)}")
    _check(
        second_qkv.dtype == first_qkv.dtype,
        f"second_qkv should be {first_qkv.dtype} like first_qkv and is {second_qkv.dtype}",
    )
    _check_side("first_qkv", first_qkv, first_qkv.shape[-1], first_starts, first_keys, 3 * heads, max_first)
    _check_side("second_qkv", second_qkv, first_qkv.shape[-1], second_starts, second_keys, 3 * heads, max_second)
    _check_call(first_p, first_starts, second_starts)
    _check_call(second_p, first_starts, second_starts)
    if not kernel_available(first_qkv, 3 * heads):
        q1, k1, v1 = first_qkv.chunk(3, -1)
        q2, k2, v2 = second_qkv.chunk(3, -1)
        first, second = (first_starts, first_keys, max_first), (second_starts, second_keys, max_second)
        return (
            _reference(q1, k2, v2, first, second, heads, site, first_p),
            _reference(q2, k1, v1, second, first, heads, site + 1, second_p),
        )
    return torch.ops.twelve_in_one.packed_cross_attention(
        first_qkv, second_qkv, first_starts, second_starts, first_keys, second_keys,
        heads, site, first_p, second_p, max_first, max_second,
    )  # fmt: skip


def runs_on(device: torch.device) -> bool:
    """Whether attention on packed rows has a kernel on this device."""
    return _HAS_TRITON and device.type == "cuda"


def kernel_available(x: Tensor, heads: int) -> bool:
    """Whether the Triton kernels compute attention over x (n, heads * d); otherwise the plain torch version does."""
    there = (_HAS_TRITON and x.is_cuda) or (_INTERPRETED and x.device.type == "cpu")
    return there and x.dtype in KERNEL_TYPES and x.shape[-1] // heads in KERNEL_HEAD_SIZES


def _check(right: bool, message: str) -> None:
    if not right:
        raise ValueError(message)


def _check_side(name: str, rows: Tensor, width: int, starts: Tensor, keys: Tensor, heads: int, longest: int) -> None:
    _check(
        rows.dim() == 2 and rows.shape[1] == width and width % heads == 0 and width > 0 and rows.is_floating_point(),
        f"{name} should be floating point (n, {width}) of {heads} heads and is {rows.dtype} {tuple(rows.shape)}",
    )
    _check(
        starts.dim() == 1 and starts.shape[0] > 0 and starts.dtype == torch.int32 and starts.is_contiguous(),
        f"starts of {name} should be contiguous int32 (B + 1,) and is {starts.dtype} {tuple(starts.shape)}",
    )
    _check(
        keys.dim() == 1 and keys.shape[0] == rows.shape[0] and keys.dtype == torch.int64 and keys.is_contiguous(),
        f"row keys of {name} should be contiguous int64 ({rows.shape[0]},) and is {keys.dtype} {tuple(keys.shape)}",
    )
    _check(
        starts.device == rows.device and keys.device == rows.device,
        f"starts and row keys of {name} should be on {rows.device} and are on {starts.device} and {keys.device}",
    )
    _check(1 <= longest <= MAX_LENGTH, f"the longest {name} sequence should be 1 to {MAX_LENGTH} and is {longest}")
    if not torch.compiler.is_compiling() and starts.device.type == "cpu" and starts.shape[0] > 1:
        lengths = starts.diff()
        _check(
            int(lengths.min()) >= 0 and int(lengths.max()) <= longest and int(starts[-1]) <= rows.shape[0],
            f"sequences of {name} should have 0 to {longest} rows and end within {rows.shape[0]} rows, and have "
            f"{int(lengths.min())} to {int(lengths.max())} and end at {int(starts[-1])}",
        )


def _check_call(p: float, first_starts: Tensor, second_starts: Tensor) -> None:
    _check(0 <= p < 1 and threshold(p, BITS) < 1 << BITS, f"p should be at least 0 and less than 1 and is {p}")
    _check(
        first_starts.shape == second_starts.shape,
        f"both sides should have the same number of sequences and have {first_starts.shape[0] - 1} and "
        f"{second_starts.shape[0] - 1}",
    )


# Plain torch


def short_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    query_keys: Tensor,
    key_keys: Tensor,
    heads: int,
    site: int,
    p: float,
    max_query: int,
    max_key: int,
) -> Tensor:
    """`short_attention` in plain torch operations: any device, float64 too, lengths over 128 too, differentiable."""
    query_side, key_side = (query_starts, query_keys, max_query), (key_starts, key_keys, max_key)
    return _reference(query, key, value, query_side, key_side, heads, site, p)


def _reference(query, key, value, query_side, key_side, heads: int, site: int, p: float) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):  # autocast would round the float32 scores
        return _padded_attention(query, key, value, query_side, key_side, heads, site, p)


def _padded_attention(query, key, value, query_side, key_side, heads: int, site: int, p: float) -> Tensor:
    query_index, query_there = _padded_index(query_side[0], query_side[2], query.shape[0])
    key_index, key_there = _padded_index(key_side[0], key_side[2], key.shape[0])

    def padded(rows, index, there):
        """(n, heads * d) -> (B, heads, L, d). Masked, because the rows at padding positions may contain NaN."""
        return rows[index].masked_fill(~there[..., None], 0).unflatten(-1, (heads, -1)).transpose(1, 2)

    if query.shape[0] == 0 or key.shape[0] == 0 or query_index.shape[0] == 0:
        return query * 0 + key.sum() * 0 + value.sum() * 0  # zeros that have a gradient
    q = padded(query, query_index, query_there)
    k, v = padded(key, key_index, key_there), padded(value, key_index, key_there)
    accumulate = torch.promote_types(query.dtype, torch.float32)
    scores = (q.to(accumulate) @ k.to(accumulate).transpose(-1, -2)) / math.sqrt(q.shape[-1])
    mask = key_there[:, None, None, :]
    # Softmax of a row without keys would be NaN: such a row is computed from zeros and masked.
    scores = scores.masked_fill(~mask, -math.inf).masked_fill(~mask.any(-1, keepdim=True), 0)
    probabilities = scores.softmax(-1).masked_fill(~mask, 0)
    if p > 0:
        probabilities = attention_dropout(probabilities, query_side[1][query_index], key_side[1][key_index], site, p)
    context = (probabilities.to(v.dtype) @ v).transpose(1, 2).flatten(2)
    row = torch.arange(query.shape[0], device=query.device, dtype=query_side[0].dtype)
    sequence = (torch.searchsorted(query_side[0], row, right=True) - 1).clamp(0, query_index.shape[0] - 1)
    position = (row - query_side[0][sequence]).clamp(0, query_side[2] - 1)
    return context[sequence, position].masked_fill((row >= query_side[0][-1])[:, None], 0)


def _padded_index(starts: Tensor, longest: int, rows: int) -> tuple[Tensor, Tensor]:
    """Row of each position of the padded batch, int64 (B, longest), and whether it is valid, bool (B, longest)."""
    place = torch.arange(longest, device=starts.device)
    there = place < (starts[1:] - starts[:-1])[:, None]
    return (starts[:-1, None] + place).clamp(max=max(rows - 1, 0)), there


# Operators


def _kernels():
    """The module of Triton kernels, imported on first use, because Triton is optional."""
    from ops import short_attention_kernels

    return short_attention_kernels


def _forward(query, key, value, query_side, key_side, heads: int, site: int, p: float) -> Tensor:
    out = query.new_empty(query.shape)
    limit = threshold(p, BITS)
    _kernels().forward(query, key, value, out, query_side, key_side, heads, site, limit, keep_scale(p, BITS))
    return out


def _backward(grad, query, key, value, dq, dk, dv, query_side, key_side, heads: int, site: int, p: float) -> None:
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()  # for example, that of `out.sum()` is expanded
    limit = threshold(p, BITS)
    _kernels().backward(
        grad, query, key, value, dq, dk, dv, query_side, key_side, heads, site, limit, keep_scale(p, BITS)
    )  # fmt: skip


def _attention(q, k, v, q_starts, k_starts, q_keys, k_keys, heads, site, p, max_query, max_key):
    return _forward(q, k, v, (q_starts, q_keys, max_query), (k_starts, k_keys, max_key), heads, site, p)


def _attention_backward(grad, q, k, v, q_starts, k_starts, q_keys, k_keys, heads, site, p, max_query, max_key):
    gradients = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    sides = (q_starts, q_keys, max_query), (k_starts, k_keys, max_key)
    _backward(grad, q, k, v, *gradients, *sides, heads, site, p)
    return gradients


def _self_attention(qkv, starts, keys, heads, site, p, max_length):
    side = starts, keys, max_length
    return _forward(*qkv.chunk(3, -1), side, side, heads, site, p)


def _self_attention_backward(grad, qkv, starts, keys, heads, site, p, max_length):
    gradient = qkv.new_empty(qkv.shape)
    side = starts, keys, max_length
    _backward(grad, *qkv.chunk(3, -1), *gradient.chunk(3, -1), side, side, heads, site, p)
    return gradient


def _cross_attention(a, b, a_starts, b_starts, a_keys, b_keys, heads, site, a_p, b_p, max_a, max_b):
    qa, ka, va = a.chunk(3, -1)
    qb, kb, vb = b.chunk(3, -1)
    a_side, b_side = (a_starts, a_keys, max_a), (b_starts, b_keys, max_b)
    return (
        _forward(qa, kb, vb, a_side, b_side, heads, site, a_p),
        _forward(qb, ka, va, b_side, a_side, heads, site + 1, b_p),
    )


def _cross_attention_backward(
    a_grad, b_grad, a, b, a_starts, b_starts, a_keys, b_keys, heads, site, a_p, b_p, max_a, max_b
):
    """Each direction writes the query part of one fused gradient, and the key and value parts of the other."""
    qa, ka, va = a.chunk(3, -1)
    qb, kb, vb = b.chunk(3, -1)
    gradients = a.new_empty(a.shape), b.new_empty(b.shape)
    dqa, dka, dva = gradients[0].chunk(3, -1)
    dqb, dkb, dvb = gradients[1].chunk(3, -1)
    a_side, b_side = (a_starts, a_keys, max_a), (b_starts, b_keys, max_b)
    _backward(a_grad, qa, kb, vb, dqa, dkb, dvb, a_side, b_side, heads, site, a_p)
    _backward(b_grad, qb, ka, va, dqb, dka, dva, b_side, a_side, heads, site + 1, b_p)
    return gradients


def _contexts(*rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape[0], x.shape[1] // 3) for x in rows)


_SIDES = "Tensor query_starts, Tensor key_starts, Tensor query_keys, Tensor key_keys"
_CALL = "int heads, int site, float p"
_ONE = f"Tensor query, Tensor key, Tensor value, {_SIDES}, {_CALL}, int max_query, int max_key"
_SELF = f"Tensor qkv, Tensor starts, Tensor keys, {_CALL}, int max_length"
_CROSS = (
    "Tensor first_qkv, Tensor second_qkv, Tensor first_starts, Tensor second_starts, Tensor first_keys, "
    "Tensor second_keys, int heads, int site, float first_p, float second_p, int max_first, int max_second"
)
# name: (arguments, number of saved tensors, of gradients, implementation, fake, backward implementation)
_OPERATORS = {
    "short_attention": (_ONE, 7, 3, _attention, lambda q, *_: q.new_empty(q.shape), _attention_backward),
    "packed_self_attention": (_SELF, 3, 1, _self_attention, lambda x, *_: _contexts(x)[0], _self_attention_backward),
    "packed_cross_attention": (_CROSS, 6, 2, _cross_attention, lambda a, b, *_: _contexts(a, b),
                               _cross_attention_backward),
}  # fmt: skip


def _register(library: torch.library.Library) -> None:
    """Defines each operator and its backward operator, with fake implementations for torch.compile and autograd."""
    for name, (arguments, tensors, gradients, forward, fake, backward) in _OPERATORS.items():
        contexts = 2 if name == "packed_cross_attention" else 1
        incoming = ", ".join(f"Tensor grad{i}" for i in range(contexts))
        library.define(f"{name}({arguments}) -> {_returns(contexts)}")
        library.define(f"{name}_backward({incoming}, {arguments}) -> {_returns(gradients)}")
        for device in ("CPU", "CUDA"):
            library.impl(name, forward, device)
            library.impl(f"{name}_backward", backward, device)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
        torch.library.register_fake(f"{NAMESPACE}::{name}_backward", _fake_gradients(contexts, gradients), lib=library)
        derivative, keep = _derivative(name, tensors, contexts, gradients)
        torch.library.register_autograd(f"{NAMESPACE}::{name}", derivative, setup_context=keep, lib=library)


def _returns(count: int) -> str:
    return "Tensor" if count == 1 else "(" + ", ".join(["Tensor"] * count) + ")"


def _fake_gradients(contexts: int, gradients: int):
    def fake(*arguments):
        rows = arguments[contexts : contexts + gradients]
        empty = tuple(x.new_empty(x.shape) for x in rows)
        return empty if gradients > 1 else empty[0]

    return fake


def _derivative(name: str, tensors: int, contexts: int, gradients: int):
    """Backward and setup_context functions of an operator whose first `gradients` arguments are differentiable."""

    def keep(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.call = inputs[tensors:]

    def derivative(ctx, *incoming):
        backward = getattr(torch.ops.twelve_in_one, f"{name}_backward")
        found = backward(*incoming, *ctx.saved_tensors, *ctx.call)
        found = found if gradients > 1 else (found,)
        return (*found, *[None] * (tensors - gradients + len(ctx.call)))

    return derivative, keep


_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_register(_library)
