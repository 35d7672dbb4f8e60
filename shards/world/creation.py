"""Creates the miniature world: images, annotations, and region shards."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from shards.common.cli import flag
from shards.common.errors import UserError
from shards.common.files import read_json, write_json
from shards.common.folder_lock import LOCK, locked_folder
from shards.config import ExtractConfig
from shards.creation.extraction import extract
from shards.detectors import check_version
from shards.detectors.pixels import PixelDetector
from shards.storage.dataset import UNFINISHED
from shards.world import DEFAULT_WORLD, SETTINGS, is_world
from shards.world.pools import draw_all
from shards.world.tasks import TASK_REGIONS, TaskSizes, pairs_pictures, write_captions, write_tasks

TASKS = "tasks.json"  # written after the tasks; lists the folders of images and boxes
REGIONS = 24  # per image: enough for four objects, and a third less computation than the usual 36


@dataclass
class WorldConfig:
    """Flags of shards.world."""

    out: str = flag(DEFAULT_WORLD, "output folder of the miniature world", written=True)
    pairs: int = flag(6000, "number of image-caption pairs for pretraining", low=1)
    examples: int = flag(1500, "approximate minimum number of training examples per task", low=60)
    one_in: int = flag(200, "size of the real training sets relative to those of the miniature world", low=1)
    evaluation: int = flag(500, "approximate number of examples per evaluation split", low=20)
    seed: int = flag(0, "random seed for scenes and sentences")


def stored_settings(folder) -> WorldConfig:
    """The settings that a world was made with; the default ones if it is not there yet."""
    stored = read_json(Path(folder) / SETTINGS) if is_world(folder) else {}
    return WorldConfig(out=str(folder), **stored)


def make_world(config: WorldConfig, tasks: bool = True) -> Path:
    """Creates the world, or with `tasks` false only its image-caption pairs; existing parts are kept.

    Returns its folder.
    """
    out = Path(config.out)
    settings = {name: value for name, value in vars(config).items() if name != "out"}
    if is_world(out):
        if read_json(out / SETTINGS) != settings:
            raise UserError(f"{out}: contains a world made with other settings; use another --out or remove it")
        for path in sorted((out / "regions").glob("*/dataset.json")):
            check_version(path.parent, PixelDetector, f"remove {out / 'regions'} to extract the regions again")
    if not _is_complete(out, tasks):
        with locked_folder(out, "shards.world"):
            _complete(out, config, settings, tasks)
    return out


def _is_complete(out: Path, tasks: bool) -> bool:
    """Whether a world is complete, so that it need not be locked."""
    names = ["pairs"]
    if tasks and (out / TASKS).exists():
        found = read_json(out / TASKS)
        names += [*found["images"], *found["boxes"]]
    elif tasks:
        return False
    return is_world(out) and all((out / "regions" / name / "dataset.json").exists() for name in names)


def _complete(out: Path, config: WorldConfig, settings: dict, tasks: bool) -> None:
    if not is_world(out):
        if {path.name for path in out.iterdir()} - {LOCK} and not (out / UNFINISHED).exists():
            raise UserError(f"{out}: is not empty and not a miniature world; use another --out")
        write_json(out / UNFINISHED, settings)
        pictures = pairs_pictures(config.pairs, config.seed)
        draw_all({out / "images" / "pairs": pictures})
        write_captions(out / "images" / "pairs", pictures)
        write_json(out / SETTINGS, settings)
        (out / UNFINISHED).unlink()
    words = _extract(out, "pairs", config.seed).parent / "pairs" / "visual_words.npz"
    if tasks:
        _make_tasks(out, config, words)


def _make_tasks(out: Path, config: WorldConfig, words: Path) -> None:
    done = out / TASKS
    if not done.exists():
        for name in TASK_REGIONS:  # regions of pictures that may differ from those drawn now
            shutil.rmtree(out / "regions" / name, ignore_errors=True)
        sizes = TaskSizes(config.examples, config.evaluation, config.one_in, config.seed)
        write_json(done, write_tasks(out, sizes))
    for name in read_json(done)["images"]:
        _extract(out, name, config.seed, words)
    for name, images in read_json(done)["boxes"].items():
        _extract(out, images, config.seed, words, boxes=name)


def _extract(out: Path, images: str, seed: int, words: Path | None = None, boxes: str | None = None) -> Path:
    """The folder of the region shards of a folder of images, which are extracted if missing."""
    folder = out / "regions" / (boxes or images)
    if not (folder / "dataset.json").exists():
        extract(
            ExtractConfig(
                images=str(out / "images" / images),
                out=str(folder),
                boxes=str(out / "images" / f"{boxes}.jsonl") if boxes else None,
                max_regions=REGIONS,
                visual_words_file=str(words) if words else None,
                seed=seed,
            )
        )
    return folder
