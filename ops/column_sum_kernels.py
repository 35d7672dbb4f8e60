"""Triton kernels of ops/column_sum.py, imported on first use."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 128  # tile size: 256 contiguous bytes of each row in 16 bits
PROGRAMS = 1024  # approximate number of programs that run concurrently on a GPU


@triton.jit
def _partial_kernel(x, partial, n, h, stride, rows_each, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of `rows_each` rows of a block of columns; program (part, block) writes partial[part, block]."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < h
    first = tl.program_id(0) * rows_each
    end = tl.minimum(first + rows_each, n)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    while first < end:
        rows = first + tl.arange(0, ROWS)
        places = rows.to(tl.int64)[:, None] * stride + columns[None, :]
        total += tl.load(x + places, mask=(rows < end)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        first += ROWS
    tl.store(partial + tl.program_id(0) * h + columns, tl.sum(total, 0), mask=inside)


@triton.jit
def _add_kernel(partial, out, parts, h, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = 0
    while first < parts:
        rows = first + tl.arange(0, ROWS)
        places = rows[:, None] * h + columns[None, :]
        total += tl.load(partial + places, mask=(rows < parts)[:, None] & (columns < h)[None, :], other=0.0)
        first += ROWS
    tl.store(out + columns, tl.sum(total, 0), mask=columns < h)


def column_sum(x: Tensor) -> Tensor:
    """See ops.column_sum."""
    n, h = x.shape
    if n == 0 or h == 0:
        return x.new_zeros(h, dtype=torch.float32)
    x = x if x.stride(1) == 1 else x.contiguous()
    blocks = triton.cdiv(h, COLUMNS)
    parts = max(1, min(triton.cdiv(n, 2 * ROWS), PROGRAMS // blocks))
    rows_each = triton.cdiv(triton.cdiv(n, parts), ROWS) * ROWS
    parts = triton.cdiv(n, rows_each)
    partial = torch.empty(parts, h, dtype=torch.float32, device=x.device)
    out = torch.empty(h, dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        _partial_kernel[(parts, blocks)](x, partial, n, h, x.stride(0), rows_each, ROWS, COLUMNS, num_warps=4)
        _add_kernel[(triton.cdiv(h, 32),)](partial, out, parts, h, 32, 32, num_warps=4)
    return out
