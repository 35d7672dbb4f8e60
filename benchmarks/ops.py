"""The operators compared with plain torch: overlap masking, and region masking with the image token in one pass.

    python benchmarks/ops.py [--repeats 7]

On the CPU, with one thread and with all, and for growing batches. On a GPU, if there is one: the kernel times of the
profiler, compared with an empty kernel and a copy.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import torch

from benchmarks.timing import kernel_time, print_table, time_in_turn
from ops import mask_overlapping, mask_regions
from ops.registration import backends
from shards.common.cli import command, flag


@dataclass
class Config:
    """Flags of this benchmark."""

    repeats: int = flag(7, "timed calls of each variant", low=1)


def plain_overlap(boxes, seeds, valid, threshold: float = 0.4):
    """A straightforward version with the whole IoU matrix."""
    seeds = seeds & valid
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = area[:, :, None] + area[:, None, :] - shared
    return ((shared > 0) & (shared >= threshold * union) & seeds[:, None]).any(-1) & valid | seeds


def three_passes(features, visible, dtype=torch.float32):
    """A straightforward version with multiplication, mean and concatenation, each a pass over the features."""
    features = features.float() * visible[..., None]
    mean = features.sum(1, keepdim=True) / visible.sum(1).clamp(min=1)[:, None, None]
    return torch.cat([mean, features], 1).to(dtype)


def boxes_case(batch: int, n: int, device: str = "cpu"):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(batch, n, 4, generator=generator)
    boxes[..., 2:] = boxes[..., :2] + 0.4 * boxes[..., 2:]
    seeds = torch.rand(batch, n, generator=generator) < 0.135
    return boxes.to(device), seeds.to(device), torch.ones(batch, n, dtype=torch.bool, device=device)


def features_case(batch: int, dtype: torch.dtype, device: str = "cpu"):
    """36 regions of 2048 features, 70% of them visible."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(batch, 36, 2048, generator=generator).to(dtype)
    visible = torch.rand(batch, 36, generator=generator) < 0.7
    return features.to(device), visible.to(device)


def overlap_on_cpu(config: Config) -> None:
    every = torch.get_num_threads()
    for n in (36, 100):
        for threads in sorted({1, every}):
            torch.set_num_threads(threads)
            x = boxes_case(512, n)
            assert torch.equal(mask_overlapping(*x), plain_overlap(*x))
            variants = {"plain torch": lambda x=x: plain_overlap(*x), "operator": lambda x=x: mask_overlapping(*x)}
            print(f"mask_overlapping, 512 x {n}, {threads} thread{'s' if threads > 1 else ''}")
            print_table(time_in_turn(variants, config.repeats, 2), "plain torch", 1e-3, "ms")
    torch.set_num_threads(1)
    cases = {size: boxes_case(size, 36) for size in (64, 512, 4096, 32768)}
    seconds = time_in_turn({size: lambda x=x: mask_overlapping(*x) for size, x in cases.items()}, config.repeats, 2)
    print("mask_overlapping at 36 regions, microseconds per image, 1 thread")
    for size, value in seconds.items():
        print(f"batch {size:<6} {value / size * 1e6:8.3f}")
    torch.set_num_threads(every)


def regions_on_cpu(config: Config) -> None:
    features, visible = features_case(128, torch.float16)
    for to in (torch.float32, torch.bfloat16):
        x = features, visible, to
        assert torch.allclose(mask_regions(*x), three_passes(*x), rtol=1e-2 if to == torch.bfloat16 else 1e-5)
        variants = {"three passes": lambda x=x: three_passes(*x), "operator": lambda x=x: mask_regions(*x)}
        print(f"mask_regions, 128 x 36 x 2048, float16 to {to}, {torch.get_num_threads()} threads")
        print_table(time_in_turn(variants, config.repeats, 2), "three passes", 1e-3, "ms")


def overlap_on_gpu() -> None:
    smallest = torch.zeros(1, device="cuda")
    for batch, n in ((512, 36), (4096, 100)):
        x = boxes_case(batch, n, "cuda")
        assert torch.equal(mask_overlapping(*x), plain_overlap(*x))
        seconds = {
            "plain torch": kernel_time(lambda x=x: plain_overlap(*x)),
            "operator": kernel_time(lambda x=x: mask_overlapping(*x)),
            "an empty kernel": kernel_time(lambda: smallest.zero_()),
        }
        print(f"mask_overlapping, {batch} x {n} on {torch.cuda.get_device_name()}")
        print_table(seconds, "plain torch", 1e-6, "us")


def regions_on_gpu() -> None:
    features, visible = features_case(512, torch.bfloat16, "cuda")
    target = torch.empty_like(features)
    seconds = {
        "three passes": kernel_time(lambda: three_passes(features, visible, torch.bfloat16)),
        "operator": kernel_time(lambda: mask_regions(features, visible, torch.bfloat16)),
        "copying the features": kernel_time(lambda: target.copy_(features)),
    }
    print(f"mask_regions, 512 x 36 x 2048 bfloat16 on {torch.cuda.get_device_name()}")
    print_table(seconds, "three passes", 1e-6, "us")
    row = features[0, 0].nbytes
    moved = {
        "operator": int(visible.sum()) * row + (features.nbytes + len(features) * row),
        "copying the features": 2 * features.nbytes,
    }
    for name, size in moved.items():
        print(f"{name:<20}  {size / seconds[name] / 1e9:10.0f} GB/s")


def run(config: Config) -> None:
    print(", ".join(f"{device}: {backend}" for device, backend in backends.items()))
    overlap_on_cpu(config)
    regions_on_cpu(config)
    if torch.cuda.is_available():
        overlap_on_gpu()
        regions_on_gpu()


if __name__ == "__main__":
    command(Config, run, "benchmarks/ops.py", __doc__.splitlines()[0], sys.argv[1:])
