"""Which pictures each of the world's data sets has, how many of everything, and writing it all."""

import gzip
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

from shards.files import whole_file, write_json
from shards.world import annotations
from shards.world.captions import make_caption
from shards.world.pools import Picture, draw_all, picture

PAIRS, COCO, GENOME, FLICKR, NLVR2 = range(1, 6)  # the first part of a picture's key after the seed


@dataclass(frozen=True)
class TaskSizes:
    """examples: to train on, of each task; evaluation: of each evaluation split; both about."""

    examples: int
    evaluation: int
    seed: int

    def of(self, *evaluated: str, train: str = "train") -> dict[str, int]:
        return {train: self.examples} | dict.fromkeys(evaluated, self.evaluation)


def pairs_pictures(count: int, seed: int) -> list[Picture]:
    """The pictures of the image-caption pairs, which are of simpler scenes than the tasks'."""
    return [picture((seed, PAIRS, n), n, f"{n:06d}.png", numbers=(1, 2, 2, 3)) for n in range(count)]


def write_captions(folder: Path, pictures: list[Picture]) -> None:
    """One caption beside each picture, KEY.txt."""
    for one in pictures:
        text = make_caption(list(one.things), one.rng(2))
        (folder / one.file).with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def coco(sizes: TaskSizes) -> dict[str, list[Picture]]:
    """train (train2014), val and test (both of val2014, as Karpathy divides it), unasked (test2015)."""
    counts = {"train": sizes.examples // 3, "val": sizes.evaluation // 2, "test": sizes.evaluation // 2, "unasked": 20}
    years = {"train": "train2014", "val": "val2014", "test": "val2014", "unasked": "test2015"}
    pictures, number = {}, 0
    for split, count in counts.items():
        pictures[split] = []
        for _ in range(count):
            key, id = (sizes.seed, COCO, number), 9 + 57 * number
            pictures[split].append(picture(key, id, f"COCO_{years[split]}_{id:012d}.png"))
            number += 1
    return pictures


def genome(sizes: TaskSizes, of_coco: dict[str, list[Picture]]) -> list[Picture]:
    """Visual Genome's pictures, one in three of them COCO's as well, training and test pictures alike."""
    shared = [one for split in ("train", "val", "test") for one in of_coco[split]][::2]
    count, pictures = sizes.examples * 3 // 5, []
    for number in range(count):
        id, place = number + 1, number // 3
        if number % 3 == 0 and place < len(shared):
            same = shared[place]
            pictures.append(Picture(id, f"{id}.png", same.things, (sizes.seed, GENOME, number), f"coco/{same.file}"))
        else:
            pictures.append(picture((sizes.seed, GENOME, number), id, f"{id}.png"))
    return pictures


def flickr(sizes: TaskSizes) -> dict[str, list[Picture]]:
    counts = {"train": sizes.examples // 5, "val": sizes.evaluation * 2 // 5, "test": sizes.evaluation * 2 // 5}
    pictures, number = {}, 0
    for split, count in counts.items():
        pictures[split] = []
        for _ in range(count):
            id = 1_000_092_795 + 37 * number
            pictures[split].append(picture((sizes.seed, FLICKR, number), id, f"{id}.png"))
            number += 1
    return pictures


def as_visual7w(pictures: list[Picture]) -> list[Picture]:
    """Visual Genome's pictures under Visual7W's names."""
    return [Picture(one.id, f"v7w_{one.id}.png", one.things, one.key, f"genome/{one.file}") for one in pictures]


def divide(pictures: list[Picture], sizes: TaskSizes, names: tuple[str, str, str]) -> dict[str, list[Picture]]:
    """Pictures in three splits in the proportion of training and evaluation examples."""
    total = sizes.examples + 2 * sizes.evaluation
    ends = [0, len(pictures) * sizes.examples // total, len(pictures) * (sizes.examples + sizes.evaluation) // total]
    return {name: pictures[begin:end] for name, begin, end in zip(names, ends, [*ends[1:], None], strict=True)}


def write_tasks(out: Path, sizes: TaskSizes) -> dict:
    """Draws the pictures and writes the annotations of all tasks; says which folders of images and boxes there are."""
    of_coco, of_flickr = coco(sizes), flickr(sizes)
    of_genome = genome(sizes, of_coco)
    of_visual7w = divide(as_visual7w(of_genome), sizes, ("train", "val", "test"))
    train, val, test = of_coco["train"], of_coco["val"], of_coco["test"]
    cut = len(val) * 4 // 5  # the rest of val is Karpathy's restval, which counts as training
    nlvr2, of_nlvr2 = annotations.nlvr2(sizes.of("dev", "test1"), (sizes.seed, NLVR2))
    coco_ids = {f"coco/{one.file}": one.id for split in (train, val, test) for one in split}
    # VQA's val holds half back as minval, and GQA's train and val a quarter.
    vqa_counts = {"train2014": sizes.examples, "val2014": 2 * sizes.evaluation, "test2015": 60}
    captioned = {"train": train[: sizes.examples // 5], "restval": val[cut:], "val": val[:cut], "test": test[:cut]}
    v7w, v7w_boxes = annotations.visual7w(of_visual7w, sizes.of("val", "test"))
    games, game_boxes = annotations.guesswhat({"train": train, "valid": val, "test": test}, sizes.of("valid", "test"))
    files = {
        "vqa": annotations.vqa({"train2014": train, "val2014": val + test, "test2015": of_coco["unasked"]}, vqa_counts),
        "vgqa": annotations.vgqa(of_genome, sizes.examples + sizes.evaluation, coco_ids),
        "gqa": annotations.gqa(divide(of_genome, sizes, ("train", "val", "testdev")), sizes.of("val", "testdev")),
        "coco_retrieval": annotations.karpathy(captioned, coco=True),
        "flickr_retrieval": annotations.karpathy(of_flickr, coco=False),
        "visual7w": v7w,
        "guesswhat": games,
        "nlvr2": nlvr2,
        "snli_ve": annotations.snli_ve(
            {{"val": "dev"}.get(split, split): pictures for split, pictures in of_flickr.items()},
            sizes.of("dev", "test"),
        ),
    }
    for style in ("refcoco", "refcoco+"):
        splits = {"train": train, "val": val, "testA": test, "testB": test}
        files[style] = annotations.refer(splits, sizes.of("val", "testA", "testB"), style)
    splits = {"train": train, "val": val, "test": test}
    files["refcocog"] = annotations.refer(splits, sizes.of("val", "test"), "refcocog")
    images = {
        "coco": [one for split in of_coco.values() for one in split],
        "genome": of_genome,
        "flickr": [one for split in of_flickr.values() for one in split],
        "nlvr2": of_nlvr2,
        "visual7w": [one for split in of_visual7w.values() for one in split],
    }
    draw_all({out / "images" / name: pictures for name, pictures in images.items()})
    boxes = {"visual7w_boxes": v7w_boxes, "guesswhat_boxes": game_boxes}
    for name, lines in boxes.items():
        _write(out / "images" / f"{name}.jsonl", lines)
    for task, of_task in files.items():
        for name, value in of_task.items():
            _write(out / task / name, value)
    return {"images": list(images), "boxes": {"visual7w_boxes": "visual7w", "guesswhat_boxes": "coco"}}


def _write(path: Path, value) -> None:
    """JSON, lines of JSON (packed or not), or a pickle as Python 2 wrote them, by the name."""
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
