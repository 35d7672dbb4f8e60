"""Preprocessed annotations of the reference implementation (datasets.tar.gz), read where official files are missing.

cache/{train,val,trainval}_target.pkl    a list of {question_id, image_id, labels, scores}, some with `question`
cache/trainval_label2ans.pkl             the answer of each label
cache/{coco,genome,flickr}_test_ids.npy  ids of the photos that Clean V&L removes
all_data_final_NAME_2014.jsonline        one image of a retrieval data set per line: {id, img_path, sentences}
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.annotations.answers import ORDER, read_vocabulary
from finetune.annotations.official_files import find_file, read_lines, read_pickled_list, take, take_all
from shards.common.errors import UserError
from shards.common.image_id import image_id, photo_names
from shards.common.untrusted_input import is_number, reading, refuse_special_file, shown


@dataclass(frozen=True)
class Question:
    """A question with its target {answer: score}. text: None if it is only in the official file."""

    id: int | str
    image: str
    text: str | None
    target: dict[str, float]


def has_questions(folder: Path, *splits: str) -> bool:
    return any(_target_file(folder, split).exists() for split in splits)


def questions(folder: Path, *splits: str) -> dict[int | str, Question]:
    """The questions of these splits by id. A trainval file replaces all splits after it."""
    files = [path for split in splits if (path := _target_file(folder, split)).exists()]
    vocabulary = _vocabulary(folder)
    found: dict[int | str, Question] = {}
    for path in files:
        for number, record in enumerate(read_pickled_list(path)):
            where = f"{path}, record {number}"
            question = take(record, "question_id", (int, str), where)
            if question in found:
                raise UserError(f"{where}: duplicate question_id {question}")
            labels, scores = (take(record, name, list, where) for name in ("labels", "scores"))
            if len(labels) != len(scores):
                raise UserError(f"{where}: labels and scores should be lists of the same length")
            if not all(is_number(score, 0, 1) for score in scores):
                raise UserError(f"{where}: scores {shown(scores)} should be numbers between 0 and 1")
            if not all(isinstance(label, int) and 0 <= label < len(vocabulary) for label in labels):
                raise UserError(f"{where}: labels {shown(labels)} should be numbers below {len(vocabulary)}")
            text = take(record, "question", str, where) if "question" in record else None
            image = image_id(str(take(record, "image_id", (int, str), where)))
            pairs = zip(labels, scores, strict=True)
            target = {vocabulary[label]: float(score) for label, score in pairs}
            found[question] = Question(question, image, text, target)
        if path.name.startswith("trainval"):
            break
    return found


def _target_file(folder: Path, split: str) -> Path:
    return find_file(folder, f"cache/{split}_target.pkl")


def _vocabulary(folder: Path) -> list[str]:
    path = answer_file(folder)
    if path is None:
        raise UserError(f"{folder / ORDER[0]}: not found; it contains the answers that the labels of the targets mean")
    return read_vocabulary(path).answers


def answer_file(folder: Path) -> Path | None:
    """The reference implementation's answer file, or None if there is none."""
    return next((path for name in ORDER if (path := find_file(folder, name)).exists()), None)


def captions(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(image id, captions) of a retrieval file. Ids of Flickr images are the numbers in their paths."""
    for where, record in read_lines(path):
        file = take(record, "img_path", str, where)
        coco = any(name.startswith("coco:") for name in photo_names(file))
        image = image_id(str(take(record, "id", (int, str), where)) if coco else file)
        yield image, take_all(record, "sentences", str, where)


def published_tests(folder: Path) -> Iterator[tuple[str, str]]:
    """(photo name, file name) of the lists of test images in a task's folder."""
    for collection in ("coco", "genome", "flickr"):
        path = find_file(folder, f"cache/{collection}_test_ids.npy")
        if path.exists():
            refuse_special_file(path)
            with reading(path, "it should be an array of image ids"):
                ids = np.load(path, allow_pickle=False)
                if ids.dtype.kind not in "iuSU":
                    raise ValueError(f"its values are {ids.dtype}")
            for image in ids.ravel().tolist():
                yield f"{collection}:{image_id(str(image))}", path.name
