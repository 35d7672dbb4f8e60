"""Time and memory of decontamination (Clean V&L) for annotations of the real size, and of reading the examples.

    python benchmarks/clean.py [--one_in 1] [--folder DIR]

First, synthetic files of all twelve data sets are written, with the numbers of images and examples in table 8 of the
paper and the bytes per example of the official files (about 3 GB; --one_in 100 for a small test). Each variant runs in
its own process; memory is the peak resident memory of the process and its worker processes together.
"""

import gzip
import json
import pickle
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

from shards.common.cli import command, flag

SENTENCE = "is the man in the red shirt to the left of the large white dog that sits on the grass"
EXAMPLES = """
import sys
from finetune.tasks import all_tasks
for name in sys.argv[2].split(","):
    task = all_tasks()[name]
    for split in (*task.learned, *task.tests):
        examples = task.examples(task.folder(sys.argv[1]), split)
        print(name, split, len(examples))
"""


@dataclass
class Config:
    """Flags of this benchmark."""

    one_in: int = flag(1, "size of the real data sets relative to the synthetic ones", low=1)
    folder: str | None = flag(None, "folder to write and keep the files", unset="a temporary folder")


class Lines:
    """A JSON array or object that is written piece by piece."""

    def __init__(self, path: Path, begin: str, end: str):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.end, self.first = open(path, "w"), end, True  # noqa: SIM115  closed by __exit__
        self.file.write(begin)

    def add(self, value, key: str | None = None) -> None:
        self.file.write("" if self.first else ", ")
        self.file.write((f'"{key}": ' if key is not None else "") + json.dumps(value))
        self.first = False

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.file.write(self.end)
        self.file.close()


class Writer:
    """Writes all files of a folder; `n` scales a number of the real data sets."""

    def __init__(self, data: Path, one_in: int):
        self.data, self.one_in, self.rng = data, one_in, random.Random(0)
        self.coco = self.ids(164_062)  # 2014's and 2015's images
        self.unasked = [600_000 + image for image in self.ids(81_434)]
        self.genome = self.ids(108_077)
        self.flickr = [1_000_000_000 + image for image in self.ids(31_783)]

    def n(self, real: int) -> int:
        return max(20, real // self.one_in)

    def ids(self, real: int) -> list[int]:
        return self.rng.sample(range(1, 600_000), self.n(real))

    def spread(self, images: list[int], real: int):
        """Yields (number, image) for n(real) examples."""
        return ((number, images[number % len(images)]) for number in range(self.n(real)))

    def vqa(self) -> None:
        train, val = self.coco[: self.n(82_783)], self.coco[self.n(82_783) : self.n(123_287)]
        for year, images, real in (
            ("train2014", train, 443_757),
            ("val2014", val, 214_354),
            ("test2015", self.unasked, 447_793),
        ):
            asked = Lines(self.data / "vqa" / f"v2_OpenEnded_mscoco_{year}_questions.json", '{"questions": [', "]}")
            answered = Lines(self.data / "vqa" / f"v2_mscoco_{year}_annotations.json", '{"annotations": [', "]}")
            answers = [{"answer": "yes", "answer_confidence": "maybe", "answer_id": n} for n in range(1, 11)]
            with asked, answered:
                for number, image in self.spread(images, real):
                    key = {"image_id": image, "question_id": real * 10 + number}
                    asked.add(key | {"question": "What is the man in the red shirt doing?"})
                    if year != "test2015":
                        kind = {"question_type": "what is the", "multiple_choice_answer": "yes", "answer_type": "other"}
                        answered.add(key | kind | {"answers": answers})

    def vgqa(self) -> None:
        per_image, key = max(1, self.n(1_445_322) // len(self.genome)), 0
        with Lines(self.data / "vgqa" / "question_answers.json", "[", "]") as file:
            for image in self.genome:
                qas = []
                for _ in range(per_image):
                    key += 1
                    asked = {"qa_id": key, "image_id": image, "question": SENTENCE, "answer": "On the grass."}
                    qas.append(asked | {"a_objects": [], "q_objects": []})
                file.add({"id": image, "qas": qas})
        with Lines(self.data / "vgqa" / "image_data.json", "[", "]") as file:
            for number, image in enumerate(self.genome):
                coco = self.coco[number] if number % 2 and number < len(self.coco) else None
                url = f"https://example.org/VG_100K_2/{image}.jpg"
                size = {"width": 800, "height": 600, "url": url, "flickr_id": 2_000_000_000 + number}
                file.add({"image_id": image, "coco_id": coco} | size)

    def gqa(self) -> None:
        """Includes functional programs and annotations, with which the official files have 1 KB per question."""
        program = [{"operation": "filter", "dependencies": [n], "argument": "red (0:12345)"} for n in range(4)]
        more = {"semantic": program, "entailed": ["1", "2"], "equivalent": ["3"], "semanticStr": SENTENCE}
        more |= {"fullAnswer": SENTENCE, "groups": {"global": None, "local": "10-shirt"}, "isBalanced": True}
        more |= {"annotations": {"answer": {}, "question": {"2": "123"}, "fullAnswer": {"1": "5"}}}
        cut = [0, self.n(72_140), self.n(82_374), self.n(82_772)]
        parts = zip(("train", "val", "testdev"), (943_000, 132_062, 12_578), cut, cut[1:], strict=False)
        for split, real, begin, end in parts:
            path = self.data / "gqa" / f"{split}_balanced_questions.json"
            with Lines(path, "{", "}") as file:
                for number, image in self.spread(self.genome[begin:end] or self.genome[-5:], real):
                    asked = {"question": SENTENCE, "imageId": str(image), "answer": "yes"}
                    types = {"detailed": "existAttr", "semantic": "rel", "structural": "verify"}
                    file.add(asked | {"types": types} | more, key=f"{begin:03d}{number}")
        images = [f"n{number}" for number in range(self.n(2_987))]  # images of the official test split
        for kind, real in (("balanced", 95_336), ("all", 1_340_048)):
            with Lines(self.data / "gqa" / f"test_{kind}_questions.json", "{", "}") as file:
                for number, image in self.spread(images, real):
                    asked = {"question": SENTENCE, "imageId": image, "isBalanced": kind == "balanced"}
                    file.add(asked, key=f"2{number:08d}")

    def retrieval(self) -> None:
        sides = {
            "coco_retrieval": ("dataset_coco.json", self.coco[: self.n(123_287)], 5000),
            "flickr_retrieval": ("dataset_flickr30k.json", self.flickr, 1000),
        }
        for task, (name, images, real) in sides.items():
            held = min(self.n(real), len(images) // 4)
            with Lines(self.data / task / name, '{"images": [', f'], "dataset": "{task}"}}') as file:
                for number, image in enumerate(images):
                    split = "test" if number < held else "val" if number < 2 * held else "train"
                    said = [
                        {"raw": SENTENCE, "tokens": SENTENCE.split(), "sentid": number * 5 + n, "imgid": number}
                        for n in range(5)
                    ]
                    entry = {"imgid": number, "filename": f"{image}.jpg", "split": split, "sentences": said}
                    file.add(entry | ({"cocoid": image} if task == "coco_retrieval" else {}))

    def refer(self) -> None:
        for task, name, sentences, count in (
            ("refcoco", "refs(unc).p", 142_209, 19_994),
            ("refcoco+", "refs(unc).p", 141_564, 19_992),
            ("refcocog", "refs(umd).p", 95_010, 25_799),
        ):
            folder, images = self.data / task, self.coco[: self.n(count)]
            refs, boxes, tests = [], [], ("testA", "testB") if "unc" in name else ("test",)
            for number, image in self.spread(images, sentences // 3):
                place = number % len(images) / len(images)
                split = "train" if place < 0.85 else "val" if place < 0.92 else tests[number % len(tests)]
                said = [{"sent_id": number * 3 + n, "sent": SENTENCE, "raw": SENTENCE} for n in range(3)]
                ref = {"ref_id": number, "ann_id": number, "image_id": image, "category_id": 1, "split": split}
                refs.append(ref | {"sentences": said, "sent_ids": [], "file_name": f"COCO_train2014_{image:012d}.jpg"})
                outline = [[round(0.37 * n, 2) for n in range(40)]]
                box = {"id": number, "image_id": image, "bbox": [1.0, 2.0, 30.0, 40.0], "segmentation": outline}
                boxes.append(box)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(pickle.dumps(refs, 2))
            sizes = [{"id": image, "width": 640, "height": 480} for image in images]
            with open(folder / "instances.json", "w") as file:
                json.dump({"images": sizes, "annotations": boxes, "categories": []}, file)

    def visual7w(self) -> None:
        images, per_image = self.genome[: self.n(25_733)], 7
        with Lines(self.data / "visual7w" / "dataset_v7w_pointing.json", '{"images": [', "], ") as file:
            boxes = []
            for number, image in enumerate(images):
                split = ("train", "train", "train", "val", "test")[number % 5]
                qas = []
                for n in range(per_image):
                    key = (number * per_image + n) * 4
                    boxes += [{"box_id": key + k, "x": 1, "y": 2, "width": 30, "height": 40} for k in range(4)]
                    wrong = [key + 1, key + 2, key + 3]
                    qas.append({"qa_id": key, "question": SENTENCE, "answer": key, "multiple_choices": wrong})
                name = {"image_id": image, "filename": f"v7w_{image}.jpg"}
                file.add(name | {"split": split, "qa_pairs": qas})
            file.end += f'"boxes": {json.dumps(boxes)}}}'

    def guesswhat(self) -> None:
        outline = [[round(0.37 * n, 2) for n in range(40)]]
        folder = self.data / "guesswhat"
        folder.mkdir(parents=True, exist_ok=True)
        for split, real, begin in (("train", 113_221, 0), ("valid", 23_739, 0.7), ("test", 23_785, 0.85)):
            images = self.coco[int(begin * self.n(66_537)) : self.n(66_537)]
            with gzip.open(folder / f"guesswhat.{split}.jsonl.gz", "wt", compresslevel=1) as file:
                for number, image in self.spread(images, real):
                    objects = [
                        {"id": n, "category": "dog", "category_id": 18, "bbox": [1, 2, 3, 4], "segment": outline}
                        for n in range(8)
                    ]
                    qas = [{"question": "is it on the left?", "answer": "Yes", "id": n} for n in range(5)]
                    game = {"id": number, "status": "success", "objects": objects, "object_id": 3, "qas": qas}
                    size = {"id": image, "width": 640, "height": 480, "file_name": f"COCO_train2014_{image:012d}.jpg"}
                    file.write(json.dumps(game | {"image": size}) + "\n")

    def nlvr2(self) -> None:
        (self.data / "nlvr2").mkdir(parents=True, exist_ok=True)
        for split, real in (("train", 86_373), ("dev", 6982), ("test1", 6967)):
            with open(self.data / "nlvr2" / f"{split}.json", "w") as file:
                for number in range(self.n(real)):
                    line = {
                        "identifier": f"{split}-{number // 2}-0-{number % 2}",
                        "sentence": SENTENCE,
                        "label": "True",
                    }
                    file.write(json.dumps(line | {"left_url": "x" * 80, "right_url": "y" * 80}) + "\n")

    def snli_ve(self) -> None:
        folder, held = self.data / "snli_ve", min(self.n(1000), len(self.flickr) // 4)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"test": self.flickr[:held], "dev": self.flickr[held : 2 * held], "train": self.flickr[2 * held :]}
        for split, real in (("train", 529_527), ("dev", 17_858), ("test", 17_901)):
            with open(folder / f"snli_ve_{split}.jsonl", "w") as file:
                for number, image in self.spread(parts[split], real):
                    line = {"pairID": f"{number}r1n", "captionID": f"{image}.jpg#0", "Flickr30K_ID": str(image)}
                    parse = {"sentence1": SENTENCE, "sentence2": SENTENCE, "sentence1_parse": "(ROOT (NP (DT A)))" * 12}
                    file.write(json.dumps(line | parse | {"gold_label": "neutral", "annotator_labels": ["n"]}) + "\n")

    def all(self) -> None:
        for name in ("vqa", "vgqa", "gqa", "retrieval", "refer", "visual7w", "guesswhat", "nlvr2", "snli_ve"):
            began = time.perf_counter()
            getattr(self, name)()
            print(f"wrote {name} in {time.perf_counter() - began:.0f} s", flush=True)


def resident(pid: int) -> int:
    """Resident bytes of a process and its children."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return own + sum(resident(int(child)) for child in children)


def measured(*argv: str) -> tuple[float, int, str]:
    """(seconds, peak resident bytes, output) of a Python process."""
    began, most = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    said: list[str] = []
    reading = threading.Thread(target=lambda: said.append(process.stdout.read()))
    reading.start()
    while process.poll() is None:
        most = max(most, resident(process.pid))
        time.sleep(0.05)
    reading.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(argv)}: ended with status {process.returncode}")
    return time.perf_counter() - began, most, said[0]


def run(config: Config) -> None:
    with tempfile.TemporaryDirectory() as name:
        data = Path(config.folder or name)
        if not (data / "written").exists():
            Writer(data, config.one_in).all()
            (data / "written").touch()
        size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
        print(f"{size / 1e9:.2f} GB of annotations")
        seconds, most, said = measured("-m", "finetune.clean", "--data", str(data))
        print(said)
        print(f"{'finetune.clean':<28} {seconds:7.1f} s {most / 1e9:6.2f} GB")
        for tasks in ("vqa", "gqa", "guesswhat"):
            whole, memory, _ = measured("-c", EXAMPLES, str(data), tasks)
            print(f"{f'examples of {tasks} alone':<28} {whole:7.1f} s {memory / 1e9:6.2f} GB")


if __name__ == "__main__":
    command(Config, run, "benchmarks/clean.py", __doc__.splitlines()[0], sys.argv[1:])
