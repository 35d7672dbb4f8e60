"""Timing of variants in turn, several times, so that drift of the machine affects all equally."""

import statistics
import time


def time_in_turn(variants: dict, repeats: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each function, called in turn `repeats` times after `warmup` uncounted rounds."""
    seconds = {name: [] for name in variants}
    for round_number in range(warmup + repeats):
        for name, function in variants.items():
            began = time.perf_counter()
            function()
            if round_number >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(seconds: dict[str, float], baseline: str, per: float = 1.0, unit: str = "s") -> None:
    """Prints one line per variant: its median and its speed-up over the baseline."""
    width = max(map(len, seconds))
    for name, value in seconds.items():
        print(f"{name:<{width}}  {value / per:10.4g} {unit}  {seconds[baseline] / value:6.2f}x")


def kernel_time(function, repeats: int = 50) -> float:
    """Seconds of GPU kernels in one call."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(5):
        function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            function()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / repeats * 1e-6
