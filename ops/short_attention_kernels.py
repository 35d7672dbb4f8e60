"""Triton kernels of ops/short_attention.py. This module imports triton, so it is imported on first use.

One program handles one sequence and one head, and all keys of a sequence fit one tile. The softmax therefore needs no
second pass over the keys, and the backward pass recomputes the probabilities instead of loading saved statistics: in
the matrix-multiply layout the maximum and the sum of a row cost two shuffles each, and only the inputs are saved. One
program writes dq, dk and dv of a (sequence, head), without atomics, so the results are deterministic.

By count of bytes and operations, not yet measured, the kernels should be bound by memory at these lengths, followed by
the elementwise work on a tile (exponentials and random numbers). That work grows with the tile and not with the
sequence, so a program uses the smallest tile that fits its sequence: see `CHOOSE`.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MULTIPLIER1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MULTIPLIER2 = tl.constexpr(0x94D049BB133111EB)
_TAIL_ROWS = tl.constexpr(16)  # rows beyond the last sequence that one store clears


@triton.jit
def _mix(x):
    """splitmix64's finaliser on uint64, as shards/common/counter_rng.py `mix`."""
    x = (x ^ (x >> 30)) * _MULTIPLIER1
    x = (x ^ (x >> 27)) * _MULTIPLIER2
    return x ^ (x >> 31)


@triton.jit
def _kept(query_hash, key_keys, limit):
    """Whether a probability is kept by dropout: mix(query_hash + key_key) >> 40 >= limit >> 8.

    The last step of `mix`, x ^ (x >> 31), changes bits 0 to 32 only; a comparison of bits 40 to 63 does not need it.
    limit: uint32, the dropout threshold of 24 bits shifted to the top.
    """
    x = query_hash[:, None] + key_keys[None, :]
    x = (x ^ (x >> 30)) * _MULTIPLIER1
    x = (x ^ (x >> 27)) * _MULTIPLIER2
    return (x >> 32).to(tl.uint32) >= limit


@triton.jit
def _rows(pointer, stride, rows, count, D: tl.constexpr):
    """Rows of a (count, D) matrix with this row stride; zeros where rows >= count."""
    columns = tl.arange(0, D)
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=(rows < count)[:, None], other=0.0)


@triton.jit
def _store(pointer, stride, rows, count, values, D: tl.constexpr):
    columns = tl.arange(0, D)
    pointers = pointer + rows[:, None] * stride + columns[None, :]
    tl.store(pointers, values.to(pointer.dtype.element_ty), mask=(rows < count)[:, None])


@triton.jit
def _clear_tail(pointer, stride, begin, end, D: tl.constexpr):
    """Zeroes rows [begin, end) of this head, divided over the programs of the sequences; mostly none or one block."""
    columns = tl.arange(0, D)
    zeros = tl.zeros((_TAIL_ROWS, D), pointer.dtype.element_ty)
    first = begin + tl.program_id(1) * _TAIL_ROWS
    while first < end:  # a `for` over a range of tensors needs numpy < 2.4 in Triton's interpreter
        rows = first + tl.arange(0, _TAIL_ROWS)
        pointers = pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        tl.store(pointers, zeros, mask=(rows < end)[:, None])
        first += tl.num_programs(1) * _TAIL_ROWS


@triton.jit
def _probabilities(q, k, key_rows, n_keys, scale2, PRECISION: tl.constexpr):
    """Softmax over the keys, float32; zeros for rows without keys. scale2: log2(e) / sqrt(d)."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
    scores = tl.where((key_rows < n_keys)[None, :], scores, float("-inf"))
    largest = tl.max(scores, 1)
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    powers = tl.exp2(scores - largest[:, None])
    total = tl.sum(powers, 1)
    return powers * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]


@triton.jit
def _query_hash(query_keys, rows, n_queries, number):
    """mix(query_key + number * GOLDEN) as uint64; number: site * heads + head + 1."""
    keys = tl.load(query_keys + rows, mask=rows < n_queries, other=0).to(tl.uint64, bitcast=True)
    return _mix(keys + number.to(tl.uint64) * _GOLDEN)


@triton.jit
def _key_keys(key_keys, rows, n_keys):
    return tl.load(key_keys + rows, mask=rows < n_keys, other=0).to(tl.uint64, bitcast=True)


@triton.jit
def _forward_block(
    query, out, query_keys, k, v, kk, rows, columns, n_queries, n_keys, query_stride, out_stride,
    number, limit, keep_scale, scale2, D: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The context of a block of queries."""
    q = _rows(query, query_stride, rows, n_queries, D)
    p = _probabilities(q, k, columns, n_keys, scale2, PRECISION)
    if DROPOUT:
        kept = _kept(_query_hash(query_keys, rows, n_queries, number), kk, limit)
        p = tl.where(kept, p * keep_scale, 0.0)
    context = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    _store(out, out_stride, rows, n_queries, context, D)


@triton.jit
def _forward_tile(
    query, key, value, out, query_keys, key_keys, n_queries, n_keys,
    query_stride, key_stride, value_stride, out_stride, number, limit, keep_scale, scale2,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, LOOP: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of one (sequence, head); tiles of M queries by N keys, n_keys <= N, n_queries <= M without LOOP."""
    columns = tl.arange(0, N)
    k = _rows(key, key_stride, columns, n_keys, D)
    v = _rows(value, value_stride, columns, n_keys, D)
    kk = columns
    if DROPOUT:
        kk = _key_keys(key_keys, columns, n_keys)
    rows = tl.arange(0, M)
    if LOOP:
        first = 0
        while first < n_queries:
            _forward_block(query, out, query_keys, k, v, kk, first + rows, columns, n_queries, n_keys, query_stride,
                           out_stride, number, limit, keep_scale, scale2, D, DROPOUT, PRECISION)  # fmt: skip
            first += M
    else:
        _forward_block(query, out, query_keys, k, v, kk, rows, columns, n_queries, n_keys, query_stride,
                       out_stride, number, limit, keep_scale, scale2, D, DROPOUT, PRECISION)  # fmt: skip


@triton.jit
def _backward_block(
    q, k, v, do, query_keys, kk, rows, columns, n_queries, n_keys, number, limit, keep_scale, scale2,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Dropped probabilities and the scores' gradient (before the factor 1 / sqrt(d)), both (M, N) in q's dtype.

    Rows without a query have q = do = 0, so they add nothing to any gradient.
    """
    p = _probabilities(q, k, columns, n_keys, scale2, PRECISION)
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    dropped = p
    if DROPOUT:
        kept = _kept(_query_hash(query_keys, rows, n_queries, number), kk, limit)
        dropped = tl.where(kept, p * keep_scale, 0.0)
        dp = tl.where(kept, dp * keep_scale, 0.0)
    # sum(p * dp) equals the usual sum(out * do), and needs neither `out` nor another pass.
    ds = p * (dp - tl.sum(p * dp, 1)[:, None])
    return dropped.to(q.dtype), ds.to(q.dtype)


@triton.jit
def _backward_tile(
    grad, query, key, value, dq, dk, dv, query_keys, key_keys, n_queries, n_keys,
    grad_stride, query_stride, key_stride, value_stride, dq_stride, dk_stride, dv_stride,
    number, limit, keep_scale, scale2, scale,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, LOOP: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of one (sequence, head); tiles as in _forward_tile."""
    columns = tl.arange(0, N)
    k = _rows(key, key_stride, columns, n_keys, D)
    v = _rows(value, value_stride, columns, n_keys, D)
    kk = columns
    if DROPOUT:
        kk = _key_keys(key_keys, columns, n_keys)
    if LOOP:
        dk_sum = tl.zeros((N, D), tl.float32)
        dv_sum = tl.zeros((N, D), tl.float32)
        first = 0
        while first < n_queries:
            rows = first + tl.arange(0, M)
            q = _rows(query, query_stride, rows, n_queries, D)
            do = _rows(grad, grad_stride, rows, n_queries, D)
            dropped, ds = _backward_block(
                q, k, v, do, query_keys, kk, rows, columns, n_queries, n_keys, number, limit, keep_scale, scale2,
                DROPOUT, PRECISION,
            )  # fmt: skip
            dv_sum = tl.dot(tl.trans(dropped), do, dv_sum, input_precision=PRECISION)
            dk_sum = tl.dot(tl.trans(ds), q, dk_sum, input_precision=PRECISION)
            _store(dq, dq_stride, rows, n_queries, tl.dot(ds, k, input_precision=PRECISION) * scale, D)
            first += M
        _store(dv, dv_stride, columns, n_keys, dv_sum, D)
        _store(dk, dk_stride, columns, n_keys, dk_sum * scale, D)
    else:
        # Each product is stored before the next one starts, so that only one (N, D) accumulator is in registers.
        rows = tl.arange(0, M)
        q = _rows(query, query_stride, rows, n_queries, D)
        do = _rows(grad, grad_stride, rows, n_queries, D)
        dropped, ds = _backward_block(
            q, k, v, do, query_keys, kk, rows, columns, n_queries, n_keys, number, limit, keep_scale, scale2,
            DROPOUT, PRECISION,
        )  # fmt: skip
        _store(dv, dv_stride, columns, n_keys, tl.dot(tl.trans(dropped), do, input_precision=PRECISION), D)
        _store(dq, dq_stride, rows, n_queries, tl.dot(ds, k, input_precision=PRECISION) * scale, D)
        _store(dk, dk_stride, columns, n_keys, tl.dot(tl.trans(ds), q, input_precision=PRECISION) * scale, D)


@triton.jit(do_not_specialize=["total_queries", "first_number", "limit"])
def forward_kernel(
    query, key, value, out, query_starts, key_starts, query_keys, key_keys, total_queries,
    query_stride, key_stride, value_stride, out_stride, first_number, limit, keep_scale, scale2,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, LOOP: tl.constexpr, CHOOSE: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (heads, sequences): heads of a sequence are neighbours, because they share memory pages.

    M, N: tile size for the longest queries and keys. CHOOSE: the sides, "both", "query", "key" or "none", on which a
    program with a length of at most 16 or 32 uses a tile of that size. LOOP: more than one tile of queries.
    """
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    last = tl.load(query_starts + tl.num_programs(1))
    q_start = tl.load(query_starts + sequence)
    n_queries = tl.load(query_starts + sequence + 1) - q_start
    k_start = tl.load(key_starts + sequence)
    n_keys = tl.load(key_starts + sequence + 1) - k_start
    out += head * D
    _clear_tail(out, out_stride, last, total_queries, D)
    number = (first_number + head).to(tl.int64)
    limit = limit.to(tl.uint32)
    query += q_start.to(tl.int64) * query_stride + head * D
    key += k_start.to(tl.int64) * key_stride + head * D
    value += k_start.to(tl.int64) * value_stride + head * D
    out += q_start.to(tl.int64) * out_stride
    query_keys += q_start
    key_keys += k_start
    if CHOOSE == "none":
        _forward_tile(query, key, value, out, query_keys, key_keys, n_queries, n_keys, query_stride, key_stride,
                      value_stride, out_stride, number, limit, keep_scale, scale2,
                      D, M, N, LOOP, DROPOUT, PRECISION)  # fmt: skip
    else:
        length = tl.maximum(n_queries, n_keys)
        if CHOOSE == "query":
            length = n_queries
        if CHOOSE == "key":
            length = n_keys
        if length <= 16:
            _forward_tile(query, key, value, out, query_keys, key_keys, n_queries, n_keys, query_stride, key_stride,
                          value_stride, out_stride, number, limit, keep_scale, scale2,
                          D, M if CHOOSE == "key" else 16, N if CHOOSE == "query" else 16,
                          LOOP and CHOOSE == "key", DROPOUT, PRECISION)  # fmt: skip
        elif length <= 32:
            _forward_tile(query, key, value, out, query_keys, key_keys, n_queries, n_keys, query_stride, key_stride,
                          value_stride, out_stride, number, limit, keep_scale, scale2,
                          D, M if CHOOSE == "key" else 32, N if CHOOSE == "query" else 32,
                          LOOP and CHOOSE == "key", DROPOUT, PRECISION)  # fmt: skip
        else:
            _forward_tile(query, key, value, out, query_keys, key_keys, n_queries, n_keys, query_stride, key_stride,
                          value_stride, out_stride, number, limit, keep_scale, scale2,
                          D, M, N, LOOP, DROPOUT, PRECISION)  # fmt: skip


@triton.jit(do_not_specialize=["total_queries", "total_keys", "first_number", "limit"])
def backward_kernel(
    grad, query, key, value, dq, dk, dv, query_starts, key_starts, query_keys, key_keys, total_queries, total_keys,
    grad_stride, query_stride, key_stride, value_stride, dq_stride, dk_stride, dv_stride,
    first_number, limit, keep_scale, scale2, scale,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, LOOP: tl.constexpr, CHOOSE: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid and tiles as in forward_kernel; every element of dq, dk and dv is written exactly once."""
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    last_query = tl.load(query_starts + tl.num_programs(1))
    last_key = tl.load(key_starts + tl.num_programs(1))
    q_start = tl.load(query_starts + sequence)
    n_queries = tl.load(query_starts + sequence + 1) - q_start
    k_start = tl.load(key_starts + sequence)
    n_keys = tl.load(key_starts + sequence + 1) - k_start
    dq += head * D
    dk += head * D
    dv += head * D
    _clear_tail(dq, dq_stride, last_query, total_queries, D)
    _clear_tail(dk, dk_stride, last_key, total_keys, D)
    _clear_tail(dv, dv_stride, last_key, total_keys, D)
    number = (first_number + head).to(tl.int64)
    limit = limit.to(tl.uint32)
    grad += q_start.to(tl.int64) * grad_stride + head * D
    query += q_start.to(tl.int64) * query_stride + head * D
    key += k_start.to(tl.int64) * key_stride + head * D
    value += k_start.to(tl.int64) * value_stride + head * D
    dq += q_start.to(tl.int64) * dq_stride
    dk += k_start.to(tl.int64) * dk_stride
    dv += k_start.to(tl.int64) * dv_stride
    query_keys += q_start
    key_keys += k_start
    if CHOOSE == "none":
        _backward_tile(grad, query, key, value, dq, dk, dv, query_keys, key_keys, n_queries, n_keys, grad_stride,
                       query_stride, key_stride, value_stride, dq_stride, dk_stride, dv_stride,
                       number, limit, keep_scale, scale2, scale, D, M, N, LOOP, DROPOUT, PRECISION)  # fmt: skip
    else:
        length = tl.maximum(n_queries, n_keys)
        if CHOOSE == "query":
            length = n_queries
        if CHOOSE == "key":
            length = n_keys
        if length <= 16:
            _backward_tile(grad, query, key, value, dq, dk, dv, query_keys, key_keys, n_queries, n_keys, grad_stride,
                           query_stride, key_stride, value_stride, dq_stride, dk_stride, dv_stride,
                           number, limit, keep_scale, scale2, scale,
                           D, M if CHOOSE == "key" else 16, N if CHOOSE == "query" else 16,
                           LOOP and CHOOSE == "key", DROPOUT, PRECISION)  # fmt: skip
        elif length <= 32:
            _backward_tile(grad, query, key, value, dq, dk, dv, query_keys, key_keys, n_queries, n_keys, grad_stride,
                           query_stride, key_stride, value_stride, dq_stride, dk_stride, dv_stride,
                           number, limit, keep_scale, scale2, scale,
                           D, M if CHOOSE == "key" else 32, N if CHOOSE == "query" else 32,
                           LOOP and CHOOSE == "key", DROPOUT, PRECISION)  # fmt: skip
        else:
            _backward_tile(grad, query, key, value, dq, dk, dv, query_keys, key_keys, n_queries, n_keys, grad_stride,
                           query_stride, key_stride, value_stride, dq_stride, dk_stride, dv_stride,
                           number, limit, keep_scale, scale2, scale, D, M, N, LOOP, DROPOUT, PRECISION)  # fmt: skip


@dataclass(frozen=True)
class Tiles:
    """Compilation parameters of a kernel: m, n, loop and choose are M, N, LOOP and CHOOSE of forward_kernel.

    registers: upper bound per thread, None for the compiler's choice; with fewer, more programs share a multiprocessor.
    """

    m: int
    n: int
    loop: bool
    choose: str
    warps: int
    registers: int | None = None


def tiles(backward: bool, dtype: torch.dtype, d: int, max_query: int, max_key: int, same: bool) -> Tiles:
    """Tile sizes and warps for lengths up to these bounds. same: self-attention, with equal sequences on both sides.

    Registers and shared memory were counted by compiling ahead of time for sm_90.
    """
    m, n = (max(16, triton.next_power_of_2(longest)) for longest in (max_query, max_key))
    if dtype == torch.float32:
        # Not for speed: exact products use no tensor cores. Larger tiles or fewer warps spill kilobytes per thread.
        return Tiles(16, n, max_query > 16, "none", 16)
    # Only the shorter side (the text) has sequences far below its bound in practice; more variants cost compile time.
    choose = "both" if same else "query" if max_query < max_key else "key"
    if (m if choose == "query" else n) <= 16 or (same and n > 64):
        choose = "none"
    return Tiles(m, n, False, choose, 8 if max(m, n) > 64 else 4)


def forward(query, key, value, out, query_side, key_side, heads, site, limit, keep_scale, chosen=None) -> None:
    """Writes the context to `out`. Sides: (starts, row keys, upper bound of the lengths)."""
    (query_starts, query_keys, max_query), (key_starts, key_keys, max_key) = query_side, key_side
    d, sequences = query.shape[1] // heads, query_starts.shape[0] - 1
    if sequences == 0 or query.shape[0] == 0:
        out.zero_()
        return
    query, key, value = map(_contiguous_rows, (query, key, value))
    c = chosen or tiles(False, query.dtype, d, max_query, max_key, query_starts.data_ptr() == key_starts.data_ptr())
    with _device(query):
        forward_kernel[(heads, sequences)](
            query, key, value, out, query_starts, key_starts, query_keys, key_keys, query.shape[0],
            query.stride(0), key.stride(0), value.stride(0), out.stride(0),
            site * heads + 1, limit << 8, keep_scale, _LOG2E * d**-0.5,
            D=d, M=c.m, N=c.n, LOOP=c.loop, CHOOSE=c.choose, DROPOUT=limit > 0, PRECISION="ieee",
            num_warps=c.warps, maxnreg=c.registers,
        )  # fmt: skip


def backward(
    grad, query, key, value, dq, dk, dv, query_side, key_side, heads, site, limit, keep_scale, chosen=None
) -> None:
    """Writes every element of the gradients dq, dk and dv, which may be chunks of fused buffers."""
    (query_starts, query_keys, max_query), (key_starts, key_keys, max_key) = query_side, key_side
    d, sequences = query.shape[1] // heads, query_starts.shape[0] - 1
    if sequences == 0 or query.shape[0] == 0 or key.shape[0] == 0:
        for gradient in (dq, dk, dv):
            gradient.zero_()
        return
    query, key, value = map(_contiguous_rows, (query, key, value))
    c = chosen or tiles(True, query.dtype, d, max_query, max_key, query_starts.data_ptr() == key_starts.data_ptr())
    with _device(query):
        backward_kernel[(heads, sequences)](
            grad, query, key, value, dq, dk, dv, query_starts, key_starts, query_keys, key_keys,
            query.shape[0], key.shape[0], grad.stride(0), query.stride(0), key.stride(0), value.stride(0),
            dq.stride(0), dk.stride(0), dv.stride(0),
            site * heads + 1, limit << 8, keep_scale, _LOG2E * d**-0.5, d**-0.5,
            D=d, M=c.m, N=c.n, LOOP=c.loop, CHOOSE=c.choose, DROPOUT=limit > 0, PRECISION="ieee",
            num_warps=c.warps, maxnreg=c.registers,
        )  # fmt: skip


_LOG2E = 1.4426950408889634


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _device(x: Tensor):
    """Context manager for the device of x, because Triton launches kernels on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
