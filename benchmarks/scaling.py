"""Predicted step time and scaling efficiency of pretraining on many GPUs, from the step times of one GPU.

    python benchmarks/scaling.py [--device 'NVIDIA H100 80GB HBM3'] [--network_gb_s 40]

It needs no GPU: step times come from the records in benchmarks/records, the rest is a model whose assumptions are
printed with the result. Nothing here was measured on more than one GPU.
"""

import math
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
import torch

from benchmarks.gpu_table import digits, of, read
from pretrain.engine.distributed import BLOCK
from pretrain.models.model_config import ModelConfig
from pretrain.models.pretraining_heads import PretrainingModel
from shards.common.cli import command, flag
from shards.common.errors import UserError

GLOBAL_BATCH, PER_GPU = 512, 64
GPUS = (1, 8, 64, 512)
EAGER, GRAPH = "eager", "--cuda_graph true"
DDP_BUCKET = 25 * 2**20  # bytes: the default of DistributedDataParallel

# Ranks -> ms of the agreement before a step over gloo, measured on two CPU cores that all ranks shared.
AGREEMENT_MS = {2: 0.6, 4: 4.7, 8: 8.7, 16: 13.9}


@dataclass
class Config:
    """Flags of this script."""

    records: str = flag(str(Path(__file__).parent / "records"), "folder of GPU records (JSON lines)")
    device: str | None = flag(None, "GPU whose records are used; needed if the records have several")
    gpus_per_node: int = flag(8, "GPUs in a node", low=1)
    nvlink_gb_s: float = flag(350.0, "ring bandwidth of a GPU within a node, GB/s in one direction", above=0)
    nvlink_us: float = flag(5.0, "latency of a ring step within a node, microseconds", low=0)
    network_gb_s: float = flag(40.0, "network bandwidth of a GPU between nodes, GB/s in one direction", above=0)
    network_us: float = flag(15.0, "latency of a ring step between nodes, microseconds", low=0)
    overlap: float = flag(0.5, "share of an eager step that hides the all-reduce (its backward)", low=0, high=1)
    agreement: str = flag("log", "growth of the agreement with the number of ranks", choices=("log", "linear"))


@dataclass(frozen=True)
class Affine:
    """fixed + per_unit * x, never below 0."""

    fixed: float
    per_unit: float

    @classmethod
    def fit(cls, points: dict[float, float]) -> "Affine":
        """The least-squares line through (x, y), two at least."""
        per_unit, fixed = np.polyfit(list(points), list(points.values()), 1)
        return cls(float(fixed), float(per_unit))

    def __call__(self, x: float) -> float:
        return max(0.0, self.fixed + self.per_unit * x)


@dataclass(frozen=True)
class Agreement:
    """Milliseconds of the all-reduce over gloo before a step (agreement between ranks), fitted to AGREEMENT_MS."""

    growth: str

    @property
    def line(self) -> Affine:
        return Affine.fit({self._x(ranks): ms for ranks, ms in AGREEMENT_MS.items()})

    def _x(self, ranks: int) -> float:
        return math.log2(ranks) if self.growth == "log" else ranks

    def __call__(self, ranks: int) -> float:
        return self.line(self._x(ranks)) if ranks > 1 else 0.0

    def __str__(self) -> str:
        x = "log2(ranks)" if self.growth == "log" else "ranks"
        error = max(abs(self(ranks) - ms) for ranks, ms in AGREEMENT_MS.items())
        line = self.line
        sign = "+" if line.fixed >= 0 else "-"
        return f"{line.per_unit:.2f} {x} {sign} {abs(line.fixed):.2f} ms, at least 0 (largest residual {error:.2f} ms)"


@dataclass(frozen=True)
class Way:
    """A variant of the step on one GPU: measured milliseconds by batch size, of the step and of the host's part.

    Times for other batch sizes are from a linear fit.
    """

    name: str
    ms: dict[int, float]
    host_ms: dict[int, float]

    @property
    def overlaps(self) -> bool:
        """Whether gradients are exchanged during the backward pass; with a CUDA graph they are exchanged after it."""
        return GRAPH not in self.name

    def at(self, points: dict[int, float], pairs: int) -> float | None:
        """Milliseconds at a batch size; None if it cannot be derived from the measurements."""
        if pairs in points:
            return points[pairs]
        return Affine.fit(points)(pairs) if len(points) > 1 else None


def ways(lines: list[dict]) -> list[Way]:
    """The eager step and every recorded way that has a CUDA graph."""
    steps = of(lines, "step", has="ms")
    names = dict.fromkeys([EAGER, GRAPH, *(line["way"] for line in steps if GRAPH in line.get("way", ""))])
    result = []
    for name in names:
        measured = [line for line in steps if line.get("way") == name and line.get("batch_size")]
        ms = {line["batch_size"]: line["ms"] for line in measured}
        result.append(Way(name, ms, {line["batch_size"]: line.get("host_ms", line["ms"]) for line in measured}))
    return result


def gradient_numbers() -> int:
    """Parameters of the published configuration; pretraining gives every one of them a gradient."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in PretrainingModel(ModelConfig()).parameters())


def all_reduce_ms(config: Config, gpus: int, size: float, calls: int) -> float:
    """Milliseconds for the sum of `size` bytes over all GPUs, in `calls` parts, by rings on two levels.

    Within a node a ring reduce-scatter before and a ring all-gather after; between nodes a ring all-reduce in which
    every GPU exchanges its share of the gradients over its own network adapter.
    """
    local = min(gpus, config.gpus_per_node)
    nodes = math.ceil(gpus / config.gpus_per_node)
    within = (
        2 * (local - 1) / local * size / (config.nvlink_gb_s * 1e9) + calls * 2 * (local - 1) * config.nvlink_us / 1e6
    )
    between = 2 * (nodes - 1) / nodes * size / local / (config.network_gb_s * 1e9)
    between += calls * 2 * (nodes - 1) * config.network_us / 1e6
    return 1e3 * (within + between)


@dataclass(frozen=True)
class Prediction:
    """Milliseconds of a step on a number of GPUs and what it consists of."""

    gpus: int
    pairs: int
    ms: float
    one_ms: float
    host_ms: float
    reduce_ms: float
    exposed_ms: float
    agreement_ms: float

    @property
    def pairs_per_second(self) -> float:
        return self.gpus * self.pairs / self.ms * 1e3


def predict(config: Config, way: Way, gpus: int, pairs: int, copy_gb_s: float | None) -> Prediction | None:
    """The step on `gpus` GPUs with `pairs` pairs each; None if the records have too few step times."""
    one, host = way.at(way.ms, pairs), way.at(way.host_ms, pairs)
    if one is None or host is None:
        return None
    size = 4 * gradient_numbers()
    calls = math.ceil(size / (DDP_BUCKET if way.overlaps else 4 * BLOCK))
    reduce = all_reduce_ms(config, gpus, size, calls)
    if way.overlaps:
        exposed = max(reduce / calls, reduce - config.overlap * one)
    else:  # gathered into blocks before and copied back after: each number is read and written twice
        exposed = reduce + (4 * size / (copy_gb_s * 1e9) * 1e3 if gpus > 1 and copy_gb_s else 0.0)
    agreement = Agreement(config.agreement)(gpus)
    ms = max(one + exposed, host + agreement)
    return Prediction(gpus, pairs, ms, one, host, reduce, exposed, agreement)


def tables(config: Config, way: Way, copy_gb_s: float | None) -> list[str]:
    """The predictions for one way, as lines of text."""
    if not way.ms:
        return [f"{way.name}: not measured, so nothing is predicted", ""]
    measured = ", ".join(
        f"{ms:.1f} ms (host {way.host_ms[pairs]:.1f})" + f" at {pairs}" for pairs, ms in way.ms.items()
    )
    lines = [f"{way.name}: measured on one GPU {measured} pairs"]
    for title, batch in (
        (f"global batch {GLOBAL_BATCH}", lambda gpus: GLOBAL_BATCH // gpus),
        (f"{PER_GPU} pairs per GPU", lambda gpus: PER_GPU),
    ):
        lines.append(
            f"  {title:<20} {'pairs/GPU':>9} {'1 GPU ms':>9} {'all-reduce':>10} {'exposed':>8} "
            f"{'agreement':>9} {'step ms':>8} {'pairs/s':>10} {'efficiency':>10}"
        )
        base = None
        for gpus in GPUS:
            label = f"{gpus:>4} GPU{'s' if gpus > 1 else ''}"
            found = predict(config, way, gpus, batch(gpus), copy_gb_s)
            if found is None:
                lines.append(f"  {label:<20} {batch(gpus):>9}  too few batch sizes measured")
                continue
            base = found.pairs_per_second if gpus == 1 else base
            share = f"{found.pairs_per_second / gpus / base:.1%}" if base else "unknown"
            mark = "" if found.pairs in way.ms else "*"
            lines.append(
                f"  {label:<20} {found.pairs:>9} {found.one_ms:>8.1f}{mark or ' '} {found.reduce_ms:>10.1f} "
                f"{found.exposed_ms:>8.1f} {found.agreement_ms:>9.1f} {found.ms:>8.1f} "
                f"{digits(found.pairs_per_second):>10} {share:>10}"
            )
    return [*lines, ""]


def assumptions(config: Config, device: str, lines: list[dict], copy_gb_s: float | None) -> list[str]:
    """Everything that the predictions assume, as lines of text."""
    numbers = gradient_numbers()
    commits = ", ".join(dict.fromkeys(str(line.get("commit")) for line in of(lines, "step")))
    copied = f"{digits(copy_gb_s)} GB/s, measured" if copy_gb_s else "not measured, so not included"
    points = ", ".join(f"{ms} ms" for ms in AGREEMENT_MS.values())
    stated = (
        f"gradients: {numbers:,} float32 numbers, {4 * numbers / 1e9:.3f} GB per step (counted from the model)",
        f"{config.gpus_per_node} GPUs per node. All-reduce by rings: reduce-scatter and all-gather within a node at "
        f"{config.nvlink_gb_s:g} GB/s per GPU and {config.nvlink_us:g} us per ring step; all-reduce between nodes at "
        f"{config.network_gb_s:g} GB/s per GPU, each with its own adapter, and {config.network_us:g} us per ring step. "
        "n GPUs or nodes exchange 2 (n - 1) / n of the bytes in 2 (n - 1) ring steps per call. Bandwidths and "
        "latencies are assumed; trees, which NCCL can use instead and which have fewer steps, are not modelled",
        f"eager: DistributedDataParallel with {DDP_BUCKET / 2**20:g} MB per call; the all-reduce is hidden behind "
        f"{config.overlap:.0%} of the step, but never its last call; host time of DistributedDataParallel is excluded",
        f"CUDA graph: {4 * BLOCK / 2**20:g} MB per call after the backward pass, nothing hidden; copying gradients "
        f"into blocks and back moves 4 times their bytes at the copy bandwidth ({copied})",
        f"agreement over gloo, on the host before each step: {Agreement(config.agreement)}, fitted to {points} for "
        f"{', '.join(map(str, AGREEMENT_MS))} ranks that shared two CPU cores, without a network; extrapolated for "
        f"more than {max(AGREEMENT_MS)} ranks",
        "step = max(1 GPU ms + exposed all-reduce, host ms + agreement): the agreement delays the host only",
        "* marks a batch size that was not measured: straight line through the measured ones",
        "efficiency: pairs/s per GPU relative to one GPU, at the same global batch or the same batch per GPU",
        "no time for data, logging, validation, checkpoints, slow nodes or network contention",
    )
    return [
        f"Predictions, not measurements. Step times: one {device}, bf16, commit {commits}.",
        "Assumptions:",
        *(textwrap.fill(f"- {text}", 112, subsequent_indent="  ") for text in stated),
        "",
    ]


def report(config: Config) -> list[str]:
    """The lines to print.

    Raises:
        UserError: no usable record, or several devices and none chosen.
    """
    devices = read(sorted(Path(config.records).glob("*.jsonl")))
    devices = {name: lines for name, lines in devices.items() if of(lines, "step", has="ms")}
    if not devices:
        raise UserError(f"--records {config.records}: no record of the stage step")
    if config.device is None and len(devices) > 1:
        raise UserError(f"--device is needed; the records have {', '.join(devices)}")
    device = config.device or next(iter(devices))
    if device not in devices:
        raise UserError(f"--device {device}: no record of the stage step; the records have {', '.join(devices)}")
    lines = devices[device]
    copies = of(lines, "machine", has="copy_gb_s")
    copy_gb_s = copies[-1]["copy_gb_s"] if copies else None
    text = assumptions(config, device, lines, copy_gb_s)
    for way in ways(lines):
        text += tables(config, way, copy_gb_s)
    return text


def run(config: Config) -> None:
    print("\n".join(report(config)), end="")


if __name__ == "__main__":
    command(Config, run, "benchmarks/scaling.py", __doc__.splitlines()[0], sys.argv[1:])
