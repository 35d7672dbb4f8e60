"""Finding the compiled operators and registering what is not compiled, so that one name serves everywhere."""

import logging
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from ops import pure

logger = logging.getLogger("ops")

NAMESPACE = "twelve_in_one"
SCHEMAS = {
    "mask_overlapping": "(Tensor boxes, Tensor seeds, Tensor? valid, float threshold) -> Tensor",
    "mask_regions": "(Tensor features, Tensor visible, ScalarType dtype) -> Tensor",
}
COMPILED_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def _load_compiled() -> str | None:
    """Loads the extension that setup.py built; returns why there is none, None where there is one."""
    built = [path for suffix in EXTENSION_SUFFIXES for path in Path(__file__).parent.glob(f"_compiled{suffix}")]
    if not built:
        return "they were not built (no compiler, or torch was not there at installation)"
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
    for name, schema in SCHEMAS.items():
        if missing:
            library.define(name + schema)
        for device in ("CPU", "CUDA"):
            compiled = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", device)
            backends[device] = "compiled" if compiled else "pure torch"
            if not compiled:
                library.impl(name, getattr(pure, name), device)
    torch.library.register_fake(f"{NAMESPACE}::mask_overlapping", _fake_overlapping, lib=library)
    torch.library.register_fake(f"{NAMESPACE}::mask_regions", _fake_regions, lib=library)
    torch.library.register_autograd(
        f"{NAMESPACE}::mask_regions", _backward_of_regions, setup_context=_keep_visible, lib=library
    )
    logger.info(
        "operators: %s%s",
        ", ".join(f"{device} {backend}" for device, backend in backends.items()),
        f"; no compiled ones: {missing}" if missing else "",
    )
    return library, backends


def _fake_overlapping(boxes: Tensor, seeds: Tensor, valid: Tensor | None, threshold: float) -> Tensor:
    return torch.empty_like(seeds, memory_format=torch.contiguous_format)


def _fake_regions(features: Tensor, visible: Tensor, dtype: torch.dtype) -> Tensor:
    size, regions, width = features.shape
    return features.new_empty(size, regions + 1, width, dtype=dtype)


def _keep_visible(ctx, inputs, output) -> None:
    features, visible, _ = inputs
    ctx.save_for_backward(visible)
    ctx.dtype = features.dtype


def _backward_of_regions(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
    """A visible region has its own row's gradient and its share of row 0's."""
    (visible,) = ctx.saved_tensors
    mean = gradient[:, :1].float() / visible.sum(1).clamp(min=1)[:, None, None]
    return ((gradient[:, 1:].float() + mean) * visible[..., None]).to(ctx.dtype), None, None


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
    _check("boxes", boxes, "(B, N, 4)", boxes.dim() == 3 and boxes.shape[-1] == 4 and boxes.is_floating_point())
    for name, mask in (("seeds", seeds), ("valid", valid)):
        if mask is not None:
            _check_mask(name, mask, boxes)
    return torch.ops.twelve_in_one.mask_overlapping(boxes, seeds, valid, threshold)


def mask_regions(features: Tensor, visible: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Hides regions and puts the whole image before them: (B, N + 1, D) of type `dtype`, in one pass.

    features: floating point (B, N, D), non-contiguous too; visible: bool (B, N) on the same device. Row 0 is the
    mean of the visible regions, summed in float32 (zeros where none is visible); of the others those that are not
    visible are zero, whatever was in them. The gradient reaches the visible regions' features. Raises ValueError
    for other shapes or types.
    """
    _check("features", features, "(B, N, D)", features.dim() == 3 and features.is_floating_point())
    _check_mask("visible", visible, features)
    if features.dtype not in COMPILED_TYPES:
        features = features.float()
    if dtype not in COMPILED_TYPES:
        return mask_regions(features, visible).to(dtype)
    return torch.ops.twelve_in_one.mask_regions(features, visible, dtype)


def _check(name: str, value: Tensor, shape: str, right: bool) -> None:
    if not right:
        raise ValueError(f"{name} should be floating point {shape} and is {value.dtype} {tuple(value.shape)}")


def _check_mask(name: str, mask: Tensor, of: Tensor) -> None:
    shape = of.shape[:2]
    if mask.shape != shape or mask.dtype != torch.bool or mask.device != of.device:
        raise ValueError(
            f"{name} should be bool {tuple(shape)} on {of.device} and is {mask.dtype} {tuple(mask.shape)} "
            f"on {mask.device}"
        )
