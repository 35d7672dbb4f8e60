"""Start of multi-task training with annotations of the real sizes: parsed by every process, and prepared once.

    python benchmarks/real_size.py [--one_in 1] [--folder DIR]

Synthetic annotations of all twelve data sets (those of benchmarks/clean.py: five million examples, 2.7 GB) and region
shards of their images, with narrow features, are written first. Then, each in processes of its own: the time until
the first iteration's batches have been read, the private memory of a rank without imported libraries, the peak memory
of all processes together, and how many examples of each task a data worker reads per second. "parsed" reads the
official files in every process; "cold" makes the prepared files first; "warm" finds them. At last the whole time and
the peak memory of finetune.doctor, finetune.clean and finetune.evaluate, which evaluates a new model on NLVR2.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # files of this folder have the names of what they measure

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np

from benchmarks.clean import Writer, measured, resident
from pretrain.tokenizer.tokenizer import SPECIAL
from shards.common.cli import command, flag
from shards.storage.dataset import finish_dataset
from shards.storage.sample import Sample
from shards.storage.writer import write_shard

WIDTH, PER_SHARD = 8, 20_000  # width of the features, images per shard
SECONDS = 1.0  # for the examples per second of a task
# Flags of a run whose model finetune.evaluate scores on all validation examples of a task.
BRIEFLY = {"tasks": "nlvr2", "init": "scratch", "iterations": 1, "max_batch": 8, "validate_on": 8, "device": "cpu"}
PROBE = "import sys; from benchmarks.real_size import probe; probe(*sys.argv[1:])"


@dataclass
class Config:
    """Flags of this benchmark."""

    one_in: int = flag(1, "size of the real data sets relative to the synthetic ones", low=1)
    folder: str | None = flag(None, "folder to write and keep the files", unset="a temporary folder")


def write_regions(data: Path) -> int:
    """Region shards of the images and of the given boxes of all tasks; returns the number of images."""
    from finetune.prepared.packed_examples import PackedExamples
    from finetune.tasks import paper_tasks

    images: dict[str, dict[str, None]] = {}
    for task in paper_tasks().values():
        for split in task.splits[:2]:
            sets, _ = PackedExamples.of(task.read(task.folder(data), split)).images()
            images.setdefault(task.images, {}).update(dict.fromkeys(image for of in sets for image in of))
    for name, of in images.items():
        write_samples(data / "regions" / name, dict.fromkeys(of, ()))
    for task in paper_tasks().values():
        if task.head.has_candidates:
            boxes = {image: tuple(of.boxes) for image, of in task.given_boxes(task.folder(data)).items()}
            write_samples(data / "regions" / f"{task.name}_boxes", boxes)
    return sum(map(len, images.values()))


def write_samples(folder: Path, images: dict[str, tuple[str, ...]]) -> None:
    """A region data set. images: image -> ids of its given boxes, none for three regions."""
    rng, paths = np.random.default_rng(0), []
    names = list(images)
    for begin in range(0, len(names), PER_SHARD):
        paths.append(folder / f"part-{len(paths):05d}.tar")
        write_shard(paths[-1], (sample(rng, name, images[name]) for name in names[begin : begin + PER_SHARD]))
    finish_dataset(folder, paths, detector="synthetic", num_classes=0, extra={})


def sample(rng: np.random.Generator, image: str, box_ids: tuple[str, ...]) -> Sample:
    count = len(box_ids) or 3
    info = {"id": image, "width": 640, "height": 480} | ({"box_ids": list(box_ids)} if box_ids else {})
    features = rng.normal(size=(count, WIDTH)).astype(np.float16)
    return Sample(image, features, np.tile(np.float32([0.1, 0.1, 0.5, 0.5]), (count, 1)), info=info)


def private(process: int | str = "self") -> int:
    """Bytes of a process that are its own; 0 if it has ended. Pages of mapped files, which others may map, are not."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


def probe(data: str, out: str, tokenizer: str, kind: str, rates: str) -> None:
    """Starts multi-task training up to the first iteration's batches, and prints what was measured, as JSON.

    kind: "parsed": without prepared files; "prepared": with them; rates: "rates" to measure examples per second.
    """
    began = time.time() - float(Path("/proc/uptime").read_text().split()[0]) + started()
    import torch

    from finetune.config import MtConfig
    from finetune.prepared import prepare_data
    from finetune.run_dirs import answer_vocabularies
    from finetune.tasks import choose_tasks
    from finetune.training import multi_task_setup
    from pretrain.engine.distributed import connected
    from shards.common.dist_info import launched

    if kind == "parsed":
        for module in (prepare_data, answer_vocabularies):
            module.open_prepared = lambda data, wanted: wanted.value(wanted.read(wanted.task.folder(data)))
        multi_task_setup.prepare_on_every_machine = lambda *_: None
    ranks, device, imported = launched(), torch.device("cpu"), private()
    config = MtConfig(data=data, out=out, init="scratch", tokenizer=tokenizer, workers=1, device="cpu")
    with connected(ranks, device):
        trainer = multi_task_setup.build_multi_task(config, choose_tasks("all"), ranks, device, None)
        built = time.time() - began
        model = sum(weights.nbytes for weights in trainer.engine.model.parameters())
        found = {"built": built, "private": private() - imported - model}  # before a worker shares its memory
        batches = trainer.task.batches()
        next(batches)
        found["first"] = time.time() - began
        found["worker"] = max(map(private, children()), default=0)
        batches.close()
        if rates == "rates":
            found["rates"] = {state.task.name: examples_per_second(state) for state in trainer.task.task_states}
    if ranks.first:
        print(json.dumps(found), flush=True)


def started() -> float:
    """The start of this process in seconds since the machine's."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def children() -> list[int]:
    return list(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def examples_per_second(state) -> float:
    """Examples of random batches per second, in this process."""
    rng, count, began = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        state.training(0, rng.integers(0, state.schedule.samples, state.schedule.batch_size))
        count += state.schedule.batch_size
    return count / (time.perf_counter() - began)


def start(data: Path, kind: str, ranks: int = 1, rates: str = "") -> dict:
    """What `probe` found in the first of some ranks, with the peak memory of all."""
    with tempfile.TemporaryDirectory() as out, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        words = [*SPECIAL, *ascii_lowercase, *map("##{}".format, ascii_lowercase)]
        vocabulary = Path(out, "vocab.txt")
        vocabulary.write_text("\n".join(words) + "\n")
        shared = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if ranks > 1 else {}
        argv = [sys.executable, "-c", PROBE, str(data), f"{out}/run", str(vocabulary), kind, rates]
        processes = []
        for rank in range(ranks):
            place = shared | ({"RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {})
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in place.items()}
            pipe = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
            processes.append(subprocess.Popen(argv, stdout=pipe, cwd=ROOT, env=environment, text=True))
        said: list[str] = []
        reading = threading.Thread(target=lambda: said.append(processes[0].stdout.read()))
        reading.start()
        most = 0
        while any(process.poll() is None for process in processes):
            most = max(most, sum(resident(process.pid) for process in processes))
            time.sleep(0.05)
        reading.join()
        if any(process.returncode for process in processes):
            raise SystemExit("a rank has failed; its message is above")
        return json.loads(said[0].splitlines()[-1]) | {"peak": most}


def describe(name: str, found: dict, baseline: dict) -> str:
    times, memory = (f"{baseline[key] / found[key]:6.2f}x" for key in ("first", "private"))
    return (
        f"{name:<18} {found['first']:7.1f} s {times}   {found['private'] / 1e6:7.0f} MB {memory}   "
        f"{found['worker'] / 1e6:6.0f} MB   {found['peak'] / 1e9:6.2f} GB"
    )


def run(config: Config) -> None:
    with tempfile.TemporaryDirectory() as name:
        data = Path(config.folder or name)
        if not (data / "written").exists():
            Writer(data, config.one_in).all()
            print(f"wrote region shards of {write_regions(data)} images", flush=True)
            (data / "written").touch()
        shutil.rmtree(data / "prepared", ignore_errors=True)
        size = sum(
            path.stat().st_size
            for folder in data.iterdir()
            if folder.name not in ("regions", "clean")
            for path in folder.rglob("*")
            if path.is_file()
        )
        print(f"{size / 1e9:.2f} GB of annotations, one {config.one_in}th of the real size")
        print(f"{'':<18} {'first batches':>17}   {'private memory':>18}   {'worker':>9}   {'peak of all':>9}")
        parsed = start(data, "parsed", rates="rates")
        print(describe("parsed", parsed, parsed), flush=True)
        for title, ranks, rates in (("cold", 1, ""), ("warm", 1, "rates"), ("warm, 2 ranks", 2, "")):
            found = start(data, "prepared", ranks, rates)
            print(describe(title, found, parsed), flush=True)
            for task, rate in found.get("rates", {}).items():
                print(f"  {task:<16} {rate:9.0f} examples/s {rate / parsed['rates'][task]:6.2f}x")
        files = sum(path.stat().st_size for path in (data / "prepared").iterdir())
        print(f"prepared files: {files / 1e9:.2f} GB")
        trained = f"{name}/run"
        flags = {"data": data, "out": trained} | BRIEFLY
        measured("-m", "finetune.mt", *(f"--{key}={value}" for key, value in flags.items()))
        commands = {
            "finetune.doctor": (),
            "finetune.clean": ("--out", f"{name}/clean"),
            "finetune.evaluate": ("--run", trained, "--device", "cpu"),
        }
        for module, more in commands.items():
            for title in ("first", "second"):
                seconds, most, _ = measured("-m", module, "--data", str(data), *more)
                print(f"{module}, {title:<12} {seconds:7.1f} s   {most / 1e9:6.2f} GB", flush=True)


if __name__ == "__main__":
    command(Config, run, "benchmarks/real_size.py", __doc__.splitlines()[0], sys.argv[1:])
