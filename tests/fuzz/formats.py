"""A small valid sample of every input format, and how it is read: as a command would, or by the function it calls."""

import base64
import contextlib
import gzip
import io
import json
import pickle
import runpy
import sys
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import official_files
import pytest
import torch
import transformers.models.bert  # noqa: F401  takes seconds, which children then need not
from data_sets import make_dataset
from PIL import Image
from safetensors.torch import load_file, save_file

from finetune.annotations.answers import read_vocabulary
from finetune.decontamination.corpus_images import corpus_images, corpus_parts
from finetune.decontamination.fingerprint_file import read_checked_fingerprint, write_fingerprint
from finetune.decontamination.known_tests import KnownName, KnownTests, Pictures
from finetune.decontamination.manifest import read_cleaned
from finetune.decontamination.perceptual_hash import TRIMMED, grey, image_hashes
from finetune.pages.report_page import write_report
from finetune.prepared.packed_examples import PackedExamples
from finetune.run_dirs.finished_runs import find_runs
from finetune.task_types.table_tasks import read_task_file
from finetune.tasks import all_tasks
from pretrain.data.collate import Limits, check_sample
from pretrain.engine.checkpoint import best_checkpoint, read_metadata
from pretrain.pretrained.load_model import load
from pretrain.tokenizer.tokenizer import load_bert_tokenizer
from shards.common.errors import UserError
from shards.common.excluded_ids import EXCLUDED, not_excluded, write_excluded
from shards.config import ConvertConfig
from shards.creation import conversion
from shards.detection.visual_words import fit_words, load_words
from shards.images.caption_files import read_caption_file
from shards.images.given_box_files import read_given_boxes
from shards.images.image_files import BadImage
from shards.storage.dataset import open_dataset, read_captions
from shards.storage.reader import RegionReader

PARITY = Path(__file__).parents[1] / "parity"
ROWS, WIDTH, CLASSES = 3, 4, 5


def region_item(number: int) -> dict:
    """An image's features as the published LMDBs have them."""
    random = np.random.default_rng(number)
    corner = random.random((ROWS, 2)) * 20
    return {
        "image_id": str(number),
        "image_h": 80,
        "image_w": 100,
        "num_boxes": ROWS,
        "boxes": np.concatenate([corner, corner + 30], 1).astype(np.float32),
        "features": random.normal(size=(ROWS, WIDTH)).astype(np.float32),
        "cls_prob": random.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32),
    }


def _lmdb(path: Path, values: dict[bytes, bytes]) -> None:
    environment = lmdb.open(str(path), map_size=1 << 24, subdir=False, lock=False)
    with environment.begin(write=True) as writing:
        for key, value in values.items():
            writing.put(key, value)
    environment.close()


def _as_msgpack(value):
    if isinstance(value, np.ndarray):
        return {b"nd": True, b"type": value.dtype.str, b"shape": value.shape, b"data": value.tobytes()}
    raise TypeError


def make_lmdb(folder: Path) -> None:
    items = {b"%d" % n: pickle.dumps(region_item(n)) for n in range(4)}
    _lmdb(folder / "x.lmdb", items | {b"keys": pickle.dumps(list(items))})


def make_lmdb_pairs(folder: Path) -> None:
    names = ("features", "cls_prob", "boxes", "num_boxes", "image_h", "image_w", "image_id")
    values = {}
    for n in range(4):
        item = region_item(n)
        values[b"%04d" % n] = msgpack.packb([*(item[name] for name in names), "a dog"], default=_as_msgpack)
    _lmdb(folder / "x.lmdb", values | {b"__keys__": msgpack.packb(list(values))})


def make_npy(folder: Path) -> None:
    for n in range(3):
        item = region_item(n)
        np.save(folder / f"{n}.npy", item.pop("features"))
        np.save(folder / f"{n}_info.npy", {"bbox": item.pop("boxes"), "image_width": 100, "image_height": 80} | item)


def _tsv_line(number: int) -> bytes:
    item = region_item(number)
    arrays = (base64.b64encode(item[name].tobytes()) for name in ("boxes", "features"))
    return b"\t".join([b"%d" % number, b"100", b"80", b"%d" % ROWS, *arrays]) + b"\n"


def make_tsv(folder: Path) -> None:
    (folder / "x.tsv").write_bytes(b"".join(map(_tsv_line, range(4))))


def make_tsv_gz(folder: Path) -> None:
    (folder / "x.tsv.gz").write_bytes(gzip.compress(b"".join(map(_tsv_line, range(4))), mtime=0))


def make_shards(folder: Path) -> None:
    make_dataset(folder, (4, 3), per_image=2)
    path = folder / "dataset.json"
    plan = {"command": "shards.extract", "images": [[str(folder / "a.png"), str(folder / "b.png"), 7]]}
    extra = {"plan": plan, "class_names": ["background", "cat", "dog"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra": extra}))


def make_tars(folder: Path) -> None:
    """Without what lies beside the tars."""
    make_shards(folder)
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()


def _module(name: str, *arguments) -> int:
    """A command in this process; its exit status."""
    sys.argv = [name, *map(str, arguments)]
    sys.modules.pop(name, None)
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code or 0
    return 0


def _in_this_process(function, tasks, processes, total, unit, done=0):
    for number, task in enumerate(tasks):
        yield number, function(task)


def convert(folder: Path) -> int:
    """shards.convert with its flag for bad rows, and without."""
    source = next(iter(folder.glob("x.*")), folder)
    conversion.run_tasks, conversion.advance = _in_this_process, lambda amount=1: None
    status = 0
    for on_bad_row in ("stop", "skip"):
        config = ConvertConfig((str(source),), str(folder / f"out-{on_bad_row}"), on_bad_row=on_bad_row)
        status |= _sentence(lambda config=config: conversion.convert(config))
    return status


def inspect(folder: Path) -> int:
    """shards.inspect, and every sample as pretraining takes it."""
    status = _module("shards.inspect", folder, "--picture", folder / "inspect.png")
    return status | _sentence(lambda: _read_samples(folder))


def _read_samples(folder: Path) -> None:
    dataset = open_dataset(str(folder))
    list(read_captions(dataset))
    reader, bad = RegionReader(dataset), 0
    limits = Limits(9, 9, dataset.feature_size, dataset.num_classes, dataset.classes_per_region)
    for number in range(len(reader)):
        try:
            check_sample(reader[number], limits)
        except UserError:
            bad += 1
    print(f"{bad} of {len(reader)} samples skipped")


def _sentence(read) -> int:
    """Runs a function as a command does; the exit status."""
    try:
        read()
        return 0
    except UserError as error:
        print(f"error: {error}")
        return 2


def _task(name: str, split: str):
    def read(folder: Path) -> int:
        task = all_tasks()[name]
        return _sentence(lambda: (PackedExamples.of(task.read(folder, split)), task.image_counts(folder, split)))

    return read


def _weights(file: str):
    def make(folder: Path) -> None:
        config = json.loads((PARITY / "config.json").read_text())
        (folder / "w.json").write_text(json.dumps(config))
        weights = load_file(PARITY / "pretrain_weights.safetensors")
        if file.endswith(".safetensors"):
            save_file(weights, folder / file)
        else:
            torch.save(weights, folder / file, _use_new_zipfile_serialization=file.endswith(".bin"))

    def read(folder: Path) -> int:
        with warnings.catch_warnings(action="ignore"):
            return _sentence(lambda: load(folder / file))

    return make, read


def make_vocabulary(folder: Path) -> None:
    (folder / "answers.json").write_text(json.dumps(["yes", "no", "2"]))
    (folder / "trainval_ans2label.pkl").write_bytes(pickle.dumps({"yes": 0, "no": 1, "2": 2}, 2))


def read_vocabularies(folder: Path) -> int:
    return max(_sentence(lambda path=path: read_vocabulary(path)) for path in sorted(folder.iterdir()))


def make_pieces(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh")]
    (folder / "vocab.txt").write_text("\n".join(words))


def read_pieces(folder: Path) -> int:
    return _sentence(lambda: load_bert_tokenizer(str(folder / "vocab.txt")).encode(["a bad cab", "Ω"], 9))


def make_words(folder: Path) -> None:
    fit_words(np.random.default_rng(0).normal(size=(40, 6)), 5, 0).save(folder / "visual_words.npz")


def read_words(folder: Path) -> int:
    return _sentence(lambda: load_words(folder / "visual_words.npz").classify(np.zeros((2, 6))))


def make_boxes(folder: Path) -> None:
    size = {"width": 50, "height": 40}
    lines = ({"image_id": f"{n}", **size, "boxes": [[1, 2, 30, 40]], "box_ids": ["7"]} for n in range(3))
    (folder / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_boxes(folder: Path) -> int:
    def read():
        for given in read_given_boxes(str(folder / "boxes.jsonl")).values():
            given.inside(100, 80)

    return _sentence(read)


def make_run(folder: Path) -> None:
    """The files of a run of one task that reports read, and a checkpoint's facts."""
    start = {"kind": "ST", "run": ""}
    config = {"flags": {"data": "data/world", "seed": 0}, "tasks": ["refcoco"], "tokens": {}, "start": start}
    scores = {"score": 0.25, "accuracy": 0.25, "examples": 20, "interval": [0.1, 0.45]}
    result = {"task": "refcoco", "kind": "ST", "validation": scores, "best_step": 2, "seconds": 3.9, "examples": 80}
    official_files.dump(folder / "config.json", config)
    official_files.dump(folder / "result.json", result)
    official_files.dump(folder / "scores" / "refcoco-testA.json", {"task": "refcoco", "split": "testA"} | scores)
    official_files.dump_lines(
        folder / "metrics.jsonl",
        [{"step": 2, "kind": "train", "loss": 5.2, "score": 0.25}, {"step": 2, "kind": "validation"} | scores],
    )
    metadata = {"step": 2, "score": -0.25, "sha256": {}, "scores": scores, "scaler": {}, "skipped_steps": 0}
    official_files.dump(folder / "checkpoints" / "step-00000002" / "checkpoint.json", metadata)


def read_run(folder: Path) -> int:
    """As finetune.report does, whose plots need matplotlib, and a resumed run."""

    def report():
        runs = find_runs([str(folder)])
        if find_spec("matplotlib"):
            write_report(folder.parent / "report.html", runs)

    return _sentence(report) | _sentence(lambda: read_metadata(best_checkpoint(folder)))


def make_clean(folder: Path) -> None:
    counts = {"train": {"all": 80, "kept": 66}, "val": {"all": 20, "kept": 10}}
    of_task = {"images": 46, "test_images": 20, "removed_images": 1, "examples": counts}
    official_files.dump(folder / "clean.json", {"format": 1, "tasks": {"refcoco": of_task}})
    removed = {"image": "7", "examples": 3, "test": "vqa test", "names": ["coco:7"], "evidence": []}
    official_files.dump_lines(folder / "removed" / "refcoco.jsonl", [removed])


def read_clean(folder: Path) -> int:
    return _sentence(lambda: read_cleaned(folder, all_tasks()["refcoco"]))


def make_gqa(folder: Path) -> None:
    official_files.gqa(folder)


def make_table(folder: Path) -> None:
    """A task of one's own tables, in both forms."""
    (folder / "shapes").mkdir()
    (folder / "shapes.toml").write_text(
        'kind = "answers"\nimages = "coco"\nmin_answer_count = 1\n\n[splits]\ntrain = "train.csv"\n'
        'val = "val.jsonl"\n\n[columns]\nimage = "file"\n'
    )
    rows = [("What is it?", "1.png", "a star"), ("How many, two?", "2.jpg", "2"), ("Where?", "3.png", "left")]
    lines = ["text,file,answer", *(f'"{text}",{image},{answer}' for text, image, answer in rows)]
    (folder / "shapes" / "train.csv").write_text("\n".join(lines) + "\n")
    values = [{"text": text, "file": image, "answer": [answer, "none"]} for text, image, answer in rows]
    official_files.dump_lines(folder / "shapes" / "val.jsonl", values)


def read_table(folder: Path) -> int:
    def read():
        task = read_task_file(folder / "shapes.toml", 12)
        for split in ("train", "val"):
            PackedExamples.of(task.read(folder / "shapes", split))

    return _sentence(read)


CAPTIONS = {"1": "a star", "2": "two discs"}


def make_captions(folder: Path) -> None:
    (folder / "x.tsv").write_text("".join(f"{image}.png\t{text}\n" for image, text in CAPTIONS.items()))
    official_files.dump_lines(folder / "x.jsonl", [{"image": k, "caption": text} for k, text in CAPTIONS.items()])
    official_files.karpathy(folder / "x.json")


def read_captions_of_files(folder: Path) -> int:
    return max(_sentence(lambda path=path: read_caption_file(str(path))) for path in sorted(folder.iterdir()))


def make_excluded(folder: Path) -> None:
    write_excluded(folder / EXCLUDED, ["000000042", "a.b.jpg", "7"])


def read_excluded_ids(folder: Path) -> int:
    return _sentence(lambda: not_excluded(folder)({"__key__": "7", "jpg": b""}))


def make_fingerprint(folder: Path) -> None:
    names = {f"coco:{n}": KnownName(f"coco:{n}", ("vqa test",), (f"coco:{n}",), ()) for n in range(3)}
    file = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(file, "JPEG")
    hashes = np.arange(2 * len(TRIMMED), dtype=np.uint64).reshape(2, -1)
    pictures = Pictures(["coco:0", "coco:2"], np.zeros((2, 32), np.uint8), hashes, [file.getvalue()] * 2)
    write_fingerprint(folder / "known.safetensors", KnownTests(names, pictures))


def read_fingerprint(folder: Path) -> int:
    return _sentence(lambda: read_checked_fingerprint(folder / "known.safetensors").sets())


def make_parquet(folder: Path) -> None:
    """Images as Hugging Face data sets have them, and URLs as those of LAION."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(file, "JPEG")
    rows = {"image": [{"bytes": file.getvalue(), "path": f"{n}.jpg"} for n in range(3)]}
    parquet.write_table(pyarrow.table(rows | {"sha256": ["00" * 32] * 3}), folder / "images.parquet")
    urls = {"URL": ["https://example.org/1.jpg", None, ""], "key": ["7", "8", None]}
    parquet.write_table(pyarrow.table(urls), folder / "urls.parquet")


def read_parquet(folder: Path) -> int:
    """Every image as a search decodes it."""

    def read():
        bad = 0
        for image in (image for part in corpus_parts(str(folder)) for image in corpus_images(part, None)):
            if image.picture is not None:
                try:
                    image_hashes(grey(image.picture))
                except BadImage:
                    bad += 1
        print(f"{bad} images cannot be decoded")

    return _sentence(read)


def make_retrieval(folder: Path) -> None:
    official_files.karpathy(folder / "dataset_coco.json")


FORMATS = {
    "lmdb": (make_lmdb, convert),
    "lmdb pairs": (make_lmdb_pairs, convert),
    "npy": (make_npy, convert),
    "tsv": (make_tsv, convert),
    "tsv.gz": (make_tsv_gz, convert),
    "shards": (make_shards, inspect),
    "tars": (make_tars, inspect),
    "weights zip": _weights("w.bin"),
    "weights before 1.6": _weights("w.pth"),
    "weights safetensors": _weights("w.safetensors"),
    "answers": (make_vocabulary, read_vocabularies),
    "vocab.txt": (make_pieces, read_pieces),
    "visual words": (make_words, read_words),
    "boxes": (make_boxes, read_boxes),
    "run": (make_run, read_run),
    "clean": (make_clean, read_clean),
    "vqa": (official_files.vqa, _task("vqa", "train")),
    "vgqa": (official_files.vgqa, _task("vgqa", "train")),
    "gqa": (make_gqa, _task("gqa", "train")),
    "retrieval": (make_retrieval, _task("coco_retrieval", "train")),
    "refcoco": (official_files.refer, _task("refcoco", "train")),
    "visual7w": (official_files.visual7w, _task("visual7w", "val")),
    "guesswhat": (official_files.guesswhat, _task("guesswhat", "valid")),
    "nlvr2": (official_files.nlvr2, _task("nlvr2", "dev")),
    "snli_ve": (official_files.snli_ve, _task("snli_ve", "dev")),
    "entities": (official_files.entities, _task("flickr30k_entities", "train")),
    "esnli_ve": (official_files.esnli_ve, _task("esnli_ve", "dev")),
    "table": (make_table, read_table),
    "captions": (make_captions, read_captions_of_files),
    "excluded": (make_excluded, read_excluded_ids),
    "fingerprint": (make_fingerprint, read_fingerprint),
    "parquet": (make_parquet, read_parquet),
}


def packed_again(data: bytes) -> bytes:
    """A zip with its entries deflated; other files as a .gz of themselves."""
    with contextlib.suppress(zipfile.BadZipFile):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, of in entries.items():
                archive.writestr(name, of)
        return file.getvalue()
    return gzip.compress(data, mtime=0)
