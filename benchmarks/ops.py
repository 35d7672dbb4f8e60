"""The overlap-masking operator against plain torch operations.

    python benchmarks/ops.py [--repeats 7]

For 36 and 100 regions, on one thread and on all, and for growing batches. On a GPU, where there is one: the
kernel's own time by the profiler, beside an empty kernel's and the plain torch version's.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import torch

from benchmarks.timing import print_table, time_in_turn
from ops import mask_overlapping
from ops.library import backends
from shards.flags import command, flag


@dataclass
class Config:
    """Flags of this benchmark."""

    repeats: int = flag(7, "timed calls of each variant", low=1)


def plain(boxes, seeds, valid, threshold: float = 0.4):
    """The whole IoU matrix at once, as one writes it down."""
    seeds = seeds & valid
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = area[:, :, None] + area[:, None, :] - shared
    return ((shared > 0) & (shared >= threshold * union) & seeds[:, None]).any(-1) & valid | seeds


def case(batch: int, n: int, device: str = "cpu"):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(batch, n, 4, generator=generator)
    boxes[..., 2:] = boxes[..., :2] + 0.4 * boxes[..., 2:]
    seeds = torch.rand(batch, n, generator=generator) < 0.135
    return boxes.to(device), seeds.to(device), torch.ones(batch, n, dtype=torch.bool, device=device)


def on_cpu(config: Config) -> None:
    every = torch.get_num_threads()
    for n in (36, 100):
        for threads in sorted({1, every}):
            torch.set_num_threads(threads)
            x = case(512, n)
            assert torch.equal(mask_overlapping(*x), plain(*x))
            variants = {"plain torch": lambda x=x: plain(*x), "operator": lambda x=x: mask_overlapping(*x)}
            print(f"512 x {n}, {threads} thread{'s' if threads > 1 else ''}")
            print_table(time_in_turn(variants, config.repeats, 2), "plain torch", 1e-3, "ms")
    torch.set_num_threads(1)
    cases = {size: case(size, 36) for size in (64, 512, 4096, 32768)}
    seconds = time_in_turn({size: lambda x=x: mask_overlapping(*x) for size, x in cases.items()}, config.repeats, 2)
    print("the operator at 36 regions, microseconds an image, 1 thread")
    for size, value in seconds.items():
        print(f"batch {size:<6} {value / size * 1e6:8.3f}")


def kernel_time(function, repeats: int = 50) -> float:
    """Seconds that the GPU works on one call."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(5):
        function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            function()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / repeats * 1e-6


def on_gpu() -> None:
    smallest = torch.zeros(1, device="cuda")
    for batch, n in ((512, 36), (4096, 100)):
        x = case(batch, n, "cuda")
        assert torch.equal(mask_overlapping(*x), plain(*x))
        seconds = {
            "plain torch": kernel_time(lambda x=x: plain(*x)),
            "operator": kernel_time(lambda x=x: mask_overlapping(*x)),
            "an empty kernel": kernel_time(lambda: smallest.zero_()),
        }
        print(f"{batch} x {n} on {torch.cuda.get_device_name()}")
        print_table(seconds, "plain torch", 1e-6, "us")


def run(config: Config) -> None:
    print(", ".join(f"{device}: {backend}" for device, backend in backends.items()))
    on_cpu(config)
    if torch.cuda.is_available():
        on_gpu()


if __name__ == "__main__":
    command(Config, run, "benchmarks/ops.py", __doc__.splitlines()[0], sys.argv[1:])
