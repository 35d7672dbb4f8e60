"""GuessWhat?!: choose the object of an image that a dialogue is about."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from finetune.annotations.example import Example
from finetune.annotations.official_files import find_file, read_lines, scan_lines, take, take_box, unique
from finetune.heads.candidates_head import CandidatesHead
from finetune.task_types.pointing import PointingTask
from shards.common.errors import UserError


class Image(msgspec.Struct):
    """The image of a game."""

    id: int


class Game(msgspec.Struct):
    """The fields of a game that counting images needs."""

    image: Image
    status: str = ""


@dataclass(frozen=True)
class GuessWhat(PointingTask):
    """successful_only: skip games that failed or were not finished."""

    successful_only: bool = False

    def image_counts(self, folder: Path, split: str) -> Counter[tuple[str, ...]]:
        games = scan_lines(find_file(folder, f"guesswhat.{split}.jsonl"), Game)
        counted = (game for game in games if game.status == "success" or not self.successful_only)
        return Counter((str(game.image.id),) for game in counted)

    def examples(self, folder: Path, split: str) -> list[Example]:
        path = find_file(folder, f"guesswhat.{split}.jsonl")
        examples = []
        for where, game in read_lines(path):
            if self.successful_only and take(game, "status", str, where) != "success":
                continue
            objects = take(game, "objects", list, where)
            ids = [take(thing, "id", int, f"{where}, objects") for thing in objects]
            right = take(game, "object_id", int, where)
            if right not in ids:
                raise UserError(f"{where}: object_id {right} is not among its objects")
            image = take(take(game, "image", dict, where), "id", int, f"{where}, image")
            examples.append(
                Example(
                    take(game, "id", int, where),
                    dialogue(take(game, "qas", list, where), where),
                    (str(image),),
                    ids.index(right),
                    tuple(take_box(thing, "bbox", f"{where}, objects") for thing in objects),
                    tuple(map(str, ids)),
                )
            )
        unique((example.id for example in examples), str(path))
        return examples


def dialogue(turns: list[dict], where: str) -> str:
    """A game's questions and answers as one text, in the reference implementation's format."""
    return " ".join(
        f"start {take(turn, 'question', str, where)} answer {take(turn, 'answer', str, where)} stop" for turn in turns
    )


TASKS = (
    GuessWhat(
        name="guesswhat",
        title="GuessWhat",
        group="G3",
        token=17,
        head=CandidatesHead(),
        words=256,
        batch_size=64,
        lr=2e-5,
        images="coco",
        splits=("train", "valid", "test"),
        tests=("test",),
        files=tuple(f"guesswhat.{split}.jsonl" for split in ("train", "valid", "test")),
        max_boxes=205,  # 306 rows in the reference implementation, row 0 and 100 regions among them
    ),
)
