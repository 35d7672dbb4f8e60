"""Scoring every caption with every image: the reference implementation's evaluation and ours, in one run.

    python benchmarks/retrieval.py [--images 8] [--captions 40] [--precision bf16] [--device cpu]

Both use the base model with random weights, and the same captions and images of 36 regions. The reference
implementation runs the whole model for one caption with all images at a time; ours computes the text layers below the
first co-attention layer once per caption, and the image embedding once per image. "One image per pass" is ours with
passes of all captions and a single image, as before passes had several images if there are few captions. The scores
are compared too.

At the end, the time for COCO 5K (25,000 captions, 5,000 images) on one GPU is computed, not measured: operations per
pair x pairs / operations per second of the training step in a GPU record, without CUDA graph, as in evaluation.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import print_table, time_in_turn
from finetune.data.task_collate import TaskCollator
from finetune.inference.caption_image_scores import retrieval_scores
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import TaskPass
from finetune.run_dirs.model_source import TASK_TOKENS
from finetune.annotations.example import Example
from finetune.tasks import find_task
from pretrain.config import PRECISIONS
from pretrain.data.collate import Limits
from pretrain.engine.distributed import choose_device
from pretrain.models.model_config import CONFIGS
from pretrain.models.precision import Precision
from pretrain.tokenizer.tokenizer import learn_tokenizer
from shards.common.cli import command, flag
from shards.common.dist_info import ALONE
from shards.storage.sample import Sample

REGIONS = 36
COCO_5K = 25_000 * 5_000  # pairs


@dataclass
class Config:
    """Flags of this benchmark."""

    images: int = flag(8, "number of images to rank", low=1)
    captions: int = flag(40, "number of captions to rank them for", low=1)
    repeats: int = flag(3, "measurements of each variant", low=1)
    batch_size: int = flag(64, "pairs per pass", low=1)
    record: str = flag("benchmarks/records/h100-2026-11-26.jsonl", "GPU record for the computed time")
    precision: str = flag("float32", "precision of matrix products", choices=PRECISIONS)
    device: str = flag("auto", "device; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))


def make_task_pass(config: Config) -> tuple[TaskPass, TaskCollator]:
    """The base model with random captions (7 to 14 tokens) and images."""
    rng, device = np.random.default_rng(0), choose_device(config.device, ALONE)
    words = [f"w{n}" for n in range(500)]
    texts = [" ".join(rng.choice(words, rng.integers(7, 15))) for _ in range(config.captions)]
    corner = rng.random((config.images, REGIONS, 2)) * 0.7
    boxes = np.concatenate([corner, corner + 0.2], -1).astype(np.float32)
    sizes = CONFIGS["base"].replace(task_tokens=TASK_TOKENS)
    features = rng.random((config.images, REGIONS, sizes.v_feature_size)).astype(np.float16)
    size = {"width": 640, "height": 480}
    regions = {str(n): Sample(str(n), features[n], boxes[n], info=size) for n in range(config.images)}
    examples = [Example(n, text, (str(n % config.images),)) for n, text in enumerate(texts)]
    task, tokenizer = find_task("coco_retrieval"), learn_tokenizer(texts, 2000)
    collator = TaskCollator(task, examples, regions, tokenizer, Limits(task.max_tokens, REGIONS, sizes.v_feature_size))
    model = TaskModel(sizes, {}).eval().to(device)
    return TaskPass(model, task, Precision(config.precision, device), task.token), collator


@torch.no_grad()
def as_published(task_pass: TaskPass, collator: TaskCollator) -> np.ndarray:
    """(captions, images): scores by a forward pass per caption with all images."""
    images = list(dict.fromkeys(example.images[0] for example in collator.examples))
    scores = []
    for example in collator.examples:
        pairs = [Example(place, example.text, (image,)) for place, image in enumerate(images)]
        one = TaskCollator(collator.task, pairs, collator.regions, collator.tokenizer, collator.limits)
        scores.append(task_pass.logits(one(0, np.arange(len(pairs))).to(task_pass.device)).double().cpu().numpy())
    return np.stack(scores)


@torch.no_grad()
def ours(task_pass: TaskPass, collator: TaskCollator, batch_size: int) -> np.ndarray:
    return retrieval_scores(task_pass, collator, batch_size, ALONE)


def gflop_per_pair(task_pass: TaskPass, collator: TaskCollator) -> float:
    """Operations of a pair after those of its caption alone: by what two images need more than one."""
    counts = []
    for images in (1, 2):
        examples = [replace(example, images=(str(n % images),)) for n, example in enumerate(collator.examples)]
        with FlopCounterMode(display=False) as counter:
            ours(task_pass, replace(collator, examples=examples), 64)
        counts.append(counter.get_total_flops())
    return (counts[1] - counts[0]) / len(collator.examples) / 1e9


def print_computed_time(path: Path, gflop: float) -> None:
    """The time of a ranking at the operations per second of the last eager training step of 512 pairs in a record."""
    steps = map(json.loads, path.read_text().splitlines())
    step = [step for step in steps if step["stage"] == "step" and (step["way"], step["batch_size"]) == ("eager", 512)][
        -1
    ]
    rate = step["gflop_per_pair"] * step["pairs_per_second"]
    print(
        f"COCO 5K, computed and not measured: {COCO_5K:,} pairs x {gflop:.2f} GFLOP at {rate / 1e3:.0f} TFLOP/s "
        f"({step['device']}, eager training step) = {COCO_5K * gflop / rate / 3600:.1f} h, {rate / gflop:,.0f} pairs/s"
    )


def run(config: Config) -> None:
    task_pass, collator = make_task_pass(config)
    ways = {
        "whole passes": lambda: as_published(task_pass, collator),
        "ours": lambda: ours(task_pass, collator, config.batch_size),
    }
    if config.captions < config.batch_size:
        ways["ours, one image per pass"] = lambda: ours(task_pass, collator, config.captions)
    found = {name: way() for name, way in ways.items()}
    seconds = time_in_turn(ways, config.repeats, 0)
    where = f"{config.precision} on {task_pass.device}"
    print(f"base, {config.captions} captions x {config.images} images of {REGIONS} regions, {where}")
    print_table(seconds, "whole passes", config.captions * config.images * 1e-3, "ms/pair")
    for name, value in seconds.items():
        print(f"{name:<24} {config.captions * config.images / value:8.1f} pairs/s")
    difference = np.abs(found["ours"] - found["whole passes"]).max()
    print(f"largest difference of a score: {difference:.1e} (scores vary by {found['ours'].std():.1e})")
    print_computed_time(Path(config.record), gflop_per_pair(task_pass, collator))


if __name__ == "__main__":
    command(Config, run, "benchmarks/retrieval.py", __doc__.splitlines()[0], sys.argv[1:])
