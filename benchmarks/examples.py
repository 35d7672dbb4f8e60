"""Memory of a million examples, as Python objects and packed, and the time to access one.

    python benchmarks/examples.py [--count 1000000]

Examples are like VQA's, with the answers of ten people.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import multiprocessing
import time

import numpy as np

from finetune.annotations.example import Example
from finetune.prepared.packed_examples import PackedExamples
from shards.common.cli import command, flag


@dataclass
class Config:
    """Flags of this benchmark."""

    count: int = flag(1_000_000, "examples", low=1000)


def make(count: int):
    """Yields examples like a reader: only the answer strings are shared."""
    words = [f"answer{n}" for n in range(3000)]
    for n in range(count):
        answers = [words[(n * 7 + k // 6) % 3000] for k in range(10)]
        facts = {"answers": answers, "answer_type": "other"}
        text = f"What is the number {n} of these questions about?"
        yield Example(n, text, (str(n // 6),), {answers[0]: 1.0, answers[-1]: 0.9}, facts=facts)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def measure(kind, count: int, results) -> None:
    before = resident()
    examples = kind(make(count))
    size = resident() - before
    numbers = np.random.default_rng(0).integers(0, count, 20000).tolist()
    began = time.perf_counter()
    for number in numbers:
        examples[number]
    results.put((size, (time.perf_counter() - began) / len(numbers)))


def run(config: Config) -> None:
    context, sizes = multiprocessing.get_context("spawn"), {}
    for name, kind in (("a list", list), ("packed", PackedExamples.of)):
        results = context.SimpleQueue()
        process = context.Process(target=measure, args=(kind, config.count, results))
        process.start()
        sizes[name], seconds = results.get()
        process.join()
        ratio = sizes["a list"] / sizes[name]
        print(f"{name}  {sizes[name] / 1e6:8.0f} MB  {ratio:6.2f}x  {seconds * 1e6:6.2f} microseconds for one")


if __name__ == "__main__":
    command(Config, run, "benchmarks/examples.py", __doc__.splitlines()[0], sys.argv[1:])
