"""python -m ops: prints versions and which implementation is in use, and runs a self-check.

The exit status is 1 if a self-check fails, or if torch has CUDA but the operators were not compiled for it; 2 if Python
finds a package of another project under the name of one of ours.
"""

import platform
import sys

import torch

from ops.own_packages import DISTRIBUTION, check_packages, own_version

check_packages()  # again, as another project may have replaced ops/__init__.py, which does this

from ops import attention_dropout, dropout, dropout_add_layer_norm, mask_overlapping, mask_regions, pure_torch
from ops.registration import backends, not_compiled


def self_check(device: str) -> bool:
    """Compares the operators with their pure torch versions on random inputs."""
    return check_masking(device) and check_dropout(device)


def check_masking(device: str) -> bool:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(64, 50, 4, generator=generator)
    boxes[..., 2:] += boxes[..., :2]
    seeds, valid = (torch.rand(64, 50, generator=generator) < share for share in (0.15, 0.9))
    expected = pure_torch.mask_overlapping(boxes, seeds, valid, 0.4)
    found = mask_overlapping(boxes.to(device), seeds.to(device), valid.to(device))
    features = torch.rand(64, 50, 24, generator=generator)
    rows = mask_regions(features.to(device), valid.to(device)).cpu()
    same = torch.allclose(rows, pure_torch.mask_regions(features, valid, torch.float32))
    return torch.equal(found.cpu(), expected) and same


def check_dropout(device: str) -> bool:
    """Dropout must be bit-identical; LayerNorm and its gradients equal up to rounding."""
    generator = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, 64, 72, generator=generator)
    probs = torch.rand(4, 3, 16, 10, generator=generator)
    keys = torch.randint(-(2**63), 2**63 - 1, (64,), generator=generator)
    weight, bias = torch.randn(2, 72, generator=generator)
    dropped = dropout(x.to(device), keys.to(device), 3, 0.1).cpu()
    rates = keys.view(4, 16), keys.view(4, 16)[:, :10], 3, 0.1
    attended = attention_dropout(probs.to(device), *(k.to(device) for k in rates[:2]), *rates[2:]).cpu()
    right = torch.equal(dropped, pure_torch.dropout(x, keys, 3, 0.1))
    right &= torch.equal(attended, pure_torch.attention_dropout(probs, *rates))

    inputs = [value.to(device).requires_grad_() for value in (x, residual, weight, bias)]
    out = dropout_add_layer_norm(*inputs, keys.to(device), 3, 0.1, 1e-12, torch.float32)
    gradients = torch.autograd.grad(out, inputs, residual.to(device))
    expected, mean, rstd = pure_torch.dropout_add_layer_norm(
        x, residual, weight, bias, keys, 3, 0.1, 1e-12, torch.float32
    )
    slopes = pure_torch.dropout_add_layer_norm_backward(residual, x, residual, weight, keys, mean, rstd, 3, 0.1)
    pairs = zip((out, *gradients), (expected, *slopes), strict=True)
    return right and all(torch.allclose(a.detach().cpu(), b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def versions() -> str:
    """The versions that a bug report needs."""
    own = own_version() or "(not installed)"
    return f"{DISTRIBUTION} {own}, torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}"


def main() -> int:
    print(versions())
    if not_compiled:
        print(f"no compiled operators: {not_compiled}")
    right = True
    for device, backend in backends.items():
        if device == "CUDA" and torch.version.cuda and backend != "compiled":
            print(
                f"{device:<5} {backend}: torch has CUDA {torch.version.cuda}, but the operators were not compiled; "
                "install again with nvcc of that version (set CUDA_HOME to its toolkit) and see the output of pip -v"
            )
            right = False
            continue
        if device == "CUDA" and not torch.cuda.is_available():
            print(f"{device:<5} {backend}; no GPU available to torch, not checked")
            continue
        passed = self_check(device.lower())
        right &= passed
        print(f"{device:<5} {backend}; self-check {'passed' if passed else 'FAILED'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
