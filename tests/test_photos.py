"""benchmarks/photos: its data, its runs, its scores and its baseline, and the whole of it on a few pictures."""

import csv
import dataclasses
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import official_files as files
import pytest
import torch
from PIL import Image
from scipy import linalg
from transformers import BertConfig, BertModel

from finetune.annotations.example import Example
from finetune.config import EvaluateConfig, MtConfig, StConfig
from finetune.data.task_collate import TaskCollator
from finetune.data.task_data import open_data
from finetune.decontamination.manifest import read_cleaned
from finetune.tasks import all_tasks
from pretrain.config import PretrainConfig
from shards.common.cli import build
from shards.common.errors import UserError
from shards.config import ExtractConfig
from shards.storage.sample import Sample

ROOT = Path(__file__).parents[1]
TASKS = all_tasks()
TRAIN, DEV = [f"{5000 + n}" for n in range(40)], [f"{7000 + n}" for n in range(12)]
ROOMS = [f"image{n}" for n in range(1, 31)]
# e-SNLI-VE's images: ten of Flickr8k's training and two of its development photographs.
EXPLAINED = {"train": [*TRAIN[:7], DEV[0]], "dev": [*TRAIN[7:10], DEV[1]]}


def photos(name: str):
    """A module of benchmarks/photos; scripts of benchmarks/ write sys.path[0]."""
    before = list(sys.path)
    sys.path[:0] = ["", str(ROOT)]
    try:
        return importlib.import_module(f"benchmarks.photos.{name}")
    finally:
        sys.path[:] = before


data, runs, scoring, linear, table, recipes = map(
    photos, ("data", "runs", "scoring", "linear_baseline", "table", "recipe")
)


def write_photographs(path: Path, images: list[str]) -> None:
    """A tar of KEY.jpg and KEY.json, a picture of one colour with a bright spot for each image, made square."""
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            pixels = np.full((64, 64, 3), (40 * number % 200, 70 * number % 200, 90), np.uint8)
            pixels[8 * (number % 7) :][:12, 10:30] = 250
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "JPEG")
            for suffix, content in (
                ("jpg", picture.getvalue()),
                ("json", b'{"original_width": 500, "original_height": 375}'),
            ):
                entry = tarfile.TarInfo(f"{image}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def write_entities(path: Path, split: str, images: list[str]) -> None:
    folder = path.with_suffix("").with_suffix("")
    files.entities(folder, split, images)
    with tarfile.open(path, "w:gz") as tar:
        for file in sorted(folder.rglob("*")):
            tar.add(file, file.relative_to(folder), recursive=False)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A folder as the script takes it, of generated pictures with files in the official formats."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, images in (("flickr8k-train", TRAIN), ("flickr8k-dev", DEV), ("daquar-train", ROOMS)):
        write_photographs(folder / f"{name}.tar", images)
    of_images = []
    for split, images in (("train", TRAIN), ("val", DEV)):
        for image in images:
            first = 5 * len(of_images)
            sentences = [
                {"tokens": [], "raw": f"A dog {image} runs {n}.", "imgid": len(of_images), "sentid": first + n}
                for n in range(5)
            ]
            of_images.append({"filename": f"{image}.jpg", "split": split, "sentences": sentences})
    files.dump(folder / "dataset_flickr8k.json", {"images": of_images, "dataset": "flickr8k"})
    write_entities(folder / "entities-train.tar.gz", "train", TRAIN)
    write_entities(folder / "entities-dev.tar.gz", "dev", DEV)
    for split, images in EXPLAINED.items():
        files.esnli_ve(folder, split, images)
    answers = ("table", "chair", "lamp")
    files.daquar(folder, [(f"what is {n} ?", answers[n % 3], ROOMS[n // 3]) for n in range(3 * len(ROOMS))])
    return folder


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    folder = data.Folder(tmp_path_factory.mktemp("made") / "out")
    return folder, data.make_data(source, folder, None)


def images_of(folder: data.Folder, task: str, split: str, fold: int = 0) -> set[str]:
    examples = TASKS[task].read(folder.fold(fold) / task, split)
    return {image for example in examples for image in example.images}


def tar_images(folder: Path) -> dict[str, list[str]]:
    """Group -> the images of its tars."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            names = [Path(name).stem for name in tar.getnames() if name.endswith(".jpg")]
        found.setdefault(path.name.split("-")[1], []).extend(names)
    return found


# Data


def test_development_parts_are_the_tests_and_nothing_trains_on_them(made):
    folder, counts = made
    explained = {*EXPLAINED["train"], *EXPLAINED["dev"]}
    assert images_of(folder, "flickr_retrieval", "test") == set(DEV)
    assert images_of(folder, "flickr30k_entities", "test") == set(DEV)
    rooms = images_of(folder, "daquar", "test")
    assert len(rooms) == 6 and rooms < set(ROOMS)
    assert images_of(folder, "daquar", "train") | images_of(folder, "daquar", "val") == set(ROOMS) - rooms
    folds = [images_of(folder, "esnli_ve", "test", fold) for fold in range(5)]
    assert sorted(image for fold in folds for image in fold) == sorted(explained)
    assert sorted(map(len, folds)) == [2, 2, 2, 3, 3]
    for fold, tested in enumerate(folds):
        tests = {*DEV, *rooms, *tested}
        for task in runs.TASKS:
            removed = read_cleaned(folder.fold(fold) / "clean", TASKS[task]).images
            splits = TASKS[task].splits[:2]
            for split in splits:
                assert not (images_of(folder, task, split, fold) - removed) & tests, (fold, task, split)
    groups = tar_images(folder.photographs("flickr"))
    assert set(groups["removed"]) == explained & set(TRAIN) and groups["dev"] == DEV
    assert sorted(groups["train"] + groups["removed"] + groups["val"]) == TRAIN
    assert (
        images_of(folder, "flickr_retrieval", "val")
        == set(groups["val"])
        == images_of(folder, "flickr30k_entities", "val")
    )
    assert len(groups["val"]) == 2
    assert sorted(tar_images(folder.photographs("daquar"))["all"]) == sorted(ROOMS)
    assert counts.flickr == {name: len(images) for name, images in groups.items()}
    assert (counts.daquar, counts.captions, counts.esnli_ve) == ({"train": 24, "dev": 6}, 5 * 52, 3 * 12)


def test_pretraining_reads_the_shards_of_its_groups(made):
    folder, _ = made
    tars = sorted(folder.photographs("flickr").glob("*.tar"))
    assert [path.name for path in tars] == [f"{n}-{name}-00000.tar" for n, name in enumerate(data.GROUPS)]
    assert folder.pairs(data.PRETRAINED) == str(folder.regions / "flickr" / "regions-00000.tar")
    assert folder.pairs(data.NOT_CLEANED) == str(folder.regions / "flickr" / "regions-{00000,00001}.tar")
    with pytest.raises(UserError, match=r"no tars of nobody found; run the stage data"):
        folder.pairs(("nobody",))


def test_photographs_are_written_in_parts_in_the_shape_of_their_originals(source, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PER_TAR", 7)
    data._repack([source / "flickr8k-train.tar"], {"a": TRAIN[:3], "b": TRAIN[3:12]}, tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0-a-00000.tar", "1-b-00000.tar", "1-b-00001.tar"]
    with tarfile.open(source / "flickr8k-train.tar") as original, tarfile.open(tmp_path / "1-b-00001.tar") as copy:
        assert copy.getnames() == [f"{image}.jpg" for image in TRAIN[10:12]]
        for name in copy.getnames():
            with Image.open(copy.extractfile(name)) as one, Image.open(original.extractfile(name)) as other:
                assert (one.size, other.size) == ((85, 64), (64, 64))
                expected = np.asarray(other.resize(one.size), float)
                assert np.abs(np.asarray(one, float) - expected).mean() < 5


@pytest.mark.parametrize(
    ("original", "expected"), [((500, 375), (85, 64)), ((375, 500), (64, 85)), ((300, 300), (64, 64)), (None, (64, 64))]
)
def test_the_original_shape(original, expected):
    """A picture that has it is not encoded again."""
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(picture, "JPEG")
    metadata = {"original_width": original[0], "original_height": original[1]} if original else {}
    found = data.in_original_shape(picture.getvalue(), metadata)
    with Image.open(io.BytesIO(found)) as image:
        assert image.size == expected
    assert (found == picture.getvalue()) == (expected == (64, 64))


def test_rows_of_entailment_are_copied_whole(source, made):
    folder, _ = made

    def rows(path):
        with open(path, encoding="utf-8", newline="") as file:
            return Counter(map(tuple, list(csv.reader(file))[1:]))

    original = rows(source / "esnlive_train.csv") + rows(source / "esnlive_dev.csv")
    for fold in range(5):
        parts = [rows(folder.fold(fold) / "esnli_ve" / f"esnlive_{name}.csv") for name in ("train", "dev", "test")]
        assert sum(parts, Counter()) == original


def test_data_is_made_once_and_other_settings_are_refused(source, made, tmp_path):
    folder, counts = made
    before = folder.captions.stat().st_mtime_ns
    assert data.make_data(source, folder, None) == counts and folder.captions.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"was made with .*; use another --out"):
        data.make_data(source, folder, 10)
    with pytest.raises(UserError, match=r"flickr8k-train\.tar, .* not found; the folder should contain"):
        data.make_data(tmp_path, data.Folder(tmp_path / "out"), None)


def test_a_sample_has_pairs_of_every_task(source, tmp_path):
    folder = data.Folder(tmp_path)
    counts = data.make_data(source, folder, 20)
    assert counts.flickr == {"train": 8, "removed": 10, "val": 2, "dev": 12} and sum(counts.daquar.values()) == 20
    for task in runs.TASKS:
        for split in TASKS[task].splits[:3]:
            assert images_of(folder, task, split), (task, split)


# Runs


@pytest.fixture
def plan(made):
    recipe = recipes.read_recipe(recipes.DEFAULT_RECIPE, runs.TASKS)
    return runs.Plan(recipe, made[0], "bert", 3, 2)


def test_the_recipe_has_flags_that_exist(plan):
    recipe = plan.recipe
    build(ExtractConfig, recipe.extract | {"images": "i", "out": "o"})
    build(PretrainConfig, recipe.pretrain)
    build(MtConfig, recipe.together)
    for task in runs.TASKS:
        build(StConfig, recipe.alone_on(task) | {"task": task})
    build(EvaluateConfig, recipe.score | {"run": "r"})
    assert recipe.sizes.contrastive_size and recipe.sizes.vocab_size == 30522


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"more": {}}, "should be a JSON object with model, extract, pretrain, together, alone, score"),
        ({"alone": {"vqa": {}}}, "alone has vqa; should be every task or one of flickr_retrieval"),
    ],
)
def test_broken_recipes_are_refused(change, sentence, tmp_path):
    value = json.loads(Path(recipes.DEFAULT_RECIPE).read_text()) | change
    files.dump(tmp_path / "recipe.json", value)
    with pytest.raises(UserError, match=sentence):
        recipes.read_recipe(str(tmp_path / "recipe.json"), runs.TASKS)


def test_flags_of_a_task_come_before_those_of_every_task():
    recipe = recipes.Recipe("m", {}, {}, {}, {"every task": {"epochs": 4, "lr": 1.0}, "daquar": {"epochs": 9}}, {})
    assert recipe.alone_on("daquar") == {"epochs": 9, "lr": 1.0}
    assert recipe.alone_on("esnli_ve") == {"epochs": 4, "lr": 1.0}


def test_the_runs_of_every_row(plan):
    calls = [*plan.pretrainings(runs.ROWS), *(call for part in plan.finetunings(runs.ROWS) for call in part)]
    outs = [call.out for call in calls]
    assert len(set(outs)) == len(outs)
    by_name = {str(call.out.relative_to(plan.out)): call for call in calls}
    pretrained = {name for name in by_name if name.startswith("pretrain/")}
    assert pretrained == {f"pretrain/{name}" for name in ("main", "all_pairs", "no_overlap", "random", "not_cleaned")}
    assert {name for name in by_name if name.startswith("mt/")} == {
        *("mt/main-fold0", "mt/main-fold1"),
        *(f"mt/{name}-fold0" for name in ("all_pairs", "no_overlap", "random", "scratch")),
    }
    singles = {*(task for task in runs.TASKS if task != "esnli_ve")}
    folds = {f"esnli_ve-fold{n}" for n in range(5)}
    assert {name for name in by_name if name.startswith("st/")} == {f"st/{name}" for name in singles | folds}
    assert {name for name in by_name if name.startswith("at_st/")} == {
        f"at_st/{name}" for name in singles | {"esnli_ve-fold0", "esnli_ve-fold1"}
    }
    assert {name for name in by_name if name.startswith("not_cleaned/")} == {f"not_cleaned/{name}" for name in folds}
    for name, call in by_name.items():
        assert call.flags["seed"] == 3
        if not name.startswith("pretrain/"):
            assert call.flags["clean"] == "true"
            fold = int(name.partition("-fold")[2] or 0)
            assert call.flags["data"] == str(plan.folder.fold(fold))
    main = by_name["pretrain/main"].flags
    assert main["data"] == plan.folder.pairs(("train",)) and main["contrastive"] > 0 and "aligned_only" not in main
    random = {"contrastive": 0.0, "negatives": "random"}
    assert by_name["pretrain/all_pairs"].flags == main | random | {"aligned_only": False}
    assert by_name["pretrain/no_overlap"].flags == main | {"overlap": 1.1}
    assert by_name["pretrain/random"].flags == main | random
    assert by_name["pretrain/not_cleaned"].flags == main | {"data": plan.folder.pairs(("train", "removed"))}
    starts = {name: str(call.flags.get("init")) for name, call in by_name.items()}
    assert starts["mt/main-fold1"] == starts["st/daquar"] == str(plan.out / "pretrain" / "main")
    assert starts["mt/random-fold0"] == str(plan.out / "pretrain" / "random") and starts["mt/scratch-fold0"] == "bert"
    assert starts["at_st/daquar"] == str(plan.out / "mt" / "main-fold0")
    assert starts["at_st/esnli_ve-fold1"] == str(plan.out / "mt" / "main-fold1")
    assert starts["not_cleaned/esnli_ve-fold2"] == str(plan.out / "pretrain" / "not_cleaned")
    assert plan.finetunings(("zero-shot",)) == ([], [])


def test_a_run_with_other_flags_is_refused(plan, tmp_path):
    call = dataclasses.replace(plan.pretraining("main"), out=tmp_path)
    runs.check_made_with(call)
    (tmp_path / "result.json").write_text("{}")
    files.dump(tmp_path / "config.json", {"flags": call.flags | {"workers": 0}})
    runs.check_made_with(call)
    files.dump(tmp_path / "config.json", {"flags": call.flags | {"epochs": 1}})
    with pytest.raises(UserError, match=r"was made with --epochs 1 and not \d+; give another --out"):
        runs.check_made_with(call)


# Scores


def test_exchanged_images_have_each_others_scores():
    """Against scores worked out pair by pair on exchanged images."""
    rng, names = np.random.default_rng(0), ["c", "a", "b", "e", "d"]
    vectors = {name: rng.normal(size=4) for name in names}
    texts = {(name, n): vectors[name] + rng.normal(size=4) for name in names for n in range(3)}
    examples = [Example(f"{name}{n}", "", (name,)) for name in names for n in range(3)]
    scores = np.array([[texts[key] @ vectors[image] for image in names] for key in texts])
    other = {name: names[(n - 2) % 5] for n, name in enumerate(names)}
    assert all(name != image for name, image in other.items())
    expected = []
    for name, n in texts:
        exchanged = {image: texts[name, n] @ vectors[other[image]] for image in names}
        expected.append(all(exchanged[name] > exchanged[image] for image in names if image != name))
    assert scoring.blind_retrieval(TASKS["flickr_retrieval"], examples, scores).tolist() == expected
    assert 0 < sum(expected) < len(expected)


def made_scores(main, images, chance=0.25, further=None):
    main = np.array(main, float)
    return scoring.Scores({"accuracy": main, "R@5": main / 2}, main * 0, np.array(images), chance, further or {})


def test_scores_are_kept_pooled_and_averaged(tmp_path):
    one = made_scores([1, 0, 1], ["a", "a", "b"], 0.1, {"WUPS@0.9": 0.2})
    two = made_scores([0], ["c"], 0.5, {"WUPS@0.9": 0.6})
    one.save(tmp_path / "one.npz")
    kept = scoring.load_scores(tmp_path / "one.npz")
    assert list(kept.metrics) == ["accuracy", "R@5"] and kept.main.tolist() == [1, 0, 1] and kept.further == one.further
    assert (kept.chance, kept.images.tolist()) == (0.1, ["a", "a", "b"])
    both = scoring.pooled([one, two])
    assert both.main.tolist() == [1, 0, 1, 0] and both.clusters.tolist() == [0, 0, 1, 2]
    assert both.chance == pytest.approx(0.2) and both.further["WUPS@0.9"] == pytest.approx(0.3)
    mean = scoring.averaged([one, made_scores([0, 0, 1], ["a", "a", "b"], 0.1, {"WUPS@0.9": 0.4})])
    assert mean.main.tolist() == [0.5, 0, 1] and mean.further["WUPS@0.9"] == pytest.approx(0.3)


def test_one_caption_per_image_is_the_first():
    images = ["b", "b", "a", "a", "a", "c"]
    assert scoring.first_captions(images).tolist() == [0, 2, 5]
    assert table.of_first_captions(made_scores([0, 1, 1, 0, 0, 1], images)).main.tolist() == [0, 1, 1]


def test_the_best_constant_box_is_the_whole_image():
    facts = {"width": 500, "height": 400, "types": ("other",), "boxes": 1}
    targets = [(0, 0, 500, 200), (0, 0, 499, 199), (100, 0, 500, 400)]
    examples = [Example(n, "it", ("a",), box, facts=facts) for n, box in enumerate(targets)]
    sample = Sample("a", np.ones((1, 4), np.float16), np.float32([[0, 0, 0.5, 0.5]]), info={"width": 50, "height": 40})
    collator = TaskCollator(TASKS["flickr30k_entities"], examples, {"a": sample}, None, None)
    assert scoring.best_constant(collator) == pytest.approx(2 / 3)


def test_the_table_compares_rows_on_the_examples_that_both_have():
    of_fold = {0: made_scores([1, 0], ["a", "b"]), 1: made_scores([1, 1], ["c", "d"])}
    later = {0: made_scores([1, 1], ["a", "b"])}
    seeds = [{"ST": {("esnli_ve", n): of for n, of in of_fold.items()}, "AT->ST": {("esnli_ve", 0): later[0]}}, {}]
    results, counts = table.complete_rows(seeds)
    assert counts == {"ST": 1, "AT->ST": 1} and list(results["ST"]["esnli_ve"]) == [0, 1]
    text = table.render(results, counts, None)
    assert "AT->ST less ST: +50.0%" in text and "on 2 examples" in text
    more = {"ST": {"esnli_ve": {1: of_fold[1]}}, "not_cleaned": {"esnli_ve": of_fold}}
    assert "not_cleaned less ST: +0.0% (+0.0% to +0.0%), on 2 examples" in table.render(more, {"ST": 1}, None)
    assert "folds: 2 of ST, 1 of AT->ST" in text
    row = next(line for line in text.splitlines() if line.startswith("ST, each alone"))
    assert row.split()[3:5] == ["4", "75.0%"] and "37.5%" in row


def test_ablations_of_retrieval_are_compared_by_one_caption():
    images = ["a", "a", "b", "b"]
    rows = {
        "AT": {"flickr_retrieval": {0: made_scores([1, 0, 1, 1], images)}},
        "random": {"flickr_retrieval": {0: made_scores([0, 1], ["a", "b"])}},
    }
    text = table.render(rows, {"AT": 1, "random": 1}, None)
    assert "random less AT: -50.0%" in text
    headline, _, ablations = text.partition("one caption per image")
    assert [line.split()[4:6] for line in headline.splitlines() if line.startswith("AT, ")] == [["4", "75.0%"]]
    assert [line.split()[4:6] for line in ablations.splitlines() if line.startswith("AT, ")] == [["2", "100.0%"]]
    assert "SCAN, bottom-up features" in headline and "random:" not in headline and "random:" in ablations


# The linear baseline


def test_tf_idf_equals_the_slow_one():
    captions = ["A dog runs; a dog!", "the dog", "A cat runs", "a zebra", "cat", "CAT and dog", "dog"]
    words = linear.Words.of(captions)
    kept = ["a", "cat", "dog"]
    assert list(words.numbers) == kept
    tokens = [["a", "dog", "runs", "a", "dog"], ["the", "dog"], ["a", "cat", "runs"], ["a", "zebra"], ["cat"]]
    tokens += [["cat", "and", "dog"], ["dog"]]
    for row, of in zip(words.rows([*captions, "none known"]).toarray(), [*tokens, []], strict=True):
        expected = np.array([of.count(w) * np.log(7 / sum(w in t for t in tokens)) for w in kept])
        np.testing.assert_allclose(row, expected / (np.linalg.norm(expected) or 1))


def test_projections_are_those_of_the_generalised_eigenvalue_problem():
    """Against scipy's generalised eigenvectors of the stacked covariances, with images repeated for each caption."""
    rng = np.random.default_rng(1)
    images, own = rng.normal(size=(30, 5)), np.repeat(np.arange(30), rng.integers(1, 4, 30))
    texts = np.maximum(images[own][:, :4] + rng.normal(size=(len(own), 4)), 0)
    found = linear.canonical_projections(images, linear.sparse.csr_array(texts), own, 0.3, 0.2)
    x, y = images[own] - images[own].mean(0), texts - texts.mean(0)
    cxx, cyy, cxy = x.T @ x / len(own), y.T @ y / len(own), x.T @ y / len(own)
    cxx += 0.3 * np.trace(cxx) / 5 * np.eye(5)
    cyy += 0.2 * np.trace(cyy) / 4 * np.eye(4)
    zero = np.zeros
    values, vectors = linalg.eigh(
        np.block([[zero((5, 5)), cxy], [cxy.T, zero((4, 4))]]), np.block([[cxx, zero((5, 4))], [zero((4, 5)), cyy]])
    )
    order = np.argsort(-values)[:4]
    weights = values[order] ** linear.POWER
    a, b = vectors[:5, order] * weights, vectors[5:, order] * weights  # each column by the same factor in both
    new_images, new_texts = rng.normal(size=(6, 5)), np.maximum(rng.normal(size=(7, 4)), 0)
    x, y = (new_images - images[own].mean(0)) @ a, (new_texts - texts.mean(0)) @ b
    expected = (y / np.linalg.norm(y, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    np.testing.assert_allclose(found.scores(new_images, linear.sparse.csr_array(new_texts)), expected, atol=1e-8)


def test_the_baseline_finds_images_by_what_their_words_mean():
    rng, things = np.random.default_rng(2), ["dog", "cat", "car", "tree", "boat", "ball"]
    looks = {word: rng.normal(size=12) for word in things}
    regions, examples = {}, []
    for number in range(150):
        named = rng.choice(things, 2, replace=False)
        features = np.stack([looks[word] for word in named]) + 0.1 * rng.normal(size=(2, 12))
        boxes = np.tile(np.float32([0, 0, 1, 1]), (2, 1))
        regions[f"{number}"] = Sample(f"{number}", features.astype(np.float16), boxes, info={})
        examples += [Example(f"{number}-{word}", f"a {word}", (f"{number}",)) for word in named]
    pooled = linear.pooled_features(regions, regions)
    scores = linear.linear_retrieval(pooled, examples[:200], examples[200:220], examples[220:])
    for example, row in zip(examples[220:], scores, strict=True):
        best = f"{110 + row.argmax()}"
        assert any(other.images == (best,) and other.text == example.text for other in examples)


# The whole script


def test_flags_of_the_documentation_exist():
    known = {field.name for field in dataclasses.fields(photos("__main__").PhotosConfig)}
    for page in ("docs/photos.md", "benchmarks/README.md", "Makefile"):
        lines = [
            line for line in (ROOT / page).read_text().replace("\\\n", " ").splitlines() if "benchmarks.photos" in line
        ]
        assert lines, page
        assert {
            flag for line in lines for flag in re.findall(r"--(\w+)", line.partition("benchmarks.photos")[2])
        } <= known


def tiny_resnet(path: Path) -> None:
    """A random ResNet of torchvision's names, with 8 features and 5 classes."""
    torch.manual_seed(0)
    weights = {"conv1.weight": torch.randn(4, 3, 7, 7) / 12, "fc.weight": torch.randn(5, 8), "fc.bias": torch.zeros(5)}

    def norm(name: str, width: int) -> None:
        for part, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            weights[f"{name}.{part}"] = torch.full((width,), value)

    norm("bn1", 4)
    before = 4
    for stage, width in enumerate((4, 4, 8, 8), 1):
        block = f"layer{stage}.0"
        weights[f"{block}.conv1.weight"] = torch.randn(width, before, 3, 3) / 6
        weights[f"{block}.conv2.weight"] = torch.randn(width, width, 3, 3) / 6
        norm(f"{block}.bn1", width)
        norm(f"{block}.bn2", width)
        if stage > 1:
            weights[f"{block}.downsample.0.weight"] = torch.randn(width, before, 1, 1) / 2
            norm(f"{block}.downsample.1", width)
        before = width
    torch.save(weights, path)


def tiny_bert(folder: Path) -> None:
    """A random BERT of two layers with a tokenizer of single characters."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,;?'\""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{one}" for one in characters)]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(names), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{name}\n" for name in names))


def tiny_recipe(folder: Path, vocabulary: int) -> Path:
    model = json.loads((ROOT / "benchmarks/photos/model.json").read_text())
    model |= {"vocab_size": vocabulary, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model |= {"intermediate_size": 32, "max_position_embeddings": 64, "v_feature_size": 8, "v_target_size": 5}
    model |= {"v_hidden_size": 16, "v_num_attention_heads": 2, "v_intermediate_size": 16, "bi_hidden_size": 16}
    model |= {"bi_num_attention_heads": 2, "t_biattention_id": [2, 2], "contrastive_size": 8}
    files.dump(folder / "small.json", model)
    here = {"workers": 0}
    recipe = {
        "model": "small.json",
        "extract": {"proposals": "grid", "grid": 2, "processes": 1},
        "pretrain": here
        | {"epochs": 1, "batch_size": 8, "contrastive": 1.0, "negatives": "hard", "validation_pairs": 0},
        "together": here | {"iterations": 1},
        "alone": {"every task": here | {"epochs": 1}},
        "score": {"rerank": 10},
    }
    files.dump(folder / "recipe.json", recipe)
    return folder / "recipe.json"


def test_an_unfinished_run_is_not_scored(plan):
    for row, stage in (("zero-shot", "pretrain"), ("AT", "finetune")):
        with pytest.raises(UserError, match=f"is not finished; run the stage {stage} before score"):
            photos("__main__").score(next(iter(plan.scored(row))), plan, row)


@pytest.mark.slow
def test_from_tars_to_the_table(source, tmp_path):
    tiny_resnet(tmp_path / "resnet.pth")
    (tmp_path / "bert").mkdir()
    tiny_bert(tmp_path / "bert")
    vocabulary = len((tmp_path / "bert" / "vocab.txt").read_text().splitlines())
    recipe, out = tiny_recipe(tmp_path, vocabulary), tmp_path / "out"
    flags = ("--weights", tmp_path / "resnet.pth", "--bert", tmp_path / "bert", "--recipe", recipe, "--out", out)

    def script(*more) -> str:
        command = [sys.executable, "-m", "benchmarks.photos", source, *flags, *more]
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = script("--seconds", "0.5", "--rows", "zero-shot,AT,AT->ST,scratch,not_cleaned")
    assert "images/s" in said and "ranking" in said and (out / "rates.json").exists() and not (out / "measure").exists()
    text = (out / "table.txt").read_text()
    assert text in said + "\n"
    for title, count in (("Flickr8k image retrieval", 60), ("Flickr30k Entities", 48), ("DAQUAR", 18)):
        section = text.partition(f"\n{title}\n")[2].partition("\n\n")[0].splitlines()
        assert [line.split()[4] for line in section if line.startswith("AT, all")] == [f"{count}"], title
    assert "\ne-SNLI-VE\n" in text and "folds: 1 of AT, 1 of AT->ST, 1 of scratch, 5 of not_cleaned" in text
    for label in ("linear baseline", "zero-shot", "AT, all", "AT->ST", "scratch: ", "not_cleaned: "):
        assert f"\n{label}" in text
    assert text.count("scratch less AT: ") == 4 and "less ST" not in text
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert script("--stages", "extract,pretrain,finetune,score,table", "--rows", "zero-shot,AT,scratch").endswith(text)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")} == made
    scores = scoring.load_scores(out / "seed0" / "mt" / "main-fold0" / "scores" / "photos-daquar.npz")
    examples = open_data(TASKS["daquar"], str(out / "data" / "fold0"), "stop").examples("test")
    assert scores.images.tolist() == [example.images[0] for example in examples]
