"""GuessWhat?!: choose the object of an image that a dialogue is about."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from finetune.annotations.example import Example
from finetune.annotations.official_files import (
    corners,
    find_file,
    scan_lines,
    scan_located_lines,
    unique,
)
from finetune.heads.candidates_head import CandidatesHead
from finetune.task_types.pointing import PointingTask
from shards.common.errors import UserError


class Image(msgspec.Struct):
    """The image of a game, its size in pixels."""

    id: int
    width: int | None = None
    height: int | None = None


class Counted(msgspec.Struct):
    """The fields of a game that counting images needs."""

    image: Image
    status: str = ""


class Thing(msgspec.Struct):
    """The fields of an object. bbox: x, y, width, height in pixels."""

    id: int
    bbox: list[float]


class Turn(msgspec.Struct):
    """A question of a dialogue, with its answer."""

    question: str
    answer: str


class Game(msgspec.Struct):
    """The fields of a game that an example needs. status: needed in the splits of successful games."""

    id: int
    image: Image
    objects: list[Thing]
    object_id: int
    qas: list[Turn]
    status: str | None = None


FILES = ("train", "valid", "test")
SUCCESS = "success"  # status of a game whose object was found
SUCCESSFUL = f"-{SUCCESS}"  # suffix of the splits of such games


@dataclass(frozen=True)
class GuessWhat(PointingTask):
    """Splits: train, valid and test have all games, as in the reference implementation; train-success, valid-success
    and test-success only those whose object was found, without failed and unfinished ones."""

    def is_test(self, split: str) -> bool:
        return split.startswith("test")  # test-success is a part of test

    def box_splits(self) -> tuple[str, ...]:
        return FILES

    def image_counts(self, folder: Path, split: str) -> Counter[tuple[str, ...]]:
        games = scan_lines(_file(folder, split), Counted)
        counted = (game for game in games if game.status == SUCCESS or not split.endswith(SUCCESSFUL))
        return Counter((str(game.image.id),) for game in counted)

    def examples(self, folder: Path, split: str) -> list[Example]:
        path, successful = _file(folder, split), split.endswith(SUCCESSFUL)
        examples = []
        for where, game in scan_located_lines(path, Game):
            if successful and game.status is None:
                raise UserError(f"{where}: has no status; download the file again")
            if successful and game.status != SUCCESS:
                continue
            ids = [thing.id for thing in game.objects]
            if game.object_id not in ids:
                raise UserError(f"{where}: object_id {game.object_id} is not among its objects")
            sides = game.image.width, game.image.height
            examples.append(
                Example(
                    game.id,
                    dialogue(game.qas),
                    (str(game.image.id),),
                    ids.index(game.object_id),
                    tuple(corners(thing.bbox, "bbox", f"{where}, objects") for thing in game.objects),
                    tuple(map(str, ids)),
                    {"size": sides} if all(sides) else {},
                )
            )
        unique((example.id for example in examples), str(path))
        return examples


def _file(folder: Path, split: str) -> Path:
    return find_file(folder, f"guesswhat.{split.removesuffix(SUCCESSFUL)}.jsonl")


def dialogue(turns: list[Turn]) -> str:
    """A game's questions and answers as one text, in the reference implementation's format."""
    return " ".join(f"start {turn.question} answer {turn.answer} stop" for turn in turns)


TASKS = (
    GuessWhat(
        name="guesswhat",
        title="GuessWhat",
        group="G3",
        token=17,
        head=CandidatesHead(),
        max_tokens=256,
        batch_size=64,
        lr=2e-5,
        images="coco",
        splits=(*FILES, *(f"{split}{SUCCESSFUL}" for split in FILES)),
        tests=("test",),
        files=tuple(f"guesswhat.{split}.jsonl" for split in FILES),
        max_boxes=205,  # 306 rows in the reference implementation, row 0 and 100 regions among them
    ),
)
