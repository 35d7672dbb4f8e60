"""The GPU record as a Markdown page: `python benchmarks/gpu_record.py --table docs/gpu.md`."""

import json
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

from shards.common.errors import UserError

MISSING = "–"  # for a line without the key
PAIRS, EPOCHS = 3.1e6, 10  # the paper's pretraining: Conceptual Captions, ten epochs

# The keys that identify a result within its stage; a later line with the same values replaces an earlier one.
IDENTITY = {
    "machine": ("product",),
    "attention": ("shape", "backend", "mask"),
    "operators": ("operator", "shape"),
    "packed_attention": ("case",),
    "step": ("way", "batch_size"),
    "compiled_blocks": ("way", "batch_size"),
    "compiled_encoder": ("way", "batch_size"),
    "graph": ("batch_size",),
    "agree": ("way",),
    "resume": ("way",),
    "program": ("way",),
    "fp16": ("precision", "residual"),
    "memory": ("flags",),
    "nccl": ("replicated", "batch_size"),
    "tasks": ("task",),
    "detector": ("precision", "layout"),
    "shards": (),
}

INTRO = """# GPU record

This page contains the results of `benchmarks/gpu_record.py` on GPUs, one section per device. It is generated from the
files in `benchmarks/records` by `python benchmarks/gpu_record.py --table docs/gpu.md`; do not edit it. To repeat the
measurements, run `benchmarks/gpu_record.sh` in the root of the repository on a machine with a GPU, torch and nvcc; copy
`gpu-record/record.jsonl` to `benchmarks/records/NAME-YYYY-MM-DD.jsonl` and generate the page again.

All data and all weights are random, so losses do not show the quality of a model. Figures have three significant
digits. If a result was recorded more than once on the same device, the page has the last one. A dash means that the
record does not contain the figure. A table has a column "commit" where its rows are from different commits."""


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(records: list[Path]) -> dict[str, list[dict]]:
    """Reads the lines of all records by device, in the order of the files, without those replaced by a later line.

    Each line gets the keys `record` (name of its file) and `date` (from that name).

    Raises:
        UserError: a line that is not a JSON object with a stage and a device, or is from a dry run on a CPU.
    """
    devices: dict[str, dict] = {}
    for path in records:
        date = re.search(r"\d{4}-\d\d-\d\d", path.stem)
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
                stage, device = line["stage"], line["device"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}, line {number}: not a JSON object with the keys stage and device; remove the line"
                ) from None
            if str(device).startswith("cpu"):
                raise UserError(f"{path}, line {number}: from a dry run on a CPU; remove the file, only GPUs count")
            line |= {"record": path.name, "date": date[0] if date else None}
            if stage == "agree":
                line.setdefault("way", line.get("precision"))
            elif stage in ("resume", "program") and "failed" not in line:
                line.setdefault("way", "eager")  # older records, without this key, are all eager
            lines = devices.setdefault(device, {})
            lines.pop((stage, "failed"), None)  # the stage has been run again
            lines.pop(key := _key(line), None)
            lines[key] = line
    return {device: list(lines.values()) for device, lines in devices.items()}


def _key(line: dict) -> tuple:
    names = IDENTITY.get(line["stage"], ())
    if "failed" in line and not any(name in line for name in names):
        return line["stage"], "failed"
    return line["stage"], json.dumps([line.get(name) for name in names])


# ---- writing ---------------------------------------------------------------------------------------------------------


def digits(value, count: int = 3) -> str:
    """A value as text: floats to `count` significant digits, other numbers exactly."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return " x ".join(map(str, value))
    if not isinstance(value, float):
        return str(value).replace("|", "\\|").replace("\n", " ")
    rounded = float(f"{value:.{count}g}")
    if rounded == 0 or rounded != rounded:
        return f"{rounded:g}"
    if abs(rounded) < 1e-3:
        return f"{rounded:.{count - 1}e}"
    if 10**count <= abs(rounded) < 1e15:
        return f"{rounded:,.0f}"
    return f"{rounded:#.{count}g}".rstrip(".")


def percent(value) -> str:
    return MISSING if value is None else f"{digits(100.0 * value)}%"


Column = tuple[str, str | Callable[[dict], object]] | tuple[str, str | Callable[[dict], object], Callable]


def table(lines: list[dict], *columns: Column) -> list[str]:
    """A Markdown table. columns: heading, key or function of a line, and how its value is written (digits)."""
    if len({line.get("commit") for line in lines}) > 1:
        columns += (("commit", "commit"),)
    rows = [[column[0] for column in columns], ["---"] * len(columns)]
    for line in lines:
        row = []
        for _, key, *how in columns:
            value = key(line) if callable(key) else line.get(key)
            row.append((how[0] if how else digits)(value))
        rows.append(row)
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def of(lines: list[dict], *stages: str, has: str | None = None) -> list[dict]:
    return [line for line in lines if line["stage"] in stages and (has is None or has in line)]


def section(title: str, text: str, lines: list[dict], *columns: Column) -> list[str]:
    """A heading, a description and the table; empty without lines."""
    return [f"### {title}", "", textwrap.fill(text, 120), "", *table(lines, *columns)] if lines else []


def unique(values: Iterable) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or MISSING


def machine(lines: list[dict]) -> list[str]:
    """Properties common to all lines, matrix rate and bandwidth of the GPU, and the matrix products of the model."""
    rates = of(lines, "machine", has="matrix_tflops")
    rate = rates[-1] if rates else {}
    about = {
        "date": unique(line["date"] for line in lines),
        "records": unique(line["record"] for line in lines),
        "commits": unique(line.get("commit") for line in lines),
        "torch": unique(line.get("torch") for line in lines),
        "CUDA": digits(rate.get("cuda")),
        "GPU memory, GB": digits(rate.get("memory_gb")),
        "CPUs": digits(rate.get("cpus")),
        "bf16 matrix rate, TFLOP/s": digits(rate.get("matrix_tflops")),
        "copy bandwidth (read and written), GB/s": digits(rate.get("copy_gb_s")),
    }
    return [
        *("### Machine", "", "| | |", "|---|---|"),
        *(f"| {name} | {value} |" for name, value in about.items()),
        "",
        *(
            table(
                products,
                ("matrix product, bf16", "product"),
                ("rows x inner x outer", "shape"),
                ("forward, TFLOP/s", "forward_tflops"),
                ("input gradient, TFLOP/s", "input_gradient_tflops"),
                ("weight gradient, TFLOP/s", "weight_gradient_tflops"),
            )
            if (products := of(lines, "machine", has="product"))
            else ()
        ),
    ]


def training_step(lines: list[dict]) -> list[str]:
    steps = of(lines, "step", "compiled_blocks", "compiled_encoder", has="ms")
    graphs = of(lines, "graph", has="batch_size")
    return [
        *section(
            "Training step",
            "An optimizer step of pretraining in bf16 on batches that are on the GPU already. Host: the time in which "
            "the host is occupied with a step. Share of the matrix rate: FLOPs of the matrix products over rows that "
            "are not padding, without attention, against the rate of one large bf16 matrix product that was measured "
            "with the step.",
            steps,
            *(("way", "way"), ("pairs", "batch_size"), ("ms", "ms"), ("host ms", "host_ms")),
            *(("pairs/s", "pairs_per_second"), ("share of the matrix rate", "mfu", percent), ("launches", "launches")),
            *(("kernels, ms", "busy_ms"), ("peak GB", "peak_gb")),
        ),
        *section(
            "Forward and backward as a CUDA graph",
            "Forward and backward of one fixed batch, started kernel by kernel (eager) and as the replay of a CUDA "
            "graph.",
            graphs,
            *(("pairs", "batch_size"), ("eager, ms", "eager_ms"), ("eager, host ms", "eager_host_ms")),
            ("replay, ms", "replay_ms"),
        ),
    ]


def program(lines: list[dict]) -> list[str]:
    def hours(line):
        rate = line.get("pairs_per_second")
        return EPOCHS * PAIRS / rate / 3600 if rate else None

    return section(
        "Whole program",
        "`pretrain.run` on region shards of random pairs. Pairs/s and data wait: medians over the lines of the log "
        "after the first. The hours are computed, not measured: 31 million pairs (ten epochs of 3.1 million) at that "
        "rate.",
        of(lines, "program", has="pairs_per_second"),
        *(("way", "way"), ("pairs/s", "pairs_per_second"), ("data wait", "data_wait_share", percent)),
        *(("hours for ten epochs (computed)", hours), ("steps run", "steps"), ("whole run, s", "whole_run_s")),
        *(("data workers", "workers"), ("peak GB", "peak_gb")),
    )


def correctness(lines: list[dict]) -> list[str]:
    losses = of(lines, "fp16", has="losses")
    readings = max((len(line["losses"]) for line in losses), default=0)

    def loss(number: int) -> Callable[[dict], object]:
        return lambda line: line["losses"][number] if number < len(line["losses"]) else None

    return [
        *section(
            "Agreement with float32 on the CPU",
            "Loss and gradients of one batch from the same weights, on this device against float32 on the CPU. The "
            "error of the gradients is the norm of the difference of all gradients divided by the norm of those of the "
            "CPU.",
            of(lines, "agree", has="loss_error"),
            *(("way", "way"), ("relative error of the loss", "loss_error")),
            ("relative error of the gradients", "gradient_error"),
        ),
        *section(
            "Resume",
            "Six steps twice; and three steps, a checkpoint, and three more from the checkpoint.",
            of(lines, "resume", has="resumed_equal"),
            *(("way", "way"), ("repeated run bit-equal", "repeated_equal")),
            *(("resumed run bit-equal", "resumed_equal"), ("save, s", "save_s"), ("restore, s", "restore_s")),
        ),
        *section(
            "Loss by precision",
            "The same steps in each precision. Losses are means since the previous reading, to five digits; a skipped "
            "step counts as zero in them.",
            losses,
            ("precision", lambda line: line.get("precision", "") + residual(line)),
            *((f"loss {number + 1}", loss(number), lambda value: digits(value, 5)) for number in range(readings)),
            *(
                ("skipped steps", "skipped"),
                ("loss scale at the end", "scale", lambda x: digits(x if x is None else round(x))),
            ),
        ),
    ]


def residual(line: dict) -> str:
    return f" --residual {line['residual']}" if "residual" in line else ""


def memory(lines: list[dict]) -> list[str]:
    return section(
        "Memory by flags",
        "The most memory that torch allocated on the GPU during steps of the published batch of 512 pairs.",
        of(lines, "memory", has="flags"),
        *(("flags", "flags", lambda flags: f"`{flags}`"), ("peak GB", "peak_gb"), ("ms per step", "ms")),
    )


def tasks(lines: list[dict]) -> list[str]:
    return section(
        "The twelve tasks",
        "An optimizer step in bf16 of each task at its own batch size, on batches that are on the GPU already; "
        "and one iteration with a step of every task.",
        of(lines, "tasks", has="task"),
        *(("task", "task"), ("examples", "examples"), ("text tokens", "text_rows")),
        *(("regions and image tokens", "image_rows"), ("ms", "ms"), ("host ms", "host_ms")),
        *(("share of the matrix rate", "mfu", percent), ("peak GB", "peak_gb")),
    )


def attention(lines: list[dict]) -> list[str]:
    measured: dict[tuple, dict] = {}
    for line in of(lines, "attention", has="shape"):
        row = measured.setdefault((str(line["shape"]), line.get("mask"), line.get("commit")), dict(line))
        row[f"of {line.get('backend')}"] = line.get("forward_backward_us", "failed" if "failed" in line else None)
    names = dict.fromkeys(name for row in measured.values() for name in row if name.startswith("of "))
    return section(
        "Attention backends of torch",
        "Forward and backward of `scaled_dot_product_attention` in bf16 with dropout 0.1 on padded batches, in "
        "microseconds. bool: a mask of booleans; bias: the same mask as numbers to add.",
        list(measured.values()),
        *(("batch x heads x queries x keys x width", "shape"), ("mask", "mask")),
        *((name.removeprefix("of "), name) for name in names),
    )


def packed_attention(lines: list[dict]) -> list[str]:
    return section(
        "Attention on packed rows",
        "Forward and backward of `ops.short_attention` in bf16 with dropout 0.1, on 512 sequences of 37 or 101 image "
        "rows and texts of varying length, against torch's default backend on padded batches with the copies between "
        "both.",
        of(lines, "packed_attention", has="packed_ms"),
        *(("case", "case"), ("heads", "heads"), ("head size", "size"), ("padded, ms", "padded_ms")),
        *(("packed, ms", "packed_ms"), ("GB/s", "gb_s")),
    )


def operators(lines: list[dict]) -> list[str]:
    checks, timed = of(lines, "operators", has="backends"), of(lines, "operators", has="operator")
    if not checks and not timed:
        return []
    text = []
    for line in checks:
        used = ", ".join(f"{kind} ({place})" for place, kind in line["backends"].items())
        passed = {True: "passed", False: "failed"}.get(line.get("self_check"), "not recorded")
        text += [f"Implementation in use: {used}. Self-check of the operators: {passed}.", ""]
    return [
        *("### Operators", "", *text),
        *(
            table(
                timed,
                *(("operator", "operator"), ("shape", "shape"), ("kernel, microseconds", "us"), ("GB/s", "gb_s")),
                *(("copy of the same features, GB/s", "copy_gb_s"), ("torch, microseconds", "torch_us")),
            )
            if timed
            else ()
        ),
    ]


def nccl(lines: list[dict]) -> list[str]:
    return section(
        "DistributedDataParallel over NCCL",
        "The step of a single rank, so without any exchange between GPUs, with and without DistributedDataParallel.",
        of(lines, "nccl", has="replicated"),
        *(("DistributedDataParallel", "replicated"), ("pairs", "batch_size"), ("ms", "ms"), ("host ms", "host_ms")),
        ("start of the process group, s", "start_s"),
    )


def detector(lines: list[dict]) -> list[str]:
    return section(
        "Detector",
        "The paper's detector with random weights on images of 800 x 1333 pixels in memory.",
        of(lines, "detector", has="images_per_second"),
        *(("precision", "precision"), ("layout", "layout"), ("batch", "batch"), ("images/s", "images_per_second")),
        *(("share outside the backbone", "outside_backbone", percent), ("host ms per image", "host_ms")),
    )


def failures(lines: list[dict]) -> list[str]:
    def what(line: dict) -> str:
        return ", ".join(f"{name} {digits(line[name])}" for name in IDENTITY.get(line["stage"], ()) if name in line)

    failed = [line for line in lines if "failed" in line]
    if not failed:
        return ["### Failed", "", "No line of the records has a failure.", ""]
    text = "Results that a stage recorded before it failed, or in an earlier run, are in the tables above."
    return section("Failed", text, failed, ("stage", "stage"), ("result", what), ("message", "failed"))


def not_measured(lines: list[dict], stages: Iterable[str], ways: Iterable[str]) -> list[str]:
    found = {line["stage"] for line in lines}
    missing = [f"- stage `{stage}`: not measured" for stage in stages if stage not in found]
    taken = {line.get("way") for line in of(lines, "step")}
    missing += [f"- training step, way `{way}`: not measured" for way in ways if "step" in found and way not in taken]
    missing += [f"- stage `{stage}`: recorded, but has no table" for stage in sorted(found - IDENTITY.keys())]
    return ["### Not measured", "", *(missing or ["Every stage has at least one line."]), ""]


SECTIONS = (
    *(machine, training_step, program, correctness, memory, tasks),
    *(attention, packed_attention, operators, nccl, detector, failures),
)


def page(records: list[Path], stages: Iterable[str]) -> str:
    """The page of all records. stages: those of gpu_record, of which each device has some.

    Raises:
        UserError: no record found, or one is invalid (see read).
    """
    from benchmarks.gpu_stages.pretraining_step import WAYS

    devices = read(records)
    if not devices:
        raise UserError("no record found; create one with benchmarks/gpu_record.sh and copy it to benchmarks/records")
    parts = [INTRO, ""]
    for device, lines in devices.items():
        parts += [f"## {device}", ""]
        for tables in SECTIONS:
            parts += tables(lines)
        parts += not_measured(lines, stages, WAYS)
    return "\n".join(parts).rstrip("\n") + "\n"
