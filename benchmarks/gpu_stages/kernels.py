"""Rates of the machine, and the kernels of the model: matrix products, operators, attention."""

import contextlib
import os
import time

import torch
import torch.nn.functional as F

from benchmarks.gpu_stages.measuring import BATCH_SIZE, DEVICE, ON_GPU, Record, copy_rate, matrix_rate, timed, wait


def machine(record: Record) -> None:
    """Matrix rate and copy bandwidth of the GPU, and the rates of the matrix products of the model."""
    record.add(
        matrix_tflops=matrix_rate() / 1e12,
        copy_gb_s=copy_rate() / 1e9,
        memory_gb=torch.cuda.get_device_properties(0).total_memory / 1e9 if ON_GPU else 0,
        cuda=torch.version.cuda,
        cpus=os.cpu_count(),
    )
    image, text = BATCH_SIZE * 37, BATCH_SIZE * 12
    products = {
        "image query key value": (image, 1024, 3072),
        "image output, up and down": (image, 1024, 1024),
        "text query key value": (text, 768, 2304),
        "text up": (text, 768, 3072),
        "text down": (text, 3072, 768),
    }
    for name, (rows, inner, outer) in products.items():
        a, w, g = (
            torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)
            for shape in ((rows, inner), (outer, inner), (rows, outer))
        )
        work = 2 * rows * inner * outer / 1e12
        record.add(
            product=name,
            shape=[rows, inner, outer],
            forward_tflops=work / timed(lambda a=a, w=w: F.linear(a, w))[0],
            input_gradient_tflops=work / timed(lambda g=g, w=w: g @ w)[0],
            weight_gradient_tflops=work / timed(lambda g=g, a=a: g.T @ a)[0],
        )


def operators(record: Record) -> None:
    """The implementation of each operator, and the time of its kernel compared with a copy of its input."""
    from benchmarks.ops import boxes_case, features_case
    from benchmarks.timing import kernel_time
    from ops import column_sum, dropout_add_layer_norm, mask_overlapping, mask_regions
    from ops.__main__ import self_check
    from ops.registration import backends

    where = "CUDA" if ON_GPU else "CPU"
    record.add(backends=backends, self_check=self_check(DEVICE.type))
    if ON_GPU and backends[where] != "compiled":
        raise RuntimeError("the operators were not compiled for CUDA")
    measure = kernel_time if ON_GPU else (lambda function: timed(function)[0])
    boxes = boxes_case(BATCH_SIZE, 36, DEVICE.type)
    record.add(operator="mask_overlapping", shape=[BATCH_SIZE, 36], us=measure(lambda: mask_overlapping(*boxes)) * 1e6)
    features, visible = (x[:BATCH_SIZE] for x in features_case(BATCH_SIZE, torch.float16, DEVICE.type))
    target = torch.empty_like(features)
    rows = BATCH_SIZE * 37
    x, residual = (torch.randn(rows, 1024, device=DEVICE).bfloat16().requires_grad_() for _ in range(2))
    weight, bias = (torch.ones(1024, device=DEVICE, requires_grad=True) for _ in range(2))
    keys = torch.arange(rows, device=DEVICE)

    def layer_norm():
        return dropout_add_layer_norm(x, residual, weight, bias, keys, 0, 0.1, 1e-12, torch.bfloat16)

    gradient = torch.randn(rows, 1024, device=DEVICE).bfloat16()
    seconds = measure(layer_norm)
    both = measure(lambda: torch.autograd.grad(layer_norm(), (x, residual, weight, bias), gradient))
    for name, took, passes in (("forward", seconds, 3), ("backward", both - seconds, 5)):
        record.add(
            operator=f"dropout_add_layer_norm, {name}",
            shape=[rows, 1024],
            us=took * 1e6,
            gb_s=passes * x.nbytes / took / 1e9,
        )
    for width in (1024, 3072):
        tall = torch.randn(rows, width, device=DEVICE).bfloat16()
        seconds = measure(lambda tall=tall: column_sum(tall))
        record.add(
            operator="column_sum",
            shape=[rows, width],
            us=seconds * 1e6,
            gb_s=tall.nbytes / seconds / 1e9,
            torch_us=measure(lambda tall=tall: tall.sum(0)) * 1e6,
        )
    seconds, copy = (
        measure(lambda: mask_regions(features, visible, torch.bfloat16)),
        measure(lambda: target.copy_(features)),
    )
    moved = (int(visible.sum()) + visible.numel() + len(visible)) * features[0, 0].nbytes
    record.add(
        operator="mask_regions",
        shape=list(features.shape),
        us=seconds * 1e6,
        gb_s=moved / seconds / 1e9,
        copy_gb_s=2 * features.nbytes / copy / 1e9,
    )


def attention(record: Record) -> None:
    """Scaled dot-product attention with dropout, forward and backward, for torch's backends and kinds of masks."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "default": None,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    shapes = ((8, 37, 37, 128), (12, 26, 26, 64), (8, 26, 37, 128), (8, 37, 26, 128), (8, 101, 101, 128))
    for heads, queries, keys, width in shapes if ON_GPU else shapes[:1]:
        q, k, v = (
            torch.randn(BATCH_SIZE, length, heads, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
            for length in (queries, keys, keys)
        )
        mask = torch.rand(BATCH_SIZE, 1, 1, keys, device=DEVICE) < 0.7
        mask[..., 0] = True
        bias = torch.zeros(mask.shape, device=DEVICE, dtype=torch.bfloat16).masked_fill(~mask, -torch.inf)
        padded = F.pad(bias, (0, -keys % 8))[..., :keys]  # rows that begin at multiples of 16 bytes
        masks = {"bool": mask, "bias": padded.expand(-1, heads, queries, -1)}
        gradient = torch.randn(BATCH_SIZE, heads, queries, width, device=DEVICE, dtype=torch.bfloat16)
        for (name, backend), (kind, allowed) in ((b, m) for b in backends.items() for m in masks.items()):

            def attend(allowed=allowed, backend=backend, q=q, k=k, v=v, gradient=gradient):
                with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
                    parts = (x.transpose(1, 2) for x in (q, k, v))
                    F.scaled_dot_product_attention(*parts, attn_mask=allowed, dropout_p=0.1).backward(gradient)

            result = {"shape": [BATCH_SIZE, heads, queries, keys, width], "backend": name, "mask": kind}
            try:
                began = time.perf_counter()
                attend()
                wait()
                first = time.perf_counter() - began
                record.add(**result, forward_backward_us=timed(attend)[0] * 1e6, first_call_s=first)
            except RuntimeError as error:
                record.add(**result, failed=str(error).splitlines()[0][:120])


def packed_attention(record: Record) -> None:
    """Our attention on packed rows compared with torch's on padded ones, forward and backward with dropout."""
    if ON_GPU:
        from benchmarks.attention import measured

        for name, heads, size, padded, packed, rate in measured(30):
            record.add(case=name, heads=heads, size=size, padded_ms=padded, packed_ms=packed, gb_s=rate)
