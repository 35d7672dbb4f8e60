"""The dropout operators compared with plain torch: dropout + add + LayerNorm, and attention dropout.

    python benchmarks/dropout.py [--repeats 7] [--threads 1]

On the CPU by the clock. On a GPU, where there is one: the kernels' own time by the profiler, next to copies, with the
bandwidth that each reaches.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import torch
import torch.nn.functional as F

from benchmarks.timing import kernel_time, print_table, time_in_turn
from ops import attention_dropout, dropout_add_layer_norm
from ops.registration import backends
from shards.common.cli import command, flag

P = 0.1


@dataclass
class Config:
    """Flags of this benchmark."""

    repeats: int = flag(7, "timed calls of each variant", low=1)
    threads: int = flag(0, "CPU threads; 0: all", low=0)


def layer_norm_variants(n: int, h: int, dtype: torch.dtype, device: str) -> dict:
    """Functions for forward, and forward with backward, with torch's modules and with the operator."""
    generator = torch.Generator().manual_seed(0)
    x, residual, gradient = (torch.randn(n, h, generator=generator).to(device, dtype) for _ in range(3))
    keys = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator).to(device)
    dropout, norm = torch.nn.Dropout(P), torch.nn.LayerNorm(h, eps=1e-12, device=device)
    plain_norm = torch.nn.LayerNorm(h, eps=1e-12, device=device, dtype=dtype)
    inputs = [x.requires_grad_(), residual.requires_grad_()]

    def plain():
        return plain_norm(dropout(x) + residual)

    def fused():
        return dropout_add_layer_norm(x, residual, norm.weight, norm.bias, keys, 3, P, 1e-12, dtype)

    def with_backward(function, module):
        return lambda: torch.autograd.grad(function(), [*inputs, module.weight, module.bias], gradient)

    return {
        "forward": {"modules": plain, "operator": fused},
        "forward and backward": {
            "modules": with_backward(plain, plain_norm),
            "operator": with_backward(fused, norm),
        },
    }


def attention_variants(batch: int, heads: int, length: int, dtype: torch.dtype, device: str) -> dict:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(batch, heads, length, length, generator=generator).to(device, dtype)
    keys = torch.randint(-(2**63), 2**63 - 1, (batch, length), generator=generator).to(device)
    return {
        "F.dropout": lambda: F.dropout(probs, P),
        "operator": lambda: attention_dropout(probs, keys, keys, 3, P),
        "copy": lambda: probs.clone(),
    }


def on_cpu(config: Config) -> None:
    every = torch.get_num_threads()
    torch.set_num_threads(config.threads or every)
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    for n, h in ((2048, 768), (2048, 1024)):
        for dtype in (torch.float32, torch.bfloat16):
            for name, variants in layer_norm_variants(n, h, dtype, "cpu").items():
                print(f"dropout + add + LayerNorm, {name}, {n} x {h} {dtype}, {threads}")
                print_table(time_in_turn(variants, config.repeats, 2), "modules", 1e-3, "ms")
    for dtype in (torch.float32, torch.bfloat16):
        print(f"attention dropout, 32 x 12 x 60 x 60 {dtype}, {threads}")
        variants = attention_variants(32, 12, 60, dtype, "cpu")
        print_table(time_in_turn(variants, config.repeats, 2), "F.dropout", 1e-3, "ms")
    torch.set_num_threads(every)


def on_gpu() -> None:
    card = torch.cuda.get_device_name()
    for n, h in ((6144, 768), (18944, 1024)):
        for dtype in (torch.float32, torch.bfloat16):
            size = n * h * dtype.itemsize
            # Forward reads x and residual and writes out; backward reads them and the gradient and writes two more.
            moved = {"forward": 3 * size, "forward and backward": 8 * size}
            source = torch.randn(n, h, device="cuda").to(dtype).repeat(4, 1)  # larger than the L2 cache
            target = torch.empty_like(source)
            bandwidth = 2 * source.nbytes / kernel_time(lambda s=source, t=target: t.copy_(s))
            for name, variants in layer_norm_variants(n, h, dtype, "cuda").items():
                seconds = {variant: kernel_time(function) for variant, function in variants.items()}
                print(f"dropout + add + LayerNorm, {name}, {n} x {h} {dtype} on {card}")
                print_table(seconds, "modules", 1e-6, "us")
                reached = moved[name] / seconds["operator"]
                print(f"operator {reached / 1e9:.0f} GB/s, {reached / bandwidth:.0%} of a copy's {bandwidth / 1e9:.0f}")
    for dtype in (torch.float32, torch.bfloat16):
        for length in (60, 101):
            print(f"attention dropout, 128 x 12 x {length} x {length} {dtype} on {card}")
            variants = attention_variants(128, 12, length, dtype, "cuda")
            seconds = {variant: kernel_time(function) for variant, function in variants.items()}
            print_table(seconds, "F.dropout", 1e-6, "us")


def run(config: Config) -> None:
    print(", ".join(f"{device}: {backend}" for device, backend in backends.items()))
    on_cpu(config)
    if torch.cuda.is_available():
        on_gpu()


if __name__ == "__main__":
    command(Config, run, "benchmarks/dropout.py", __doc__.splitlines()[0], sys.argv[1:])
