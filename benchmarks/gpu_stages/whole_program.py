"""The whole program: pretrain.run on region shards of random pairs."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.gpu_stages.measuring import BATCH_SIZE, ON_GPU, Record
from benchmarks.gpu_stages.pretraining_step import EAGER, FASTEST, model_config


def scratch() -> Path:
    return Path(os.environ.get("SCRATCH", tempfile.gettempdir()))


def shards(record: Record) -> None:
    """Region shards of random pairs for the stage `program`, written by several processes."""
    from shards.storage.dataset import finish_dataset

    folder, count, parts = scratch() / "pairs", *((8192, 16) if ON_GPU else (24, 2))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    with ProcessPoolExecutor(min(parts, os.cpu_count() or 1)) as pool:
        paths = list(pool.map(write_part, [(folder, part, count // parts) for part in range(parts)]))
    finish_dataset(folder, paths, detector="random", num_classes=1601, extra={})
    record.add(pairs=count, seconds=time.perf_counter() - began)


def write_part(job: tuple[Path, int, int]) -> Path:
    from shards.storage.sample import Sample
    from shards.storage.writer import write_shard

    folder, part, count = job
    rng, words = np.random.default_rng(part), [f"word{number}" for number in range(400)]

    def samples():
        for number in range(count):
            corner = rng.random((36, 2)) * 0.7
            length = int(np.clip(round(rng.normal(10, 4.5)), 3, 34))
            yield Sample(
                key=f"{part:03d}{number:06d}",
                features=rng.random((36, 2048), np.float32).astype(np.float16),
                boxes=np.concatenate([corner, corner + 0.2], 1).astype(np.float32),
                class_ids=np.tile(np.arange(20, dtype=np.int16), (36, 1)),
                class_probs=np.full((36, 20), 0.99 / 20, np.float16),
                info={"id": f"{part}-{number}", "width": 640, "height": 480, "source": ""},
                captions=(" ".join(rng.choice(words, length)),),
            )

    path = folder / f"regions-{part:05d}.tar"
    write_shard(path, samples())
    return path


def program(record: Record) -> None:
    """pretrain.run on the shards of the stage `shards`: pairs per second of a whole run, and the share of data wait."""
    for graph in (True, False) if ON_GPU else (False,):
        run_program(record, graph)


def run_program(record: Record, graph: bool) -> None:
    config, out = scratch() / "base.json", scratch() / "run"
    config.write_text(json.dumps(model_config().to_dict()))
    workers = min(8, os.cpu_count() or 1)
    flags = {
        "data": scratch() / "pairs",
        "config": config,
        "out": out,
        "precision": "bf16",
        "residual": "precision" if graph else "float32",
        "cuda_graph": graph,
        "batch_size": BATCH_SIZE,
        "epochs": 10 if ON_GPU else 1,
        "lr": 1e-4,
        "workers": workers,
        "validation_pairs": 0,
        "log_every": 20 if ON_GPU else 1,
        "seed": 1,
    }
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pretrain.run", *(f"--{name}={value}" for name, value in flags.items())],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    whole = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-300:])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    later = training[1:] or training  # the first line includes the start of the data workers
    record.add(
        way=FASTEST if graph else EAGER,
        pairs_per_second=statistics.median(line["samples_per_second"] for line in later),
        data_wait_share=statistics.median(line["data_wait_share"] for line in later),
        first_line_pairs_per_second=training[0]["samples_per_second"],
        workers=workers,
        steps=training[-1]["step"],
        whole_run_s=whole,
        last_loss=training[-1]["loss"],
        peak_gb=training[-1]["memory_gb"],
    )
