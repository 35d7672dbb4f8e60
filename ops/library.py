"""Finding the compiled operator and registering what is not compiled, so that one name serves everywhere."""

import logging
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from ops import pure

logger = logging.getLogger("ops")

NAMESPACE = "twelve_in_one"
SCHEMA = "mask_overlapping(Tensor boxes, Tensor seeds, Tensor? valid, float threshold) -> Tensor"


def _load_compiled() -> str | None:
    """Loads the extension that setup.py built; returns why there is none, None where there is one."""
    built = [path for suffix in EXTENSION_SUFFIXES for path in Path(__file__).parent.glob(f"_compiled{suffix}")]
    if not built:
        return "it was not built (no compiler, or torch was not there at installation)"
    try:
        torch.ops.load_library(built[0])
    except OSError as error:
        return f"{built[0]} does not load ({str(error).splitlines()[0]}); install again with this torch"
    return None


def _register() -> tuple[torch.library.Library, dict[str, str]]:
    """Fills in what the extension does not define; returns the backend in use for CPU and CUDA tensors."""
    missing = _load_compiled()
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    backends = {}
    if missing:
        library.define(SCHEMA)
    for device in ("CPU", "CUDA"):
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::mask_overlapping", device):
            backends[device] = "compiled"
        else:
            library.impl("mask_overlapping", pure.mask_overlapping, device)
            backends[device] = "pure torch"
    torch.library.register_fake(f"{NAMESPACE}::mask_overlapping", _fake, lib=library)
    logger.info(
        "overlap masking: %s%s",
        ", ".join(f"{device} {backend}" for device, backend in backends.items()),
        f"; no compiled operator: {missing}" if missing else "",
    )
    return library, backends


def _fake(boxes: Tensor, seeds: Tensor, valid: Tensor | None, threshold: float) -> Tensor:
    return torch.empty_like(seeds, memory_format=torch.contiguous_format)


_library, backends = _register()


def mask_overlapping(boxes: Tensor, seeds: Tensor, valid: Tensor | None = None, threshold: float = 0.4) -> Tensor:
    """Every valid seed, and every valid region whose IoU with a valid seed is `threshold` or more.

    boxes: float (B, N, 4) as x1 y1 x2 y2, of any floating type, non-contiguous too; seeds, valid: bool (B, N) on
    the same device, valid None for all; returns bool (B, N), without a gradient. Raises ValueError for other
    shapes or types.

    Computed in float32 on the boxes as given, as intersection >= threshold * union: an IoU that equals the
    threshold in whole pixels may fall on either side once the boxes are normalised. Boxes without area, and
    boxes with a NaN, overlap nothing; they are masked where they are seeds themselves.
    """
    shape = boxes.shape[:-1]
    if boxes.dim() != 3 or boxes.shape[-1] != 4 or not boxes.is_floating_point():
        raise ValueError(f"boxes should be floating point (B, N, 4) and are {boxes.dtype} {tuple(boxes.shape)}")
    for name, mask in (("seeds", seeds), ("valid", valid)):
        if mask is not None and (mask.shape != shape or mask.dtype != torch.bool or mask.device != boxes.device):
            raise ValueError(
                f"{name} should be bool {tuple(shape)} on {boxes.device} and is {mask.dtype} {tuple(mask.shape)} "
                f"on {mask.device}"
            )
    return torch.ops.twelve_in_one.mask_overlapping(boxes, seeds, valid, threshold)
