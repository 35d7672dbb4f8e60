"""Pictures and sizes of the data sets of the miniature world, and writing their annotations."""

import gzip
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

from shards.common.files import naming, whole_file, write_json
from shards.world import annotations
from shards.world.captions import make_caption
from shards.world.pools import Picture, draw_all, picture

PAIRS, COCO, GENOME, FLICKR, NLVR2 = range(1, 6)  # the part of a picture's key after the seed


# Training examples and images of the real data sets (table 8 of the paper, and the publications of the data sets).
REAL_EXAMPLES = {
    "vqa": 655_111,
    "vgqa": 1_437_931,
    "gqa": 1_072_062,
    "refcoco": 120_624,
    "refcoco+": 120_191,
    "refcocog": 80_512,
    "visual7w": 93_813,
    "guesswhat": 113_221,
    "nlvr2": 86_373,
    "snli_ve": 529_527,
}
REAL_IMAGES = {"coco": 113_287, "genome": 108_077, "flickr": 29_000}
GIVEN_BOXES = {"visual7w_boxes": "visual7w", "guesswhat_boxes": "coco"}  # file of boxes -> its images
TASK_REGIONS = (*REAL_IMAGES, "nlvr2", "visual7w", *GIVEN_BOXES)  # region shards of the images and boxes of tasks
HELD_OUT = 0.1  # held-out share of Visual Genome QA and GQA, which have fewer questions than the official number


@dataclass(frozen=True)
class TaskSizes:
    """Approximate sizes of the data sets.

    Attributes:
        examples: minimum number of training examples per task.
        evaluation: examples per evaluation split.
        one_in: size of the real training sets relative to ours.
    """

    examples: int
    evaluation: int
    one_in: int
    seed: int

    def training(self, task: str) -> int:
        return max(self.examples, REAL_EXAMPLES[task] // self.one_in)

    def images(self, name: str, least: int) -> int:
        """Number of training images of a data set."""
        return max(least, REAL_IMAGES[name] // self.one_in)

    def of(self, task: str, *evaluated: str) -> dict[str, int]:
        return {"train": self.training(task)} | dict.fromkeys(evaluated, self.evaluation)


def pairs_pictures(count: int, seed: int) -> list[Picture]:
    """The pictures of the image-caption pairs, whose scenes are simpler than those of the tasks."""
    return [picture((seed, PAIRS, n), n, f"{n:06d}.png", numbers=(1, 2, 2, 3)) for n in range(count)]


def write_captions(folder: Path, pictures: list[Picture]) -> None:
    """Writes one caption next to each picture, KEY.txt."""
    for one in pictures:
        text = make_caption(list(one.things), one.rng(2))
        path = (folder / one.file).with_suffix(".txt")
        with naming(path):
            path.write_text(text + "\n", encoding="utf-8")


def coco(sizes: TaskSizes) -> dict[str, list[Picture]]:
    """COCO: train (train2014), val and test (Karpathy splits of val2014), unasked (test2015)."""
    train, half = sizes.images("coco", sizes.examples // 3), sizes.evaluation // 2
    counts = {"train": train, "val": half, "test": half, "unasked": 20}
    years = {"train": "train2014", "val": "val2014", "test": "val2014", "unasked": "test2015"}
    # Ids of val and test alternate, so that the images that VQA holds out, the last by id, are from both.
    turns = [train + place + half * in_test for place in range(half) for in_test in (0, 1)]
    places = {number: train + turn for turn, number in enumerate(turns)}
    pictures, number = {}, 0
    for split, count in counts.items():
        pictures[split] = []
        for _ in range(count):
            key, id = (sizes.seed, COCO, number), 9 + 57 * places.get(number, number)
            pictures[split].append(picture(key, id, f"COCO_{years[split]}_{id:012d}.png"))
            number += 1
    return pictures


def genome(sizes: TaskSizes, of_coco: dict[str, list[Picture]]) -> list[Picture]:
    """The pictures of Visual Genome, of which one third is also in COCO, in training and test splits."""
    shared = [one for split in ("train", "val", "test") for one in of_coco[split]][::2]
    pictures: list[Picture] = []
    for number in range(sizes.images("genome", sizes.examples * 3 // 5)):
        id, place = number + 1, number // 3
        if number % 3 == 0 and place < len(shared):
            same = shared[place]
            pictures.append(Picture(id, f"{id}.png", same.things, (sizes.seed, GENOME, number), f"coco/{same.file}"))
        else:
            pictures.append(picture((sizes.seed, GENOME, number), id, f"{id}.png"))
    return pictures


def gqa_test(sizes: TaskSizes, first: int) -> list[Picture]:
    """The pictures of GQA's test split, which are not in Visual Genome. first: number of pictures of Visual Genome."""
    return [picture((sizes.seed, GENOME, first + n), f"n{n + 1}", f"n{n + 1}.png") for n in range(20)]


def flickr(sizes: TaskSizes) -> dict[str, list[Picture]]:
    train, evaluated = sizes.images("flickr", sizes.examples // 5), sizes.evaluation * 2 // 5
    counts = {"train": train, "val": evaluated, "test": evaluated}
    pictures, number = {}, 0
    for split, count in counts.items():
        pictures[split] = []
        for _ in range(count):
            id = 1_000_092_795 + 37 * number
            pictures[split].append(picture((sizes.seed, FLICKR, number), id, f"{id}.png"))
            number += 1
    return pictures


def as_visual7w(pictures: list[Picture]) -> list[Picture]:
    """Pictures of Visual Genome with the file names of Visual7W."""
    return [Picture(one.id, f"v7w_{one.id}.png", one.things, one.key, f"genome/{one.file}") for one in pictures]


def divide(pictures: list[Picture], sizes: TaskSizes, names: tuple[str, str, str]) -> dict[str, list[Picture]]:
    """Divides pictures into three splits in proportion to training and evaluation examples."""
    total = sizes.examples + 2 * sizes.evaluation
    ends = [0, len(pictures) * sizes.examples // total, len(pictures) * (sizes.examples + sizes.evaluation) // total]
    return {name: pictures[begin:end] for name, begin, end in zip(names, ends, [*ends[1:], None], strict=True)}


@dataclass(frozen=True)
class Pictures:
    """The pictures of the tasks by split, as the data sets name them."""

    coco: dict[str, list[Picture]]
    genome: list[Picture]
    gqa: dict[str, list[Picture]]
    visual7w: dict[str, list[Picture]]
    flickr: dict[str, list[Picture]]

    @classmethod
    def of(cls, sizes: TaskSizes) -> "Pictures":
        of_coco = coco(sizes)
        of_genome = genome(sizes, of_coco)
        return cls(
            coco=of_coco,
            genome=of_genome,
            gqa=divide(of_genome, sizes, ("train", "val", "testdev")) | {"test": gqa_test(sizes, len(of_genome))},
            visual7w=divide(as_visual7w(of_genome), sizes, ("train", "val", "test")),
            flickr=flickr(sizes),
        )

    def by_folder(self) -> dict[str, list[Picture]]:
        """Folder of images -> its pictures, without those of NLVR2."""
        return {
            "coco": [one for split in self.coco.values() for one in split],
            "genome": self.genome + self.gqa["test"],
            "flickr": [one for split in self.flickr.values() for one in split],
            "visual7w": [one for split in self.visual7w.values() for one in split],
        }


def question_files(pictures: Pictures, sizes: TaskSizes) -> dict[str, dict]:
    """Task -> file -> content, of VQA, Visual Genome QA and GQA."""
    of_coco = pictures.coco
    # Half of VQA's val is training data; the other half is minval.
    vqa_pictures = {
        "train2014": of_coco["train"],
        "val2014": of_coco["val"] + of_coco["test"],
        "test2015": of_coco["unasked"],
    }
    vqa_counts = {
        "train2014": max(1, sizes.training("vqa") - sizes.evaluation),
        "val2014": 2 * sizes.evaluation,
        "test2015": 60,
    }
    coco_ids = {f"coco/{one.file}": one.id for split in ("train", "val", "test") for one in of_coco[split]}
    gqa_total = round(sizes.training("gqa") / (1 - HELD_OUT))
    gqa_val = max(sizes.evaluation, round(gqa_total * HELD_OUT))
    gqa_counts = {"train": gqa_total - gqa_val, "val": gqa_val, "testdev": sizes.evaluation, "test": 60}
    return {
        "vqa": annotations.vqa(vqa_pictures, vqa_counts),
        "vgqa": annotations.vgqa(pictures.genome, round(sizes.training("vgqa") / (1 - HELD_OUT)), coco_ids),
        "gqa": annotations.gqa(pictures.gqa, gqa_counts),
    }


def retrieval_files(pictures: Pictures, sizes: TaskSizes) -> dict[str, dict]:
    """Task -> file -> content, of the two retrieval tasks."""
    train, val, test = (pictures.coco[split] for split in ("train", "val", "test"))
    cut = len(val) * 4 // 5  # the rest of val is Karpathy's restval, part of the training data
    captioned = {
        "train": train[: sizes.images("coco", sizes.examples // 5) - (len(val) - cut)],
        "restval": val[cut:],
        "val": val[:cut],
        "test": test[:cut],
    }
    return {
        "coco_retrieval": annotations.karpathy(captioned, coco=True),
        "flickr_retrieval": annotations.karpathy(pictures.flickr, coco=False),
    }


def expression_files(pictures: Pictures, sizes: TaskSizes) -> dict[str, dict]:
    """Task -> file -> content, of the three data sets of referring expressions."""
    train, val, test = (pictures.coco[split] for split in ("train", "val", "test"))
    splits, files = {"train": train, "val": val, "testA": test, "testB": test}, {}
    for style in ("refcoco", "refcoco+"):
        files[style] = annotations.refer(splits, sizes.of(style, "val", "testA", "testB"), style)
    splits = {"train": train, "val": val, "test": test}
    return files | {"refcocog": annotations.refer(splits, sizes.of("refcocog", "val", "test"), "refcocog")}


def write_tasks(out: Path, sizes: TaskSizes) -> dict:
    """Draws the pictures and writes the annotations of all tasks; returns the folders of images and boxes."""
    pictures = Pictures.of(sizes)
    nlvr2, of_nlvr2 = annotations.nlvr2(sizes.of("nlvr2", "dev", "test1"), (sizes.seed, NLVR2))
    v7w, v7w_boxes = annotations.visual7w(pictures.visual7w, sizes.of("visual7w", "val", "test"))
    of_games = {"train": pictures.coco["train"], "valid": pictures.coco["val"], "test": pictures.coco["test"]}
    games, game_boxes = annotations.guesswhat(of_games, sizes.of("guesswhat", "valid", "test"))
    of_snli_ve = {{"val": "dev"}.get(split, split): of for split, of in pictures.flickr.items()}
    files = {
        **question_files(pictures, sizes),
        **retrieval_files(pictures, sizes),
        **expression_files(pictures, sizes),
        "visual7w": v7w,
        "guesswhat": games,
        "nlvr2": nlvr2,
        "snli_ve": annotations.snli_ve(of_snli_ve, sizes.of("snli_ve", "dev", "test")),
    }
    images = pictures.by_folder() | {"nlvr2": of_nlvr2}
    draw_all({out / "images" / name: of for name, of in images.items()})
    for name, lines in {"visual7w_boxes": v7w_boxes, "guesswhat_boxes": game_boxes}.items():
        _write(out / "images" / f"{name}.jsonl", lines)
    for task, of_task in files.items():
        for name, value in of_task.items():
            _write(out / task / name, value)
    return {"images": list(images), "boxes": GIVEN_BOXES}


def _write(path: Path, value) -> None:
    """Writes JSON, JSON Lines (compressed or not), or a pickle of protocol 2, depending on the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".p":
        with whole_file(path) as file:
            file.write(pickle.dumps(value, protocol=2))
    elif isinstance(value, list) and path.name != "question_answers.json" and path.name != "image_data.json":
        text = "".join(json.dumps(line) + "\n" for line in value).encode()
        with whole_file(path) as file:
            file.write(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    else:
        write_json(path, value)
