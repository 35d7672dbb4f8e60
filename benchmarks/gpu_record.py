"""The GPU record: checks and measurements on one GPU, written as one JSON line per result.

    python benchmarks/gpu_record.py step resume [--record gpu-record/record.jsonl]    # some stages, in their order
    python benchmarks/gpu_record.py --table docs/gpu.md                               # the records as a page

`benchmarks/gpu_record.sh` runs all stages in an order in which a run that is cut off still leaves the most. On a CPU
everything runs with a small model, as a dry run; its figures mean nothing, and a record of it is marked as such.
"""

import gc
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import torch

from benchmarks.gpu_stages.kernels import attention, machine, operators, packed_attention
from benchmarks.gpu_stages.measuring import ON_GPU, Record
from benchmarks.gpu_stages.pretraining_checks import agree, fp16, memory, nccl, resume
from benchmarks.gpu_stages.pretraining_step import compiled_blocks, compiled_encoder, step
from benchmarks.gpu_stages.region_detection import detector
from benchmarks.gpu_stages.task_steps import tasks
from benchmarks.gpu_stages.whole_program import program, shards
from shards.common.cli import command, flag
from shards.common.errors import UserError

RECORDS = Path(__file__).parent / "records"

STAGES = {
    function.__name__: function
    for function in (
        *(machine, attention, shards, operators, step, agree, resume, program, fp16, memory, nccl, tasks),
        *(detector, packed_attention, compiled_blocks, compiled_encoder),
    )
}


@dataclass
class Config:
    """Flags of this benchmark."""

    stages: tuple[str, ...] = flag((), f"what to run, of {', '.join(STAGES)}", first=True)
    record: str = flag("gpu-record/record.jsonl", "the file to append to", written=True)
    table: str | None = flag(None, "write the records of benchmarks/records to this page instead", written=True)


def run(config: Config) -> int:
    if config.table:
        from benchmarks.gpu_table import page

        Path(config.table).write_text(page(sorted(RECORDS.glob("*.jsonl")), STAGES), encoding="utf-8")
        return 0
    for name in config.stages:
        if name not in STAGES:
            raise UserError(f"{name}: is not a stage; the stages are {', '.join(STAGES)}")
    failed = 0
    for name in config.stages:
        began, record = time.perf_counter(), Record(Path(config.record), name)
        try:
            STAGES[name](record)
        except Exception as error:  # continue with the other stages
            record.add(failed=f"{type(error).__name__}: {str(error)[:400]}")
            failed = 1
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    command(Config, run, "benchmarks/gpu_record.py", __doc__.splitlines()[0], sys.argv[1:])
