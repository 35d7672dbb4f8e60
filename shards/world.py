"""python -m shards.world --out data/world: the miniature world, the data that everything works on by default.

Images are drawn and written as PNG files with their captions; everything after that is the path of real data.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.captions import make_caption
from shards.dataset import UNFINISHED
from shards.errors import UserError
from shards.extract import ExtractConfig, extract
from shards.files import read_json, write_json
from shards.flags import command, flag
from shards.jobs import advance, run_tasks
from shards.scenes import draw_scene, make_scene

DEFAULT_WORLD = "data/world"
PER_TASK = 250  # drawings of one task
REGIONS = 24  # per image: ample for three objects, and a third less work than the usual 36


@dataclass
class WorldConfig:
    """Flags of shards.world."""

    out: str = flag(DEFAULT_WORLD, "the folder of the world")
    pairs: int = flag(3000, "image-caption pairs for pretraining", low=1)
    seed: int = flag(0, "of scenes and sentences")


def pairs_folder(world) -> Path:
    """The region shards of a world's image-caption pairs."""
    return Path(world) / "regions" / "pairs"


def is_world(folder) -> bool:
    return (Path(folder) / "world.json").exists()


def make_world(config: WorldConfig) -> Path:
    """Draws the world and extracts its regions; what is there already is kept. Returns its folder."""
    out = Path(config.out)
    settings = {"pairs": config.pairs, "seed": config.seed}
    if is_world(out):
        if read_json(out / "world.json") != settings:
            raise UserError(f"{out}: holds a world made with other settings; give another --out or remove it")
    else:
        if out.exists() and any(out.iterdir()) and not (out / UNFINISHED).exists():
            raise UserError(f"{out}: is not empty and not a world; give another --out")
        write_json(out / UNFINISHED, settings)
        _draw_pairs(out / "images" / "pairs", config)
        write_json(out / "world.json", settings)
        (out / UNFINISHED).unlink()
    if not (pairs_folder(out) / "dataset.json").exists():
        images = str(out / "images" / "pairs")
        extract(ExtractConfig(images=images, out=str(pairs_folder(out)), regions=REGIONS, seed=config.seed))
    return out


def _draw_pairs(folder: Path, config: WorldConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        DrawTask(folder, config.seed, begin, min(begin + PER_TASK, config.pairs))
        for begin in range(0, config.pairs, PER_TASK)
    ]
    for _ in run_tasks(draw_pairs, tasks, os.cpu_count() or 1, config.pairs, "drawings"):
        pass


@dataclass
class DrawTask:
    """Pairs `begin` to `end`, to be drawn into a folder."""

    folder: Path
    seed: int
    begin: int
    end: int


def draw_pairs(task: DrawTask) -> None:
    """Draws a task's scenes and writes their captions; each depends on the seed and its number alone."""
    for number in range(task.begin, task.end):
        rng = np.random.default_rng([task.seed, 1, number])
        things = make_scene(rng)
        draw_scene(things, rng).save(task.folder / f"{number:06d}.png")
        (task.folder / f"{number:06d}.txt").write_text(make_caption(things, rng) + "\n", encoding="utf-8")
        advance()


def run(config: WorldConfig) -> None:
    print(f"the world is in {make_world(config)}")


if __name__ == "__main__":
    command(
        WorldConfig,
        run,
        "shards.world",
        "The miniature world: drawn images with captions, and their regions.",
    )
