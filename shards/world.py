"""python -m shards.world --out data/world: the miniature world, the data that everything works on by default.

Images are drawn and written as PNG files with their captions; everything after that is the path of real data.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shards.captions import make_caption
from shards.dataset import UNFINISHED
from shards.errors import UserError
from shards.extract import ExtractConfig, extract
from shards.files import read_json, write_json
from shards.flags import command, flag
from shards.scenes import draw_scene, make_scene


@dataclass
class WorldConfig:
    """Flags of shards.world."""

    out: str = flag("data/world", "the folder of the world")
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
        extract(ExtractConfig(images=str(out / "images" / "pairs"), out=str(pairs_folder(out)), seed=config.seed))
    return out


def _draw_pairs(folder: Path, config: WorldConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(config.pairs), unit=" images", desc="drawing", mininterval=0.5, dynamic_ncols=True):
        rng = np.random.default_rng([config.seed, 1, number])
        things = make_scene(rng)
        draw_scene(things, rng).save(folder / f"{number:06d}.png")
        (folder / f"{number:06d}.txt").write_text(make_caption(things, rng) + "\n", encoding="utf-8")


def run(config: WorldConfig) -> None:
    print(f"the world is in {make_world(config)}")


if __name__ == "__main__":
    command(
        WorldConfig,
        run,
        "shards.world",
        "The miniature world: drawn images with captions, and their regions.",
    )
