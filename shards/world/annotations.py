"""The annotations of the twelve tasks in the official formats of their data sets.

Each function takes pictures by split and returns files, name -> content. A list is written as one line per item.
"""

import itertools

import numpy as np

from shards.world import expressions, questions, statements
from shards.world.captions import make_caption
from shards.world.language import choose
from shards.world.pools import Picture
from shards.world.scenes import HEIGHT, WIDTH, bounding_box

Splits = dict[str, list[Picture]]
CAPTIONS = 5  # per image, as in COCO and Flickr30k
WHITE_SPACE = 20  # attempts per example before a picture gets fewer


def box_of(thing) -> list[float]:
    """[x, y, width, height], as in COCO."""
    x1, y1, x2, y2 = bounding_box(thing)
    return [round(float(v), 2) for v in (x1, y1, x2 - x1, y2 - y1)]


def spread(total: int, pictures: list[Picture]) -> list[int]:
    """Divides `total` examples over the pictures: the number per picture."""
    ends = np.arange(len(pictures) + 1) * total // len(pictures)
    return np.diff(ends).tolist()


def vqa(splits: Splits, counts: dict[str, int]) -> dict:
    """Questions with answers of ten annotators; test has only questions."""
    files = {}
    for split, pictures in splits.items():
        asked, answered = [], []
        for picture, count in zip(pictures, spread(counts[split], pictures), strict=True):
            rng = picture.rng(2)
            kinds = (*questions.OPEN, *questions.CLOSED)
            order = [kinds[int(n)] for n in rng.permutation(len(kinds))]
            for number, question in enumerate(questions.ask(list(picture.things), order, count, rng)):
                key = picture.id * 1000 + number
                asked.append({"image_id": picture.id, "question": question.text, "question_id": key})
                people = questions.people_say(question, rng)
                answered.append(
                    {
                        "question_type": " ".join(question.text.lower().split()[:2]),
                        "multiple_choice_answer": question.answer,
                        "answers": [
                            {"answer": said, "answer_confidence": "yes", "answer_id": n}
                            for n, said in enumerate(people, 1)
                        ],
                        "image_id": picture.id,
                        "answer_type": question.kind,
                        "question_id": key,
                    }
                )
        files[f"v2_OpenEnded_mscoco_{split}_questions.json"] = {"questions": asked}
        if not split.startswith("test"):
            files[f"v2_mscoco_{split}_annotations.json"] = {"annotations": answered}
    return files


def vgqa(pictures: list[Picture], count: int, coco_ids: dict[str, int]) -> dict:
    """Open questions. coco_ids: file -> COCO id, for pictures that are also in COCO.

    Questions are numbered in random order, so that the held-out ones, the last by number, are about pictures of all
    parts of the data set.
    """
    entries, images, keys = [], [], iter((np.random.default_rng(count).permutation(count) + 1).tolist())
    for picture, number in zip(pictures, spread(count, pictures), strict=True):
        rng, qas = picture.rng(3), []
        order = [questions.OPEN[int(n)] for n in rng.permutation(len(questions.OPEN))]
        for question in questions.ask(list(picture.things), order, number, rng):
            answer = question.answer.capitalize() + "."
            qas.append({"qa_id": next(keys), "image_id": picture.id, "question": question.text, "answer": answer})
        entries.append({"id": picture.id, "qas": qas})
        coco = coco_ids.get(picture.same_as)
        images.append({"image_id": picture.id, "width": WIDTH, "height": HEIGHT, "coco_id": coco, "flickr_id": None})
    return {"question_answers.json": entries, "image_data.json": images}


HIDDEN = ("question", "imageId", "isBalanced")  # fields of a question in GQA's test and submission files


def gqa(splits: Splits, counts: dict[str, int]) -> dict:
    """GQA: val and testdev have all questions, including those entailed by balanced ones, and choices.

    test has no answers, and the submission file contains all questions of val, testdev and test.
    """
    files, submission, key, entailed_key = {}, {}, itertools.count(20_000_000), itertools.count(30_000_000)
    for split, pictures in splits.items():
        balanced, further, choices = {}, {}, {}
        for picture, count in zip(pictures, spread(counts[split], pictures), strict=True):
            rng = picture.rng(4)
            order = [questions.COMPOSED[int(n)] for n in rng.permutation(len(questions.COMPOSED))]
            asked = {q.text: (str(next(key)), q) for q in questions.ask(list(picture.things), order, count, rng)}
            entailed = {q.text: q for _, question in asked.values() for q in question.entails if q.text not in asked}
            known = asked | {text: (str(next(entailed_key)), q) for text, q in entailed.items()}
            for id, question in known.values():
                place = balanced if question.text in asked else further
                place[id] = _gqa_record(picture, question, place is balanced)
                place[id]["entailed"] = [known[one.text][0] for one in question.entails]
                choices[id] = {"valid": question.valid, "plausible": question.options or question.valid}
        everything = balanced | further
        if split == "test":
            balanced, everything = _hidden(balanced), _hidden(everything)
        files[f"{split}_balanced_questions.json"] = balanced
        if split != "train":  # the official file of all training questions consists of parts that are never read here
            files[f"{split}_all_questions.json"] = everything
            submission |= _hidden(everything)
        if split in ("val", "testdev"):
            files[f"{split}_choices.json"] = choices
    return files | {"submission_all_questions.json": submission}


def _gqa_record(picture: Picture, question: questions.Question, balanced: bool) -> dict:
    return {
        "question": question.text,
        "imageId": str(picture.id),
        "answer": question.answer,
        "fullAnswer": f"{question.answer.capitalize()}.",
        "isBalanced": balanced,
        "types": {"structural": question.structure, "semantic": question.about, "detailed": question.structure},
        "groups": {"global": question.group, "local": None},
        "semantic": [
            {"operation": operation, "dependencies": [], "argument": argument}
            for operation, argument in question.program
        ],
    }


def _hidden(records: dict[str, dict]) -> dict[str, dict]:
    """Records without the answers."""
    return {id: {name: record[name] for name in HIDDEN} for id, record in records.items()}


def karpathy(splits: Splits, coco: bool) -> dict:
    """Captions in the format of Karpathy's files."""
    images, key = [], itertools.count()
    for split, pictures in splits.items():
        for picture in pictures:
            rng, number = picture.rng(5), len(images)
            sentences = []
            for _ in range(CAPTIONS):
                raw = make_caption(list(picture.things), rng)
                sentences.append({"raw": raw, "tokens": raw.split(), "sentid": next(key), "imgid": number})
            image = {
                "imgid": number,
                "filename": picture.file,
                "split": split,
                "sentences": sentences,
                "sentids": [sentence["sentid"] for sentence in sentences],
            }
            images.append(image | ({"cocoid": picture.id, "filepath": picture.file.split("_")[1]} if coco else {}))
    return {f"dataset_{'coco' if coco else 'flickr30k'}.json": {"images": images}}


def refer(splits: Splits, counts: dict[str, int], style: str) -> dict:
    """Referring expressions, one or several per object; testA has round objects, testB the others."""
    refs, annotations, images = [], {}, {}
    sentence = itertools.count()
    for split, pictures in splits.items():
        for picture, count in zip(pictures, spread(counts[split], pictures), strict=True):
            rng, said = picture.rng({"refcoco": 6, "refcoco+": 7, "refcocog": 8}[style]), {}
            for _ in range(WHITE_SPACE * count):
                number = int(rng.integers(len(picture.things)))
                target = picture.things[number]
                if split in ("testA", "testB") and (target.kind in ROUND) != (split == "testA"):
                    continue
                text = expressions.expression(list(picture.things), target, style, rng)
                if text and text not in [t for texts in said.values() for t in texts]:
                    said.setdefault(number, []).append(text)
                if sum(map(len, said.values())) == count:
                    break
            for number, texts in said.items():
                key = picture.id * 10 + number
                annotations[key] = {
                    "id": key,
                    "image_id": picture.id,
                    "bbox": box_of(picture.things[number]),
                    "category_id": 1,
                }
                images[picture.id] = {"id": picture.id, "file_name": picture.file, "width": WIDTH, "height": HEIGHT}
                sentences = [{"sent_id": next(sentence), "sent": t, "raw": t, "tokens": t.split()} for t in texts]
                refs.append(
                    {
                        "ref_id": len(refs),
                        "ann_id": key,
                        "image_id": picture.id,
                        "category_id": 1,
                        "file_name": picture.file,
                        "sent_ids": [s["sent_id"] for s in sentences],
                        "split": split,
                        "sentences": sentences,
                    }
                )
    instances = {
        "images": list(images.values()),
        "annotations": list(annotations.values()),
        "categories": [{"id": 1, "name": "thing"}],
    }
    return {f"refs({'umd' if style == 'refcocog' else 'unc'}).p": refs, "instances.json": instances}


ROUND = ("circle", "ring", "crescent", "star")


def visual7w(splits: Splits, counts: dict[str, int]) -> tuple[dict, list[dict]]:
    """(files, given boxes). The four candidates are objects of the scene, then boxes of background."""
    boxes, images, given = [], [], []
    key = itertools.count(1)
    for split, pictures in splits.items():
        for picture, count in zip(pictures, spread(counts[split], pictures), strict=True):
            rng, own, qas, asked = picture.rng(9), [], [], set()

            def add(box, picture=picture, own=own) -> int:
                x, y, width, height = box
                own.append({"box_id": next(key), "x": x, "y": y, "width": width, "height": height, "name": "thing"})
                boxes.append(own[-1] | {"image_id": picture.id})
                return own[-1]["box_id"]

            ids = [add(box_of(thing)) for thing in picture.things]
            while len(ids) < 4:
                x, y = rng.uniform(0, WIDTH - 40), rng.uniform(0, HEIGHT - 40)
                ids.append(add([round(float(v), 2) for v in (x, y, rng.uniform(15, 40), rng.uniform(15, 40))]))
            for _ in range(WHITE_SPACE * count):
                number = int(rng.integers(len(picture.things)))
                text = expressions.which(list(picture.things), picture.things[number], rng)
                if text is None or text in asked:
                    continue
                asked.add(text)
                others = [box for box in ids if box != ids[number]][:3]
                qas.append(
                    {
                        "qa_id": int(picture.key[-1]) * 100 + len(qas),
                        "image_id": picture.id,
                        "question": text,
                        "answer": ids[number],
                        "multiple_choices": others,
                        "type": "which",
                    }
                )
                if len(qas) == count:
                    break
            images.append({"image_id": picture.id, "filename": picture.file, "split": split, "qa_pairs": qas})
            given.append(
                given_boxes(
                    picture.file.removesuffix(".png"),
                    [([b[k] for k in ("x", "y", "width", "height")], b["box_id"]) for b in own],
                )
            )
    return {"dataset_v7w_pointing.json": {"boxes": boxes, "images": images}}, given


def guesswhat(splits: Splits, counts: dict[str, int]) -> tuple[dict, list[dict]]:
    """(files, given boxes). Most games are successful."""
    files, given, key = {}, [], itertools.count(1)
    for split, pictures in splits.items():
        games = []
        for picture, count in zip(pictures, spread(counts[split], pictures), strict=True):
            rng, things = picture.rng(10), list(picture.things)
            objects = [
                {
                    "id": picture.id * 10 + n,
                    "category": "thing",
                    "category_id": 1,
                    "bbox": box_of(t),
                    "area": round(t.radius**2, 1),
                }
                for n, t in enumerate(things)
            ]
            given.append(given_boxes(str(picture.id), [(o["bbox"], o["id"]) for o in objects]))
            played = 0
            for _ in range(WHITE_SPACE * count):
                number = int(rng.integers(len(things)))
                turns = expressions.dialogue(things, things[number], rng)
                if turns:
                    played += 1
                    games.append(
                        {
                            "id": next(key),
                            "status": choose(("success",) * 8 + ("failure", "incomplete"), rng),
                            "image": {"id": picture.id, "width": WIDTH, "height": HEIGHT, "file_name": picture.file},
                            "objects": objects,
                            "object_id": objects[number]["id"],
                            "qas": [{"question": q, "answer": answer, "id": n} for n, (q, answer) in enumerate(turns)],
                        }
                    )
                if played == count:
                    break
        files[f"guesswhat.{split}.jsonl.gz"] = games
    return files, given


def given_boxes(image: str, boxes: list[tuple[list[float], int]]) -> dict:
    """A line of a file for shards.extract --boxes, from [x, y, width, height] and ids."""
    corners = [[x, y, x + width, y + height] for (x, y, width, height), _ in boxes]
    return {"image_id": image, "boxes": corners, "box_ids": [number for _, number in boxes]}


def nlvr2(counts: dict[str, int], key: tuple[int, ...]) -> tuple[dict, dict[str, list[Picture]]]:
    """(files, pictures). Every sentence has one pair for which it is true and one for which it is false."""
    files, pictures = {}, []
    for number, (split, count) in enumerate(counts.items()):
        lines, made = [], 0
        for place in itertools.count():
            rng = np.random.default_rng([*key, number, place])
            statement = statements.make_statement(rng)
            pairs = [statements.make_pair(statement, truth, rng) for truth in (True, False)]
            if None in pairs:
                continue
            for n, truth in enumerate((True, False) if rng.random() < 0.5 else (False, True)):
                name = f"{split}-{made}-{n}"
                for side, scene in enumerate(pairs[0] if truth else pairs[1]):
                    picture_key = (*key, number, place, n, side)
                    pictures.append(Picture(f"{name}-img{side}", f"{name}-img{side}.png", tuple(scene), picture_key))
                lines.append({"identifier": f"{name}-0", "sentence": statement.text, "label": str(truth)})
            made += 1
            if 2 * made >= count:
                break
        files[f"{split}.json"] = lines
    return files, pictures


def snli_ve(splits: Splits, counts: dict[str, int]) -> dict:
    files = {}
    for split, pictures in splits.items():
        lines = []
        for picture, count in zip(pictures, spread(counts[split], pictures), strict=True):
            rng = picture.rng(11)
            premise = make_caption(list(picture.things), picture.rng(5))
            for number in range(count):
                label = choose(statements.LABELS, rng)
                texts = (statements.make_hypothesis(list(picture.things), label, rng) for _ in range(WHITE_SPACE))
                text = next((t for t in texts if t), None)
                if text is not None:
                    lines.append(
                        {
                            "Flickr30K_ID": str(picture.id),
                            "captionID": f"{picture.id}.jpg#0",
                            "pairID": f"{picture.id}.jpg#0r{number}",
                            "gold_label": label,
                            "sentence1": premise,
                            "sentence2": text,
                        }
                    )
        files[f"snli_ve_{split}.jsonl"] = lines
    return files
