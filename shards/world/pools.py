"""Pictures of the miniature world and drawing them. Data sets share images, like the real ones."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.common.files import naming
from shards.common.process_pool import advance, run_tasks
from shards.world.scenes import Thing, draw_scene, make_scene

PER_TASK = 250  # pictures drawn per job of a worker process
COUNTS = (2, 3, 3, 4, 4)  # numbers of objects in scenes of tasks


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        id: image id in annotations.
        file: file name.
        things: objects of the scene.
        key: seed of all random decisions about it.
        same_as: file with the same image in another data set, or "".
    """

    id: int | str
    file: str
    things: tuple[Thing, ...]
    key: tuple[int, ...]
    same_as: str = ""

    def rng(self, purpose: int) -> np.random.Generator:
        """A random generator for one purpose of this image."""
        return np.random.default_rng([*self.key, purpose])


def picture(key: tuple[int, ...], id: int | str, file: str, numbers=COUNTS) -> Picture:
    """A picture of a new scene, whose objects are determined by the key."""
    return Picture(id, file, tuple(make_scene(np.random.default_rng([*key, 0]), numbers)), key)


@dataclass
class Drawing:
    """Pictures to draw into a folder."""

    folder: Path
    pictures: list[Picture]


def draw(drawing: Drawing) -> None:
    for one in drawing.pictures:
        path = drawing.folder / one.file
        with naming(path):
            draw_scene(list(one.things), one.rng(1)).save(path)
        advance()


def draw_all(folders: dict[Path, list[Picture]]) -> None:
    """Draws the pictures of several folders in parallel; those that are equal to another are copied."""
    drawings = []
    for folder, pictures in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        own = [one for one in pictures if not one.same_as]
        drawings += [Drawing(folder, own[begin : begin + PER_TASK]) for begin in range(0, len(own), PER_TASK)]
    total = sum(len(drawing.pictures) for drawing in drawings)
    for _ in run_tasks(draw, drawings, os.cpu_count() or 1, total, "drawings"):
        pass
    for folder, pictures in folders.items():
        for one in pictures:
            if one.same_as:
                shutil.copyfile(folder.parent / one.same_as, folder / one.file)
