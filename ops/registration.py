"""Loads the compiled operators and registers plain torch versions of those that are missing, under the same names."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ops import pure_torch

logger = logging.getLogger("ops")

NAMESPACE = "twelve_in_one"
SCHEMAS = {
    "mask_overlapping": "(Tensor boxes, Tensor seeds, Tensor? valid, float threshold) -> Tensor",
    "mask_regions": "(Tensor features, Tensor visible, ScalarType dtype) -> Tensor",
    "dropout": "(Tensor x, Tensor keys, int site, float p) -> Tensor",
    "attention_dropout": "(Tensor probs, Tensor query_keys, Tensor key_keys, int site, float p) -> Tensor",
    "dropout_add_layer_norm": (
        "(Tensor x, Tensor? residual, Tensor weight, Tensor bias, Tensor? keys, int site, float p, float eps, "
        "ScalarType dtype) -> (Tensor, Tensor, Tensor)"
    ),
    "dropout_add_layer_norm_backward": (
        "(Tensor gradient, Tensor x, Tensor? residual, Tensor weight, Tensor? keys, Tensor mean, Tensor rstd, "
        "int site, float p) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
}
COMPILED_TYPES = (torch.float32, torch.float16, torch.bfloat16)
DROPOUT_TYPES = (*COMPILED_TYPES, torch.float64)


def _load_compiled() -> str | None:
    """Loads the extension built by setup.py; returns None, or the reason why it is missing."""
    # Of several, the .abi3.so: the others are of earlier versions. A free-threaded Python builds no .abi3.so.
    built = min(Path(__file__).parent.glob("_compiled.*so"), default=None)
    if built is None:
        return "they were not built (no compiler, or torch was missing at installation)"
    try:
        torch.ops.load_library(built)
    except OSError as error:
        return f"{built} cannot be loaded ({str(error).splitlines()[0]}); install again with this version of torch"
    return None


def _register(missing: str | None) -> tuple[torch.library.Library, dict[str, str]]:
    """Registers what the extension does not define; returns the backends in use for CPU and CUDA tensors.

    missing: the reason why the extension could not be loaded, None if it was.
    """
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    backends = {}
    for name, schema in SCHEMAS.items():
        if missing:
            library.define(name + schema)
        for device in ("CPU", "CUDA"):
            compiled = _has_kernel(name, device)
            backends[device] = "compiled" if compiled else "pure torch"
            if not compiled:
                library.impl(name, getattr(pure_torch, name), device)
    for name, fake in _fakes().items():
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    for name, (backward, setup_context) in _gradients().items():
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=library)
    logger.info(
        "operators: %s%s",
        ", ".join(f"{device} {backend}" for device, backend in backends.items()),
        f"; not compiled: {missing}" if missing else "",
    )
    return library, backends


def _has_kernel(name: str, device: str) -> bool:
    try:
        torch.library.get_kernel(f"{NAMESPACE}::{name}", device)
    except RuntimeError:
        return False
    return True


def _fakes() -> dict[str, Callable[..., Any]]:
    return {
        "mask_overlapping": _fake_overlapping,
        "mask_regions": _fake_regions,
        "dropout": _fake_dropout,
        "attention_dropout": _fake_dropout,
        "dropout_add_layer_norm": _fake_layer_norm,
        "dropout_add_layer_norm_backward": _fake_layer_norm_backward,
    }


def _gradients() -> dict[str, tuple[Callable[..., Any], Callable[..., None] | None]]:
    return {
        "mask_regions": (_backward_of_regions, _keep_visible),
        "dropout": (_backward_of_dropout, _keep_keys),
        "attention_dropout": (_backward_of_attention_dropout, _keep_keys),
        "dropout_add_layer_norm": (_backward_of_layer_norm, _keep_layer_norm),
        "dropout_add_layer_norm_backward": (_no_second_derivative, None),
    }


def _fake_overlapping(boxes: Tensor, seeds: Tensor, valid: Tensor | None, threshold: float) -> Tensor:
    return torch.empty_like(seeds, memory_format=torch.contiguous_format)


def _fake_regions(features: Tensor, visible: Tensor, dtype: torch.dtype) -> Tensor:
    size, regions, width = features.shape
    return features.new_empty(size, regions + 1, width, dtype=dtype)


def _keep_visible(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, visible, _ = inputs
    ctx.save_for_backward(visible)
    ctx.dtype = features.dtype


def _backward_of_regions(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    """The gradient of a visible region is that of its row plus its share of that of row 0."""
    (visible,) = ctx.saved_tensors
    mean = gradient[:, :1].float() / visible.sum(1).clamp(min=1)[:, None, None]
    return ((gradient[:, 1:].float() + mean) * visible[..., None]).to(ctx.dtype), None, None


def _fake_dropout(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_keys(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *keys, site, p = inputs
    ctx.save_for_backward(*keys)
    ctx.site, ctx.p = site, p


def _backward_of_dropout(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    (keys,) = ctx.saved_tensors
    return torch.ops.twelve_in_one.dropout(gradient, keys, ctx.site, ctx.p), None, None, None


def _backward_of_attention_dropout(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
    query_keys, key_keys = ctx.saved_tensors
    probs = torch.ops.twelve_in_one.attention_dropout(gradient, query_keys, key_keys, ctx.site, ctx.p)
    return probs, None, None, None, None


def _fake_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    keys: Tensor | None,
    site: int,
    p: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    n, h = x.shape
    mean, rstd = (x.new_empty(n, dtype=weight.dtype) for _ in range(2))
    return x.new_empty(n, h, dtype=dtype), mean, rstd


def _fake_layer_norm_backward(
    gradient: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dresidual = x.new_empty(0) if residual is None else residual.new_empty(residual.shape)
    return x.new_empty(x.shape), dresidual, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _keep_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, _, keys, site, p, _, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, residual, weight, keys, mean, rstd)
    ctx.site, ctx.p = site, p


def _backward_of_layer_norm(ctx: Any, gradient: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    x, residual, weight, keys, mean, rstd = ctx.saved_tensors
    dx, dresidual, dweight, dbias = torch.ops.twelve_in_one.dropout_add_layer_norm_backward(
        gradient, x, residual, weight, keys, mean, rstd, ctx.site, ctx.p
    )
    return dx, None if residual is None else dresidual, dweight, dbias, None, None, None, None, None


def _no_second_derivative(ctx: Any, *_: object) -> NoReturn:
    raise NotImplementedError("dropout_add_layer_norm has no second derivative")


not_compiled = _load_compiled()
_library, backends = _register(not_compiled)


def mask_overlapping(boxes: Tensor, seeds: Tensor, valid: Tensor | None = None, threshold: float = 0.4) -> Tensor:
    """Every valid seed, and every valid region whose IoU with a valid seed is at least `threshold`.

    Computed in float32 on the boxes as given, as intersection >= threshold * union: an IoU that equals the threshold in
    whole pixels may be above or below it for normalised boxes. Boxes without area and boxes with NaN overlap nothing;
    they are masked only if they are seeds.

    Args:
        boxes: (B, N, 4) as x1 y1 x2 y2, any floating-point dtype, may be non-contiguous.
        seeds, valid: bool (B, N) on the same device; valid None for all.
        threshold: minimum IoU.

    Returns:
        bool (B, N), without a gradient.

    Raises:
        ValueError: for other shapes or dtypes.
    """
    _check("boxes", boxes, "(B, N, 4)", boxes.dim() == 3 and boxes.shape[-1] == 4 and boxes.is_floating_point())
    for name, mask in (("seeds", seeds), ("valid", valid)):
        if mask is not None:
            _check_mask(name, mask, boxes)
    masked: Tensor = torch.ops.twelve_in_one.mask_overlapping(boxes, seeds, valid, threshold)
    return masked


def mask_regions(features: Tensor, visible: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeroes masked regions and prepends the image token, in one pass.

    Args:
        features: (B, N, D), any floating-point dtype, may be non-contiguous.
        visible: bool (B, N) on the same device.
        dtype: dtype of the result.

    Returns:
        (B, N + 1, D). Row 0 is the mean of the visible regions, summed in float32 (zeros if none is visible); the rows
        of regions that are not visible are zero, even if their features are NaN. The gradient is that of the visible
        regions' features.

    Raises:
        ValueError: for other shapes or dtypes.
    """
    _check("features", features, "(B, N, D)", features.dim() == 3 and features.is_floating_point())
    _check_mask("visible", visible, features)
    if features.dtype not in COMPILED_TYPES:
        features = features.float()
    if dtype not in COMPILED_TYPES:
        return mask_regions(features, visible).to(dtype)
    rows: Tensor = torch.ops.twelve_in_one.mask_regions(features, visible, dtype)
    return rows


def dropout(x: Tensor, keys: Tensor, site: int, p: float) -> Tensor:
    """Dropout whose mask is a function of the row key, the site and the column, with no generator state.

    The same row with the same key has the same mask in any batch, on any device and rank, and in backward, under
    torch.compile and in a replayed CUDA graph. Columns share a 64-bit random number in groups of four, 16 bits each,
    so p is rounded to a multiple of 1 / 65536.

    Args:
        x: float32, float16, bfloat16 or float64 (n, h), may be non-contiguous.
        keys: int64 (n,) on the same device, one key per row.
        site: number of this dropout layer, 0 or more; other sites have independent masks.
        p: probability of dropping a value, in [0, 1).

    Returns:
        A tensor like x: 0 for dropped values, otherwise x * 65536 / (65536 - round(p * 65536)), rounded once. p = 0
        returns x itself. The gradient has the same mask.

    Raises:
        ValueError: for other shapes, dtypes or devices, and for a site or p out of range.
    """
    _check("x", x, "(n, h)", x.dim() == 2 and x.dtype in DROPOUT_TYPES)
    _check_rate(site, p, 16)
    _check_keys("keys", keys, x.shape[:1], x)
    return torch.ops.twelve_in_one.dropout(x, keys, site, p) if p > 0 else x


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    keys: Tensor | None,
    site: int,
    p: float,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """LayerNorm(dropout(x) + residual) * weight + bias in one pass over memory, with the mask of `dropout`.

    Computed in float32 (float64 for float64 inputs) and rounded once. Saves its inputs and the mean and reciprocal
    standard deviation of each row; backward recomputes the mask and the sum. The gradients of weight and bias are
    summed in an order that does not depend on the number of threads. It has no second derivative.

    Args:
        x: float32, float16, bfloat16 or float64 (n, h), may be non-contiguous.
        residual: (n, h) of any of these types, or None to add nothing.
        weight: float32 (h,).
        bias: float32 (h,).
        keys: int64 (n,), one key per row; may be None if p is 0.
        site: number of this dropout layer, 0 or more.
        p: probability of dropping a value, in [0, 1).
        eps: added to the variance, which is the biased one as in torch.nn.functional.layer_norm.
        dtype: type of the output. If x is float64, then dtype and all tensors are float64; otherwise none is.

    Returns:
        (n, h) of type `dtype`.

    Raises:
        ValueError: for other shapes, dtypes or devices, and for a site or p out of range.
    """
    _check("x", x, "(n, h)", x.dim() == 2 and x.dtype in DROPOUT_TYPES)
    types = (torch.float64,) if x.dtype == torch.float64 else COMPILED_TYPES
    parameter = torch.float64 if x.dtype == torch.float64 else torch.float32
    if residual is not None:
        _check_like("residual", residual, x.shape, types, x)
    _check_like("weight", weight, x.shape[1:], (parameter,), x)
    _check_like("bias", bias, x.shape[1:], (parameter,), x)
    if dtype not in types:
        raise ValueError(f"dtype should be {_names(types)} for x of {x.dtype} and is {dtype}")
    _check_rate(site, p, 16)
    if keys is None and p > 0:
        raise ValueError(f"keys should be int64 {tuple(x.shape[:1])} for p above 0 and is None")
    if keys is not None:
        _check_keys("keys", keys, x.shape[:1], x)
    outputs = torch.ops.twelve_in_one.dropout_add_layer_norm(x, residual, weight, bias, keys, site, p, eps, dtype)
    normed: Tensor = outputs[0]
    return normed


def attention_dropout(probs: Tensor, query_keys: Tensor, key_keys: Tensor, site: int, p: float) -> Tensor:
    """Dropout of attention probabilities by a function of (query row key, key row key, site, head).

    As `dropout`, but the mask of a probability depends on its two rows' keys and not on their positions, and p is
    rounded to a multiple of 2**-24.

    Args:
        probs: float32, float16, bfloat16 or float64 (B, heads, L, M), may be non-contiguous.
        query_keys: int64 (B, L) on the same device, one key per query row.
        key_keys: int64 (B, M) on the same device, one key per key row.
        site: number of this dropout layer, 0 or more.
        p: probability of dropping a value, in [0, 1).

    Returns:
        A tensor like probs; p = 0 returns probs itself. The gradient has the same mask.

    Raises:
        ValueError: for other shapes, dtypes or devices, and for a site or p out of range.
    """
    _check("probs", probs, "(B, heads, L, M)", probs.dim() == 4 and probs.dtype in DROPOUT_TYPES)
    _check_rate(site, p, 24)
    batch, _, queries, keys = probs.shape
    _check_keys("query_keys", query_keys, (batch, queries), probs)
    _check_keys("key_keys", key_keys, (batch, keys), probs)
    return torch.ops.twelve_in_one.attention_dropout(probs, query_keys, key_keys, site, p) if p > 0 else probs


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


def _names(types: Sequence[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in types)


def _check_like(name: str, value: Tensor, shape: torch.Size, types: Sequence[torch.dtype], of: Tensor) -> None:
    if value.shape != shape or value.dtype not in types or value.device != of.device:
        raise ValueError(
            f"{name} should be {_names(types)} {tuple(shape)} on {of.device} and is {value.dtype} "
            f"{tuple(value.shape)} on {value.device}"
        )


def _check_keys(name: str, keys: Tensor, shape: Sequence[int], of: Tensor) -> None:
    _check_like(name, keys, torch.Size(shape), (torch.int64,), of)


def _check_rate(site: int, p: float, bits: int) -> None:
    if site < 0:
        raise ValueError(f"site should be 0 or more and is {site}")
    if not 0 <= p < 1 or round(p * 2**bits) == 2**bits:
        raise ValueError(f"p should be at least 0 and at most {1 - 2**-bits} and is {p}")
