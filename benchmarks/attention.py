"""Attention on packed rows, ops/short_attention.py, against torch's fused attention on padded rows. Needs a GPU.

    python benchmarks/attention.py [--repeats 30] [--sweep]

Forward and backward in bf16 with dropout 0.1, from fused projections to packed contexts and back to the gradients of
the projections; the padded variant includes the copies between packed and padded rows if the lengths vary. Both are
captured in a CUDA graph, so that the figures are GPU times without Python overhead. --sweep times only the kernels
with other tiles, warps and register bounds. Only torch and Triton are imported, so that few packages are needed.
"""

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import torch
import torch.nn.functional as F

from ops.short_attention import packed_cross_attention, packed_self_attention

BATCH = 512
P = 0.1


@dataclasses.dataclass
class Side:
    """One stream of a batch: its fused projection, and the layout of its sequences, packed and padded."""

    qkv: torch.Tensor
    starts: torch.Tensor
    keys: torch.Tensor
    longest: int
    mask: torch.Tensor
    index: torch.Tensor | None

    def pad(self, x):
        if self.index is None:
            return x.unflatten(0, self.mask.shape)
        return x.new_zeros(self.mask.numel(), x.shape[-1]).index_copy(0, self.index, x).unflatten(0, self.mask.shape)

    def pack(self, x):
        return x.flatten(0, 1) if self.index is None else x.flatten(0, 1).index_select(0, self.index)


def side(lengths, width: int, seed: int) -> Side:
    lengths = torch.as_tensor(lengths)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int().cuda()
    longest, count = int(lengths.max()), int(lengths.sum())
    mask = (torch.arange(longest) < lengths[:, None]).cuda()
    generator = torch.Generator("cuda").manual_seed(seed)
    qkv = torch.randn(count, 3 * width, device="cuda", generator=generator).bfloat16().requires_grad_()
    keys = torch.randint(-(2**62), 2**62, (count,), device="cuda", generator=generator)
    index = None if count == mask.numel() else mask.flatten().nonzero()[:, 0]
    return Side(qkv, starts, keys, longest, mask, index)


def text_lengths(low: int, high: int, mean: float):
    """BATCH lengths between low and high, with about this mean, including the highest."""
    generator = torch.Generator().manual_seed(0)
    scale = (mean - low) * 1.05
    lengths = low - torch.log(torch.rand(BATCH, generator=generator)) * scale
    lengths = lengths.round().long().clamp(low, high)
    lengths[0] = high
    return lengths


def split(x, heads):
    return (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in x.chunk(3, -1))


def attend(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, mask[:, None, None], P).transpose(1, 2).flatten(2)


def self_variants(x: Side, heads: int):
    def padded():
        return (x.pack(attend(*split(x.pad(x.qkv), heads), x.mask)),)

    def packed():
        return (packed_self_attention(x.qkv, x.starts, x.keys, heads, 0, P, x.longest),)

    return padded, packed, [x.qkv]


def cross_variants(x: Side, y: Side, heads: int):
    def padded():
        (q1, k1, v1), (q2, k2, v2) = split(x.pad(x.qkv), heads), split(y.pad(y.qkv), heads)
        return x.pack(attend(q1, k2, v2, y.mask)), y.pack(attend(q2, k1, v1, x.mask))

    def packed():
        return packed_cross_attention(
            x.qkv, y.qkv, x.starts, y.starts, x.keys, y.keys, heads, 0, P, P, x.longest, y.longest
        )

    return padded, packed, [x.qkv, y.qkv]


def milliseconds(function, repeats: int) -> float:
    """Median GPU time of one call, replayed as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


def forward_and_backward(function, inputs):
    weights = [torch.randn_like(y) for y in function()]
    return lambda: torch.autograd.grad(function(), inputs, weights)


def cases():
    """(name, heads, head size, sides): one side is self-attention, two are both directions of co-attention."""
    images, captions = [37] * BATCH, text_lengths(5, 36, 12)
    detailed, questions = [101] * BATCH, text_lengths(20, 56, 26)
    yield "image 37", 8, 128, [side(images, 1024, 1)]
    yield "text 5-36", 12, 64, [side(captions, 768, 2)]
    yield "co-attention 37 and 5-36", 8, 128, [side(images, 1024, 3), side(captions, 1024, 4)]
    yield "image 101", 8, 128, [side(detailed, 1024, 5)]
    yield "text 20-56", 12, 64, [side(questions, 768, 6)]
    yield "co-attention 101 and 20-56", 8, 128, [side(detailed, 1024, 7), side(questions, 1024, 8)]


def measured(repeats: int):
    """Yields (name, heads, head size, padded ms, packed ms, GB/s of the packed variant) of each case."""
    for name, heads, d, sides in cases():
        padded, packed, inputs = self_variants(*sides, heads) if len(sides) == 1 else cross_variants(*sides, heads)
        slow = milliseconds(forward_and_backward(padded, inputs), repeats)
        fast = milliseconds(forward_and_backward(packed, inputs), repeats)
        # Minimum traffic: q, k, v read twice and their gradients written; the context written and its gradient read.
        yield name, heads, d, slow, fast, sum(3 * x.qkv.nbytes + 2 * x.qkv.nbytes / 3 for x in sides) / fast / 1e6


def compare(repeats: int) -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {BATCH}, bf16, dropout {P}")
    print(f"{'forward and backward':<28} {'heads x d':>9} {'padded ms':>10} {'packed ms':>10} {'ratio':>6} {'GB/s':>6}")
    for name, heads, d, slow, fast, rate in measured(repeats):
        print(f"{name:<28} {heads:>4} x {d:<3} {slow:>9.3f} {fast:>10.3f} {slow / fast:>6.2f} {rate:>6.0f}", flush=True)


def alternatives(tiles, backward: bool):
    """Yields the chosen tiles and alternatives."""
    yield tiles
    for warps in {2, 4, 8} - {tiles.warps}:
        yield dataclasses.replace(tiles, warps=warps)
    if tiles.choose != "none":
        yield dataclasses.replace(tiles, choose="none")
    for registers in (128, 168) if backward else (80, 128):
        if registers * tiles.warps * 32 <= 65536:
            yield dataclasses.replace(tiles, registers=registers)
    for m in (32, 64):
        if m < tiles.m:
            yield dataclasses.replace(tiles, m=m, loop=True, choose="none")


def sweep(repeats: int) -> None:
    """Times each kernel with each alternative, and each direction of co-attention separately."""
    from ops import short_attention_kernels as kernels

    for name, heads, d, sides in cases():
        for x, y in [(sides[0], sides[-1]), (sides[-1], sides[0])][: len(sides)]:
            (q, _, _), (_, k, v) = x.qkv.detach().chunk(3, -1), y.qkv.detach().chunk(3, -1)
            dq, dk, dv = (torch.empty_like(part) for part in (q, k, v))
            out, grad = torch.empty_like(q), torch.randn_like(q)
            call = (x.starts, x.keys, x.longest), (y.starts, y.keys, y.longest), heads, 0, round(P * 2**24), 1 / (1 - P)
            for backward in (False, True):
                chosen = kernels.tiles(backward, q.dtype, d, x.longest, y.longest, x is y)
                print(f"{name}, {x.longest} over {y.longest}, {'backward' if backward else 'forward'}")
                for tiles in alternatives(chosen, backward):
                    if backward:
                        arguments = grad, q, k, v, dq, dk, dv, *call, tiles
                        function = lambda a=arguments: kernels.backward(*a)  # noqa: E731
                    else:
                        arguments = q, k, v, out, *call, tiles
                        function = lambda a=arguments: kernels.forward(*a)  # noqa: E731
                    try:
                        result = f"{milliseconds(function, repeats):8.4f} ms"
                    except Exception as error:  # for example too much shared memory; continue with the others
                        result = f"failed: {str(error).splitlines()[0][:80]}"
                    print(f"  {result}  {tiles}{' (chosen)' if tiles == chosen else ''}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each variant")
    parser.add_argument("--sweep", action="store_true", help="time the kernels with other tile sizes too")
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/attention.py: no GPU found; nothing was measured")
        return 0
    compare(flags.repeats)
    if flags.sweep:
        sweep(flags.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
