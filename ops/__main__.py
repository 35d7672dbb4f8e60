"""python -m ops: which implementation is in use, and whether it is right.

The exit status is 1 where a self-check fails, and where torch has CUDA and the operators were not compiled for it.
"""

import sys

import torch

from ops import mask_overlapping, mask_regions, pure
from ops.library import backends


def self_check(device: str) -> bool:
    """Compares the operators with their pure torch versions on random boxes and features."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(64, 50, 4, generator=generator)
    boxes[..., 2:] += boxes[..., :2]
    seeds, valid = (torch.rand(64, 50, generator=generator) < share for share in (0.15, 0.9))
    expected = pure.mask_overlapping(boxes, seeds, valid, 0.4)
    found = mask_overlapping(boxes.to(device), seeds.to(device), valid.to(device))
    features = torch.rand(64, 50, 24, generator=generator)
    rows = mask_regions(features.to(device), valid.to(device)).cpu()
    same = torch.allclose(rows, pure.mask_regions(features, valid, torch.float32))
    return torch.equal(found.cpu(), expected) and same


def main() -> int:
    right = True
    for device, backend in backends.items():
        if device == "CUDA" and torch.version.cuda and backend != "compiled":
            print(
                f"{device:<5} {backend}: torch has CUDA {torch.version.cuda}, and the operators were not compiled; "
                "install again with nvcc of that version (CUDA_HOME names its toolkit) and read what pip -v prints"
            )
            right = False
            continue
        if device == "CUDA" and not torch.cuda.is_available():
            print(f"{device:<5} {backend}; this torch sees no GPU, not checked")
            continue
        passed = self_check(device.lower())
        right &= passed
        print(f"{device:<5} {backend}; self-check {'passed' if passed else 'FAILED'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
