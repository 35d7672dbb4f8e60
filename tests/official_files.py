"""Minimal files in every official format, field for field as they are published: write(folder) -> nothing."""

import gzip
import json
import pickle

PEOPLE = ["net", "net", "Net.", "a net", "racket", "net", "net", "the net", "rackets", "ball"]


def dump(path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def dump_lines(path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def vqa(folder, questions=(262148000, 262148001), split="train2014", image=262148) -> None:
    info = {
        "description": "This is v2.0 of the VQA dataset.",
        "version": "2.0",
        "year": 2017,
        "url": "http://visualqa.org",
    }
    shared = {"info": info, "data_type": "mscoco", "data_subtype": split, "license": {"name": "CC", "url": ""}}
    asked = [{"image_id": image, "question": "Where is he looking?", "question_id": q} for q in questions]
    dump(
        folder / f"v2_OpenEnded_mscoco_{split}_questions.json",
        shared | {"task_type": "Open-Ended", "questions": asked},
    )
    answers = [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(PEOPLE, 1)]
    kinds = ["other", "yes/no", "number"]
    dump(
        folder / f"v2_mscoco_{split}_annotations.json",
        shared
        | {
            "annotations": [
                {
                    "question_type": "none of the above",
                    "multiple_choice_answer": "net",
                    "answers": answers,
                    "image_id": image,
                    "answer_type": kinds[n % 3],
                    "question_id": q,
                }
                for n, q in enumerate(questions)
            ]
        },
    )


def vqa_accuracy_by_type(annotations: dict, said: dict[int, str], key: str, normalise=str) -> dict[str, float]:
    """Accuracy in percent by question_type or answer_type, as the official evaluation adds it up.

    annotations: an official file; said: question_id -> answer; key: of the annotation's type.
    """
    by_type: dict[str, list[float]] = {}
    for record in annotations["annotations"]:
        if record["question_id"] not in said:
            continue
        given, shares = normalise(said[record["question_id"]]), []
        for left_out in record["answers"]:
            others = [one for one in record["answers"] if one["answer_id"] != left_out["answer_id"]]
            shares.append(min(1, sum(normalise(one["answer"]) == given for one in others) / 3))
        by_type.setdefault(record[key], []).append(sum(shares) / len(shares))
    return {name: 100 * sum(values) / len(values) for name, values in sorted(by_type.items())}


def vgqa(folder, count=6) -> None:
    qas = [
        {
            "a_objects": [],
            "question": "What color is the clock?",
            "image_id": 1,
            "qa_id": 986769 + n,
            "answer": "Green." if n % 2 else "Two.",
            "q_objects": [],
        }
        for n in range(count)
    ]
    dump(folder / "question_answers.json", [{"id": 1, "qas": qas}, {"id": 2, "qas": []}])
    dump(
        folder / "image_data.json",
        [{"width": 800, "url": "u", "height": 600, "image_id": n, "coco_id": None, "flickr_id": None} for n in (1, 2)],
    )


def gqa(folder, split="train", first=0, count=3) -> None:
    questions = {
        f"{2000 + first + n:07d}": {
            "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (2486325)"}],
            "entailed": [],
            "equivalent": [],
            "question": "Is the sky dark?",
            "imageId": "2354786" if n else "n161313",
            "isBalanced": True,
            "groups": {"global": None, "local": "06-sky_dark"},
            "answer": "yes" if n % 2 else "blue",
            "semanticStr": "select: sky",
            "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
            "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify" if n % 2 else "query"},
            "fullAnswer": "Yes, the sky is dark.",
        }
        for n in range(count)
    }
    dump(folder / f"{split}_balanced_questions.json", questions)


def karpathy(path, splits=("train", "restval", "val", "test"), coco=True) -> None:
    images = []
    for n, split in enumerate(splits):
        image = {
            "sentids": [5 * n + k for k in range(5)],
            "imgid": n,
            "sentences": [
                {"tokens": ["a", "man"], "raw": f" A man {k}.", "imgid": n, "sentid": 5 * n + k} for k in range(5)
            ],
            "split": split,
            "filename": f"COCO_val2014_{391895 + n:012d}.jpg" if coco else f"{1000092795 + n}.jpg",
        }
        images.append(image | ({"filepath": "val2014", "cocoid": 391895 + n} if coco else {}))
    dump(path, {"images": images, "dataset": "coco" if coco else "flickr30k"})


def refer(folder, file="refs(unc).p", splits=("train", "testA")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    refs = [
        {
            "sent_ids": [2 * n, 2 * n + 1],
            "file_name": f"COCO_train2014_000000581857_{n}.jpg",
            "ann_id": 1719310 + n,
            "ref_id": n,
            "image_id": 581857,
            "split": split,
            "sentences": [
                {"tokens": ["navy", "shirt"], "raw": "navy Blue shirt", "sent_id": 2 * n + k, "sent": "navy blue shirt"}
                for k in range(2)
            ],
            "category_id": 1,
        }
        for n, split in enumerate(splits)
    ]
    (folder / file).write_bytes(pickle.dumps(refs, protocol=2))
    dump(
        folder / "instances.json",
        {
            "info": {},
            "images": [{"license": 1, "file_name": "a.jpg", "height": 427, "width": 640, "id": 581857}],
            "licenses": [],
            "annotations": [
                {
                    "segmentation": [],
                    "area": 1.5,
                    "iscrowd": 0,
                    "image_id": 581857,
                    "bbox": [10.5, 20, 30, 40.25],
                    "category_id": 1,
                    "id": 1719310 + n,
                }
                for n, _ in enumerate(splits)
            ],
            "categories": [{"supercategory": "person", "id": 1, "name": "person"}],
        },
    )


def visual7w(folder) -> None:
    boxes = [
        {"box_id": n, "x": 10 * n, "y": 5, "width": 20, "height": 30, "name": "dog", "image_id": 2385153}
        for n in (4, 9, 2, 7)
    ]
    qa = {
        "multiple_choices": [4, 7, 2],
        "qa_id": 150009,
        "question": "Which dog is biting?",
        "answer": 9,
        "type": "which",
        "image_id": 2385153,
    }
    images = [{"filename": "v7w_2385153.jpg", "split": "val", "image_id": 2385153, "qa_pairs": [qa]}]
    dump(folder / "dataset_v7w_pointing.json", {"dataset": "visual7w-pointing", "boxes": boxes, "images": images})


def guesswhat(folder, split="valid", packed=True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    objects = [
        {"category": "cat", "area": 9.5, "iscrowd": False, "id": 40 + n, "bbox": [n, 2, 10, 20], "category_id": 17}
        for n in range(3)
    ]
    image = {
        "id": 489209,
        "width": 640,
        "height": 480,
        "file_name": "COCO_val2014_000000489209.jpg",
        "flickr_url": "u",
        "coco_url": "u",
    }
    qas = [
        {"question": "Is it alive?", "answer": "Yes", "id": 1},
        {"question": "On the left?", "answer": "N/A", "id": 2},
    ]
    games = [
        {
            "status": status,
            "picture_id": 1,
            "picture": image,
            "image": image,
            "qas": qas,
            "questioner_id": 1,
            "timestamp": "t",
            "object_id": 41,
            "dialogue_id": n,
            "id": n,
            "objects": objects,
        }
        for n, status in enumerate(("success", "failure", "incomplete"))
    ]
    text = "".join(json.dumps(game) + "\n" for game in games)
    if packed:
        (folder / f"guesswhat.{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / f"guesswhat.{split}.jsonl").write_text(text)


def nlvr2(folder, split="dev") -> None:
    dump_lines(
        folder / f"{split}.json",
        [
            {
                "sentence": f"The right image shows {n // 2} dogs.",
                "left_url": "l",
                "right_url": "r",
                "validation": {"1": "True"},
                "identifier": f"{split}-850-{n}-0",
                "label": "True" if n % 2 else "False",
                "writer": "24",
                "synset": "dog",
                "query": "dogs0",
                "extra_validations": {},
                "directory": 1,
            }
            for n in range(4)
        ],
    )


def snli_ve(folder, split="dev") -> None:
    labels = ("entailment", "neutral", "contradiction", "-")
    dump_lines(
        folder / f"snli_ve_{split}.jsonl",
        [
            {
                "annotator_labels": [label],
                "captionID": "4705552913.jpg#2",
                "gold_label": label,
                "pairID": f"4705552913.jpg#2r1{n}",
                "sentence1": "Two women are embracing.",
                "sentence1_parse": "",
                "sentence2": f"The sisters are hugging {n}.",
            }
            | ({"Flickr30K_ID": "4705552913"} if n % 2 else {"Flikr30kID": "4705552913.jpg"})
            for n, label in enumerate(labels)
        ],
    )


ENTITIES = {  # entity -> its boxes in an annotation file of Flickr30k Entities, xmin ymin xmax ymax
    "650": [(11, 21, 110, 220)],
    "651": [(1, 1, 40, 50), (101, 31, 160, 90), (60, 11, 90, 20)],
    "654": [(1, 1, 500, 375)],
}
CAPTIONS = [
    "[/EN#650/people A young boy] and [/EN#651/animals three ducks] at [/EN#654/scene/other a lake] .",
    "[/EN#0/notvisual It] shows [/EN#650/people a child] waving [/EN#660/bodyparts his hand] .",
    "No phrase here .",
]


def entities(folder, split="train", images=("1022454332",), captions=CAPTIONS, boxes=None) -> None:
    """660 has no box, and 654 is the whole scene with one."""
    for name in ("Annotations", "Sentences"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_text("".join(f"{image}\n" for image in images))
    corners = ("xmin", "ymin", "xmax", "ymax")
    for image in images:
        objects = [
            f"\t<object>\n\t\t<name>{entity}</name>\n\t\t<bndbox>\n"
            + "".join(f"\t\t\t<{name}>{value}</{name}>\n" for name, value in zip(corners, box, strict=True))
            + "\t\t</bndbox>\n\t</object>\n"
            for entity, of in (boxes or ENTITIES).items()
            for box in of
        ]
        objects.append(
            "\t<object>\n\t\t<name>660</name>\n\t\t<scene>0</scene>\n\t\t<nobndbox>1</nobndbox>\n\t</object>\n"
        )
        size = "\t<size>\n\t\t<width>500</width>\n\t\t<height>375</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        text = f"<annotation>\n\t<filename>{image}.jpg</filename>\n{size}{''.join(objects)}</annotation>\n"
        (folder / "Annotations" / f"{image}.xml").write_text(text)
        (folder / "Sentences" / f"{image}.txt").write_text("".join(f"{line}\n" for line in captions), encoding="utf-8")


def esnli_ve(folder, split="dev", images=("371522748", "1425013325")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    labels = ("entailment", "neutral", "contradiction")
    rows = [
        f'{40 + n},{image}.jpg#{n}r1e,{image}.jpg,"The boy, {label}, holds ""it""",{label},little boy\n'
        for n, (image, label) in enumerate((image, label) for image in images for label in labels)
    ]
    header = ",pairID,Flickr30kID,hypothesis,gold_label,explanation\n"
    (folder / f"esnlive_{split}.csv").write_text(header + "".join(rows), encoding="utf-8")


def daquar(folder, triples, test=False) -> None:
    """triples: (question, answer, image)."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for triple in triples for line in triple)
    (folder / f"qa.894.raw.{'test' if test else 'train'}.format_triple").write_text(text)


# word -> the words that it is a kind of, each by its first sense; "lamp 2" is another sense of the same word.
NOUNS = {
    "entity": (),
    "thing": ("entity",),
    "furniture": ("thing",),
    "seat": ("furniture",),
    "chair": ("seat",),
    "armchair": ("chair",),
    "table": ("furniture",),
    "desk": ("table",),
    "device": ("thing",),
    "lamp": ("furniture", "device"),
    "lamp 2": ("device",),
    "bulb": ("lamp", "entity"),
    "woman": ("entity",),
    # bench and pew have several common ancestors of the same least depth, which differ in their greatest.
    "stool": ("entity",),
    "divan": ("stool", "entity"),
    "couch": ("divan", "entity"),
    "bank": ("entity",),
    "bench": ("couch", "bank"),
    "pew": ("bank", "couch"),
}


def wordnet(folder) -> None:
    """data.noun, index.noun and noun.exc with NOUNS. Offsets are of bytes, so that a line's length must be known."""
    folder.mkdir(parents=True, exist_ok=True)
    licence = "  1 This software and database is being provided to you, the LICENSEE, by  \n"

    def lines(offsets: dict[str, int]) -> dict[str, str]:
        found = {}
        for name, kinds in NOUNS.items():
            pointers = " ".join(f"{'@i' if n else '@'} {offsets[k]:08d} n 0000" for n, k in enumerate(kinds))
            word = name.split()[0].capitalize()
            fields = f"{offsets[name]:08d} 06 n 01 {word} 0 {len(kinds):03d} {pointers}".rstrip()
            found[name] = f"{fields} | a noun; with @ 00000000 n in its gloss  \n"
        return found

    sizes, offsets, place = {name: len(line) for name, line in lines(dict.fromkeys(NOUNS, 0)).items()}, {}, len(licence)
    for name in reversed(NOUNS):
        offsets[name], place = place, place + sizes[name]
    of = lines(offsets)
    (folder / "data.noun").write_text(licence + "".join(of[name] for name in reversed(NOUNS)))
    index = []
    for word in sorted({name.split()[0] for name in NOUNS}):
        senses = " ".join(f"{offsets[name]:08d}" for name in NOUNS if name.split()[0] == word)
        count = len(senses.split())
        index.append(f"{word} n {count} 1 @ {count} 0 {senses}  \n")
    (folder / "index.noun").write_text(licence + "".join(index))
    (folder / "noun.exc").write_text("women woman\n")
