"""Start-up time and response time of the interactive demo.

    python benchmarks/demo.py [--run runs/mt] [--repeats 3]

Started as `python -m finetune.demo`, until the page is served; the baseline is a Python that imports torch and gradio
alone. Answers are timed by task as the page makes them, with everything that it shows: images decoded in a process of
their own, regions found, the model, and the page of attention; the baseline of each is the model's pass alone.
"""

import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import torch

from finetune.inference.image_upload import Uploads
from finetune.inference.predictor import Predictor
from finetune.pages.demo_backend import DemoBackend
from shards.common.cli import command, flag

PORT = 7868


@dataclass
class Config:
    """Flags of this benchmark."""

    run: str = flag("runs/mt", "a run of finetune.mt")
    repeats: int = flag(3, "starts, and answers of each task", low=1)


def timed(function) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def start(run: str) -> None:
    """Seconds from the start of the demo to the first byte that it serves."""
    flags = ("--run", run, "--port", str(PORT))
    with subprocess.Popen([sys.executable, "-m", "finetune.demo", *flags], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=1).close()
                break
            except OSError:
                time.sleep(0.02)
        process.terminate()


def imports() -> None:
    subprocess.run([sys.executable, "-c", "import torch, gradio"], check=True)


def run(config: Config) -> None:
    print(f"{torch.get_num_threads()} threads")
    base, started = [], []
    for _ in range(config.repeats):
        base.append(timed(imports))
        started.append(timed(lambda: start(config.run)))
    print(f"{'imports alone':<22} {median(base):7.2f} s   1.00x")
    print(f"{'start, until served':<22} {median(started):7.2f} s  {median(started) / median(base):5.2f}x\n")
    uploads = Uploads(10, 25, 10)
    backend = DemoBackend(Predictor(config.run), uploads)
    print(f"{'task':<22} {'model':>7} {'answer':>9}")
    for title, task in backend.tasks.items():
        text, files, boxes = backend.example(title)
        backend.ask(title, text, files, boxes)
        images = [uploads.read(file)[0] for file in files or backend.pool(task)]
        given = [tuple(map(float, box.split(","))) for box in boxes.split(";")] if boxes else []
        query = backend.predictor.query(task.name, text, *images, boxes=given)
        model = median(timed(lambda query=query: backend.predictor.answer(query)) for _ in range(config.repeats))
        whole = median(
            timed(lambda asked=(title, text, files, boxes): backend.ask(*asked)) for _ in range(config.repeats)
        )
        print(f"{title:<22} {model:7.3f} {whole:7.3f} s  {whole / model:5.1f}x")
    uploads.close()


if __name__ == "__main__":
    command(Config, run, "benchmarks/demo.py", "Start and answers of the live page.")
