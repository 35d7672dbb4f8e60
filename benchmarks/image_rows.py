"""Zeroing hidden regions and making row 0: straight into place against one pass after another.

    python benchmarks/image_rows.py [--batch_size 128] [--repeats 9]

36 regions of 2048 float16 features, 70% of them visible. On a GPU too, where there is one.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import torch

from benchmarks.timing import print_table, time_in_turn
from pretrain.masking import image_rows
from shards.flags import command, flag


@dataclass
class Config:
    """Flags of this benchmark."""

    batch_size: int = flag(128, "images", low=1)
    repeats: int = flag(9, "timed calls of each variant", low=1)


def one_after_another(features, boxes, visible):
    """Converted, multiplied, averaged and joined, each a pass of its own over the features."""
    features = features.float() * visible[..., None]
    mean = features.sum(1, keepdim=True) / visible.sum(1).clamp(min=1)[:, None, None]
    whole = boxes.new_tensor([0.0, 0.0, 1.0, 1.0, 1.0]).expand(len(boxes), 1, 5)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return torch.cat([mean, features], 1), torch.cat([whole, torch.cat([boxes, area[..., None]], -1)], 1)


def run(config: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(config.batch_size, 36, 2048, generator=generator).half()
    boxes = torch.rand(config.batch_size, 36, 4, generator=generator)
    visible = torch.rand(config.batch_size, 36, generator=generator) < 0.7
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        x = [tensor.to(device) for tensor in (features, boxes, visible)]
        assert all(torch.allclose(a, b) for a, b in zip(image_rows(*x), one_after_another(*x), strict=True))

        def timed(function, x=x, device=device):
            function(*x)
            if device == "cuda":
                torch.cuda.synchronize()

        variants = {
            "one pass after another": lambda timed=timed: timed(one_after_another),
            "straight into place": lambda timed=timed: timed(image_rows),
        }
        print(f"{config.batch_size} x 36 x 2048 float16 on {device}, {torch.get_num_threads()} threads")
        print_table(time_in_turn(variants, config.repeats, 2), "one pass after another", 1e-3, "ms")


if __name__ == "__main__":
    command(Config, run, "benchmarks/image_rows.py", __doc__.splitlines()[0], sys.argv[1:])
