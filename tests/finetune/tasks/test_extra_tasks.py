"""Tasks beyond the paper's twelve (Flickr30k Entities, e-SNLI-VE, DAQUAR): official files and scores, and that they are
not counted among the twelve.
"""

import dataclasses
import gzip
import itertools
import json
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import official_files as files
import pytest
import torch
from data_sets import make_samples

from finetune.annotations.boxes import iou_with_box
from finetune.annotations.example import Example
from finetune.data.task_collate import TaskCollator
from finetune.decontamination.removal_table import TaskCount, removal_report
from finetune.evaluation.scores import TaskScore, mean_score, table_row
from finetune.inference.predictions import predict
from finetune.metrics.wordnet import find_nouns, read_nouns
from finetune.metrics.wups import fuzzy_score, set_accuracy, word_measure, words_of, wups
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import TaskPass
from finetune.run_dirs.model_source import ModelSource
from finetune.tasks import all_tasks, paper_tasks
from finetune.tasks.daquar import plain_answer
from finetune.tasks.flickr30k_entities import read_phrases
from pretrain.data.collate import Limits
from pretrain.models.contrastive import TEMPERATURE
from pretrain.models.model_config import TINY
from pretrain.models.precision import Precision
from pretrain.tokenizer.tokenizer import learn_tokenizer
from shards.common.dist_info import ALONE
from shards.common.errors import UserError
from shards.storage.dataset import finish_dataset
from shards.storage.sample import Sample
from shards.storage.writer import write_shard

TASKS = all_tasks()
ENTITIES, ESNLI, DAQUAR = (TASKS[name] for name in ("flickr30k_entities", "esnli_ve", "daquar"))


# Flickr30k Entities


def test_phrases_with_their_boxes(tmp_path):
    files.entities(tmp_path)
    examples = ENTITIES.read(tmp_path, "train")
    assert [(e.id, e.text) for e in examples] == [
        ("1022454332#0/0", "A young boy"),
        ("1022454332#0/1", "three ducks"),
        ("1022454332#0/2", "a lake"),
        ("1022454332#1/1", "a child"),
    ]
    assert all(e.images == ("1022454332",) for e in examples)
    boy, ducks, lake, child = examples
    assert boy.target == child.target == (10, 20, 110, 220)  # the first corner's pixel counts from 0 and inclusively
    assert ducks.target == (0, 0, 160, 90) and ducks.facts["boxes"] == 3  # the box around all three
    assert lake.facts == {"width": 500, "height": 375, "types": ("scene", "other"), "boxes": 1}
    given = ENTITIES.given_boxes(tmp_path)["1022454332"]
    assert given.boxes["651"] == ducks.target and given.size == (500, 375)


def official_iou(box, other) -> float:
    """Of two boxes whose corners are pixels that both belong to them (getIOU.m)."""
    width = min(box[2], other[2]) - max(box[0], other[0]) + 1
    height = min(box[3], other[3]) - max(box[1], other[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
    return width * height / (sum(areas) - width * height)


def test_grounding_scores_are_those_of_the_official_rules(tmp_path):
    """Proposals are whole pixels here, so that both rules have the same boxes; IoUs of exactly 0.5 are among them."""
    rng = np.random.default_rng(3)
    truth = {str(n): [tuple(pixels(rng)) for _ in range(1 + n % 3)] for n in range(60)} | {"60": [(1, 1, 100, 200)]}
    captions = [" ".join(f"[/EN#{entity}/{'people' if int(entity) % 2 else 'other'} it]" for entity in truth)]
    files.entities(tmp_path, captions=captions, boxes=truth)
    examples = ENTITIES.read(tmp_path, "train")
    proposals = [[tuple(pixels(rng)) for _ in range(30)] for _ in truth]
    proposals[-1] = [(201, 201, 300, 300), (1, 1, 100, 100), *proposals[-1][2:]]
    expected: dict[str, list[bool]] = {"R@1": [], "R@5": [], "R@10": [], "upper bound": []}
    for boxes, ranked in zip(truth.values(), proposals, strict=True):
        x1, y1, x2, y2 = zip(*boxes, strict=True)
        around = (min(x1), min(y1), max(x2), max(y2))
        overlaps = [official_iou(around, box) for box in ranked]
        for name, k in (("R@1", 1), ("R@5", 5), ("R@10", 10), ("upper bound", 30)):
            expected[name].append(max(overlaps[:k]) >= 0.5)
    continuous = np.array(proposals, float) - [1, 1, 0, 0]
    padded = np.concatenate([continuous, np.zeros((len(truth), 5, 4))], 1)
    found = ENTITIES.scores(examples, padded)
    assert list(found) == ["accuracy", "R@1", "R@5", "R@10", "upper bound"]
    for name, values in expected.items():
        assert found[name].tolist() == [float(value) for value in values], name
    assert found["accuracy"].tolist() == found["R@1"].tolist()
    assert not found["R@1"][-1] and found["R@5"][-1]  # an IoU of a half is right
    assert len({*map(tuple, (found[name].tolist() for name in expected))}) == 4
    by = ENTITIES.breakdown(examples, found["accuracy"])["phrase type"]
    assert {name: len(values) for name, values in by.items()} == {"other": 31, "people": 30}
    assert by["people"].tolist() == found["accuracy"][1::2].tolist()
    said = json.loads(ENTITIES.submission(examples, padded))
    assert said[2] == {"id": examples[2].id, "box": continuous[2, 0].tolist()}


def pixels(rng) -> np.ndarray:
    """A box of whole pixels, corners included."""
    begin = rng.integers(1, 120, 2)
    return np.concatenate([begin, begin + rng.integers(30, 150, 2)])


def test_all_boxes_of_an_image_are_ranked_by_the_models_scores():
    """Against the scores of the model's own pass, box by box; images with 2 to 5 regions in batches of 2."""
    rng, images = np.random.default_rng(0), [f"{n}" for n in range(4)]
    samples = {}
    for n, image in enumerate(images):
        corners = np.sort(rng.random((n + 2, 2, 2)), 1).reshape(-1, 4).astype(np.float32)
        features = rng.normal(size=(n + 2, 12)).astype(np.float16)
        samples[image] = Sample(image, features, corners, info={"width": 300, "height": 225})
    facts = {"width": 500, "height": 375, "types": ("other",), "boxes": 1}
    examples = [Example(n, f"thing {n}", (image,), (0, 0, 9, 9), facts=facts) for n, image in enumerate(images)]
    torch.manual_seed(0)
    tokenizer = learn_tokenizer([example.text for example in examples], 200)
    model = TaskModel(TINY.replace(vocab_size=len(tokenizer), v_feature_size=12, task_tokens=20), {}).eval()
    task_pass = TaskPass(model, ENTITIES, Precision("float32", torch.device("cpu")), ENTITIES.token)
    collator = TaskCollator(ENTITIES, examples, samples, tokenizer, Limits(20, 7, 12))
    ranked = predict(task_pass, collator, 2, 0, ALONE)
    assert ranked.shape == (4, 8, 4)
    for n, image in enumerate(images):
        with torch.no_grad():
            scores = task_pass.logits(collator(0, np.array([n])))[0].numpy()
        boxes = np.concatenate([[[0, 0, 1, 1]], samples[image].boxes]) * [500, 375, 500, 375]
        expected = [boxes[row] for row in sorted(range(len(boxes)), key=lambda row: -scores[row])]
        np.testing.assert_allclose(ranked[n, : len(boxes)], expected, rtol=1e-6)
        assert not ranked[n, len(boxes) :].any()


def grounding_pass(contrastive_size=0):
    """(task pass, collator) on four images with 2 to 5 regions, of which some fit the example's box."""
    rng, images = np.random.default_rng(1), [f"{n}" for n in range(4)]
    samples, examples, facts = {}, [], {"width": 100, "height": 100, "types": ("other",), "boxes": 1}
    for n, image in enumerate(images):
        boxes = np.float32([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.4], *rng.random((n, 4)) * 0.05])
        samples[image] = Sample(image, rng.normal(size=(n + 2, 12)).astype(np.float16), boxes, info={})
        examples.append(Example(n, f"thing {n}", (image,), (10, 10, 50, 50) if n else (90, 90, 99, 99), facts=facts))
    torch.manual_seed(0)
    tokenizer = learn_tokenizer([example.text for example in examples], 200)
    sizes = TINY.replace(
        vocab_size=len(tokenizer), v_feature_size=12, task_tokens=20, contrastive_size=contrastive_size
    )
    model = TaskModel(sizes, {}).eval()
    task_pass = TaskPass(model, ENTITIES, Precision("float32", torch.device("cpu")), ENTITIES.token)
    return task_pass, TaskCollator(ENTITIES, examples, samples, tokenizer, Limits(20, 7, 12))


def test_the_loss_of_phrases_is_one_softmax_over_the_rows():
    """In proportion to the IoU of the rows that fit; 0 for an example that no row fits."""
    task_pass, collator = grounding_pass()
    batch = collator(0, np.arange(4))
    with torch.no_grad():
        scores = task_pass.logits(batch).double()
    losses = ENTITIES.head.losses(scores, batch.target)
    assert losses[0] == 0
    for n in range(1, 4):
        rows = n + 3  # the image token, two boxes that fit with an IoU of 1 and 0.75, and n that do not
        chances = scores[n, 1:3].exp() / scores[n, :rows].exp().sum()
        expected = -(chances.log() * torch.tensor([1 / 1.75, 0.75 / 1.75])).sum()
        torch.testing.assert_close(losses[n], expected, rtol=1e-5, atol=0)
    assert task_pass(batch, [4])[0].isfinite()
    confidence = ENTITIES.head.confidence(scores[2])
    assert confidence.sum() == pytest.approx(1) and confidence[6:].sum() == 0


def test_the_similarity_of_text_and_region_is_added_after_contrastive_pretraining():
    task_pass, collator = grounding_pass(contrastive_size=8)
    batch = collator(0, np.arange(4))
    with torch.no_grad():
        inputs = task_pass.inputs(batch)
        encoded, encoder = task_pass.model.encode(inputs), task_pass.model.encoder
        states = encoded.stream_states
        texts, images = states.text_layout.pad(states.text), states.image_layout.pad(states.image)
        plain = dataclasses.replace(ENTITIES.head, softmax=False)
        head = task_pass.model.logits(encoded, inputs, plain)
        found = task_pass.logits(batch)
        for n in range(4):
            length = int(inputs.text_mask[n].sum()) + 1  # with the task token
            text = encoder.contrast.text(texts[n, :length].mean(0))
            for row in range(n + 3):
                region = encoder.contrast.image(torch.cat([images[n, row]] * 2))
                cosine = torch.nn.functional.cosine_similarity(text, region, dim=0)
                torch.testing.assert_close(found[n, row], head[n, row] + cosine / TEMPERATURE, rtol=1e-4, atol=1e-4)
            assert (found[n, n + 3 :] < -1000).all()


def test_broken_entities_are_told(tmp_path):
    files.entities(tmp_path)
    xml, text = tmp_path / "Annotations" / "1022454332.xml", tmp_path / "Sentences" / "1022454332.txt"
    whole = xml.read_text()
    xml.write_text(whole.replace("<xmin>11</xmin>", "<xmin>eleven</xmin>"))
    with pytest.raises(UserError, match=r"1022454332\.xml, object 0: xmin is 'eleven'; should be a number of pixels"):
        ENTITIES.read(tmp_path, "train")
    xml.write_text(whole.replace("<xmax>110</xmax>", "<xmax>1</xmax>"))
    with pytest.raises(UserError, match=r"object 0: box 11 21 1 220 ends before it begins"):
        ENTITIES.read(tmp_path, "train")
    xml.write_text(whole.replace("<width>500</width>", ""))
    with pytest.raises(UserError, match=r"1022454332\.xml: size/width is None; should be a number of pixels"):
        ENTITIES.read(tmp_path, "train")
    xml.write_text(whole[:-20])
    with pytest.raises(UserError, match=r"1022454332\.xml: cannot be read \(unclosed token"):
        ENTITIES.read(tmp_path, "train")
    xml.write_text(whole)
    text.write_text(text.read_text().replace("three ducks]", "three ducks"))
    with pytest.raises(UserError, match=r"1022454332\.txt, line 1: a phrase is not of the form"):
        ENTITIES.read(tmp_path, "train")
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"1022454332\.txt, line 1: is not UTF-8 text"):
        ENTITIES.read(tmp_path, "train")
    text.unlink()
    with pytest.raises(UserError, match=r"Sentences/1022454332\.txt: not found"):
        ENTITIES.read(tmp_path, "train")
    (tmp_path / "train.txt").write_text("1022454332\n1022454332\n")
    files.entities(tmp_path, "val")
    with pytest.raises(UserError, match=r"train\.txt, line 2: duplicate image 1022454332"):
        ENTITIES.read(tmp_path, "train")


# e-SNLI-VE


@pytest.mark.parametrize("packed", [False, True])
def test_labels_of_a_csv_file(tmp_path, packed):
    files.esnli_ve(tmp_path)
    path = tmp_path / "esnlive_dev.csv"
    if packed:
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    examples = ESNLI.read(tmp_path, "dev")
    assert [e.target for e in examples] == [2, 1, 0, 2, 1, 0]
    assert (examples[0].id, examples[0].images) == ("371522748.jpg#0r1e", ("371522748",))
    assert examples[4].text == 'The boy, neutral, holds "it"'
    said = [2, 0, 0, 2, 2, 1]
    scores = ESNLI.scores(examples, said)
    assert scores["accuracy"].tolist() == [1, 0, 1, 1, 0, 0]
    assert {name: values.mean() for name, values in scores.items()} == {
        "accuracy": 0.5,
        "contradiction": 0.5,
        "entailment": 1,
        "neutral": 0,
    }
    assert ESNLI.submission(examples, said).splitlines()[1] == (
        '{"pairID": "371522748.jpg#1r1e", "prediction": "contradiction"}'
    )


def test_broken_csv_files_are_told(tmp_path):
    files.esnli_ve(tmp_path)
    path = tmp_path / "esnlive_dev.csv"
    whole = path.read_text()
    path.write_text(whole.replace(",neutral,little", ",maybe,little", 1))
    with pytest.raises(UserError, match=r"esnlive_dev\.csv, line 3: gold_label is 'maybe'; should be contradiction"):
        ESNLI.read(tmp_path, "dev")
    path.write_text(whole.replace("hypothesis", "sentence"))
    with pytest.raises(UserError, match=r"esnlive_dev\.csv, line 2: has no hypothesis; it has "):
        ESNLI.read(tmp_path, "dev")
    path.write_text(whole + "46,1.jpg#9r1e,1.jpg\n")
    with pytest.raises(UserError, match=r"line 8: number of columns differs from the header"):
        ESNLI.read(tmp_path, "dev")
    path.write_text(whole + '46,1.jpg#9r1e,1.jpg,"No end,neutral,x\n')
    with pytest.raises(UserError, match=r"esnlive_dev\.csv, after line 7: cannot be read \(unexpected end"):
        ESNLI.read(tmp_path, "dev")
    path.unlink()
    with pytest.raises(UserError, match=r"esnlive_dev\.csv: not found"):
        ESNLI.read(tmp_path, "dev")


# DAQUAR


def questions(count=60):
    answers = ("table", "chair, table", "table, chair", "2", "lamp")
    return [(f"what is {n} ?", answers[n % 5], f"image{n // 2}") for n in range(count)]


def test_questions_and_their_division_by_image(tmp_path):
    files.daquar(tmp_path, questions())
    files.daquar(tmp_path, [("what is it ?", "sofa", "image7")], test=True)
    train, val, test = (DAQUAR.read(tmp_path, split) for split in ("train", "val", "test"))
    assert sorted(e.id for e in train + val) == list(range(60))
    assert {e.images[0] for e in val} == {f"image{n}" for n in range(30) if zlib.crc32(b"image%d" % n) % 5 == 0}
    assert not {e.images for e in train} & {e.images for e in val} and val
    second = next(e for e in train + val if e.id == 1)
    assert (second.text, second.images, second.target) == ("what is 1 ?", ("image0",), {"chair, table": 1.0})
    assert DAQUAR.vocabulary(tmp_path).answers == ["chair, table", "2", "lamp", "table"]
    assert [(e.target, e.images) for e in test] == [({"sofa": 1.0}, ("image7",))]
    assert DAQUAR.submission(test, ["chair, table"]) == "chair, table\n"


def test_broken_triples_are_told(tmp_path):
    files.daquar(tmp_path, questions(4))
    path = tmp_path / "qa.894.raw.train.format_triple"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match=r"format_triple: has 11 lines, not three per question"):
        DAQUAR.read(tmp_path, "train")
    path.write_text("\n".join([*lines[:4], *lines[5:], "image1"]))
    with pytest.raises(UserError, match=r"format_triple, line 6: is 'what is 2 \?'; should be the image"):
        DAQUAR.read(tmp_path, "train")


def obvious_similarity(one: str, other: str) -> float:
    """Wu and Palmer's of two senses of files.NOUNS as NLTK has it, from all paths upwards, written out.

    The way from a sense to the common ancestor is the shortest over any sense above both.
    """

    def paths(name):
        return [[name, *path] for kind in files.NOUNS[name] for path in paths(kind)] or [[name]]

    def shortest(name, other):
        ways = [(p, q) for p in paths(name) for q in paths(other)]
        return min(p.index(top) + q.index(top) for p, q in ways for top in p if top in q)

    shared = {n for path in paths(one) for n in path} & {n for path in paths(other) for n in path}
    depth = {name: min(map(len, paths(name))) for name in shared}
    best = [name for name in shared if depth[name] == max(depth.values())]
    ancestor = one if one in best else min(best, key=lambda name: name if " " in name else f"{name} 1")
    top = max(map(len, paths(ancestor)))
    return 2 * top / (2 * top + shortest(one, ancestor) + shortest(other, ancestor))


def test_similarity_is_wu_and_palmers(tmp_path):
    files.wordnet(tmp_path)
    nouns = read_nouns(tmp_path)
    senses = {name: nouns.senses(name.split()[0])[int(name.endswith("2"))] for name in files.NOUNS}
    for one, other in itertools.product(files.NOUNS, repeat=2):
        found = nouns.similarity(senses[one], senses[other])
        assert found == pytest.approx(obvious_similarity(one, other)), (one, other)
    assert nouns.name(senses["lamp 2"]) == "lamp.n.02"
    assert nouns.senses("Chairs") == nouns.senses("chair") and nouns.senses("women") == nouns.senses("woman") != []
    assert nouns.senses("sofa") == []


def obvious_wups(pairs, threshold: float) -> float:
    """As published: the mean over questions of min(product over A of max over T, product over T of max over A)."""

    def measure(a, b):
        senses = [[n for n in files.NOUNS if n.split()[0] == word] for word in (a, b)]
        best = max((obvious_similarity(x, y) for x in senses[0] for y in senses[1]), default=0)
        return 1 if a == b else best if best >= threshold else 0.1 * best

    total = 0.0
    for said, right in pairs:
        a, t = said.split(", "), right.split(", ")
        left = np.prod([max(measure(x, y) for y in t) for x in a])
        total += min(left, np.prod([max(measure(y, x) for x in a) for y in t]))
    return total / len(pairs)


def test_wups_is_the_published_measure(tmp_path):
    files.wordnet(tmp_path)
    nouns = read_nouns(tmp_path)
    words = ["chair", "armchair", "table", "desk", "lamp", "bulb", "sofa", "seat", "2"]
    rng = np.random.default_rng(1)
    draw = lambda: ", ".join(rng.choice(words, rng.integers(1, 4)))  # noqa: E731
    pairs = [(draw(), draw()) for _ in range(200)] + [("chair", "chair"), ("chair, desk", "desk, chair")]
    said, right = zip(*pairs, strict=True)
    found = {threshold: wups(said, right, nouns, threshold) for threshold in (0.9, 0.75, 0.0)}
    for threshold, value in found.items():
        assert value == pytest.approx(obvious_wups(pairs, threshold)), threshold
    assert found[0.9] < found[0.75] < found[0.0] < 1
    accuracies = [set_accuracy(*pair) for pair in pairs]
    exact = lambda one, other: float(one == other)  # noqa: E731
    assert accuracies == [fuzzy_score(words_of(a), words_of(t), exact) for a, t in pairs] and 0 < sum(accuracies) < 202


def test_wups_is_reported_where_wordnet_is(tmp_path, monkeypatch):
    files.daquar(tmp_path, questions())
    files.wordnet(tmp_path / "wordnet")
    examples = DAQUAR.read(tmp_path, "val")
    said = ["table" for _ in examples]
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "wordnet"))
    further = DAQUAR.further_scores(tmp_path, "val", examples, said)
    right = [example.facts["answer"] for example in examples]
    pairs = list(zip(said, right, strict=True))
    scores = further.scores({})
    assert further.absent == "" and list(scores) == ["WUPS@0.9", "WUPS@0.0"]
    for name, value in scores.items():
        assert value == pytest.approx(
            obvious_wups(pairs, float(name[5:]))
        ) and f"{name} {value:.2%}" in further.describe(scores)
    accuracy = DAQUAR.scores(examples, said)["accuracy"]
    assert accuracy.tolist() == [float(set(a.split(", ")) == {"table"}) for a in right]
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    further = DAQUAR.further_scores(tmp_path, "val", examples, said)
    assert further.scores({}) == {} and "install Debian's package wordnet-base" in further.absent
    (tmp_path / "wordnet" / "data.noun").write_text("")
    read_nouns.cache_clear()
    nouns = read_nouns(tmp_path / "wordnet")
    with pytest.raises(UserError, match=r"data\.noun: no sense at byte"):
        nouns.similarity(*nouns.senses("lamp"))
    read_nouns.cache_clear()


def test_real_wordnet():
    """Values that NLTK 3.10 gives for the same files (WordNet 3.0)."""
    nouns = find_nouns()
    if nouns is None:
        pytest.skip("WordNet's files are not there (Debian: apt install wordnet-base)")
    measure = word_measure(nouns, 0.0)
    for pair, value in REAL.items():
        assert measure(*pair) == pytest.approx(value), pair


REAL = {
    ("dog", "cat"): 0.857142857,
    ("chair", "table"): 0.842105263,
    ("2", "3"): 0.875,
    ("curtains", "blinds"): 0.941176471,
    ("carton", "box"): 0.941176471,
    ("chef", "tape_dispenser"): 0.0,
}


# All three


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Official files of the three tasks, and regions of their images at random."""
    folder = tmp_path_factory.mktemp("extra") / "data"
    images = [f"{n}" for n in range(12)]
    for part, split, csv in ((images[:6], "train", "train"), (images[6:9], "val", "dev"), (images[9:], "test", "test")):
        files.entities(folder / "flickr30k_entities", split, part)
        files.esnli_ve(folder / "esnli_ve", csv, part)
    files.daquar(folder / "daquar", questions())
    files.daquar(folder / "daquar", [("what is it ?", "sofa, table", f"image{n}") for n in range(30, 34)], test=True)
    for name, ids in (("flickr", images), ("daquar", [f"image{n}" for n in range(34)])):
        samples = make_samples(len(ids), classes=0)
        for sample, id in zip(samples, ids, strict=True):
            sample.info |= {"id": id, "width": 500, "height": 375}
        write_shard(folder / "regions" / name / "part-00000.tar", samples)
        paths = [folder / "regions" / name / "part-00000.tar"]
        finish_dataset(folder / "regions" / name, paths, detector="random", num_classes=0, extra={})
    return folder


@pytest.mark.parametrize("task", [ENTITIES, ESNLI, DAQUAR], ids=lambda task: task.name)
def test_each_is_trained_and_evaluated_on_its_test(data, tmp_path, run_command, monkeypatch, task):
    files.wordnet(tmp_path / "wordnet")
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "wordnet"))
    flags = ("--data", data, "--workers", 0)
    run = tmp_path / "run"
    status, out, err = run_command(
        "finetune.st", "--task", task.name, "--init", "scratch", "--epochs", 1, "--out", run, *flags
    )
    assert (status, err) == (0, "") and f"{task.title}, scratch: accuracy" in out
    scores, submission = tmp_path / "scores.json", tmp_path / "submission"
    flags += ("--run", run, "--task", task.name, "--split", "test", "--submission", submission, "--scores", scores)
    status, out, err = run_command("finetune.evaluate", *flags)
    assert (status, err) == (0, "") and f"{task.title}, test: accuracy" in out
    found = json.loads(scores.read_text())
    examples = task.read(data / task.name, "test")
    assert found["examples"] == len(examples) and submission.stat().st_size > 20
    if task is ENTITIES:
        assert found["accuracy"] == found["R@1"] <= found["R@5"] <= found["R@10"] == found["upper bound"]
        assert set(found["by"]["phrase type"]) == {"people", "animals", "scene", "other"}
    if task is DAQUAR:
        said = submission.read_text().splitlines()
        assert found["accuracy"] == 0 and found["WUPS@0.0"] == pytest.approx(
            obvious_wups([(one, "sofa, table") for one in said], 0.0)
        )
        monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
        assert "WUPS: not computed, WordNet's files not found" in run_command("finetune.evaluate", *flags)[1]


def test_the_three_together_have_a_mean_of_their_own(data, tmp_path, run_command):
    flags = ("--data", data, "--init", "scratch", "--workers", 0, "--iterations", 2, "--out", tmp_path / "run")
    status, out, err = run_command("finetune.mt", "--tasks", "extra", *flags)
    assert (status, err) == (0, "") and all(TASKS[name].title in out for name in ("daquar", "esnli_ve"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["mt_score"] == pytest.approx(np.mean([of["score"] for of in result["tasks"].values()]))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["tokens"] == {"flickr30k_entities": 14, "esnli_ve": 16, "daquar": 19}


def test_doctor_counts_them_where_they_are_named(data, run_command):
    status, out, err = run_command("finetune.doctor", "--data", data, "--tasks", "extra")
    assert (status, err) == (0, "") and out.endswith("3 of 3 tasks are ready\n")
    assert run_command("finetune.doctor", "--data", data)[1].endswith("0 of 12 tasks are ready\n")


# Where they do not count


def score(group: str, value: float) -> TaskScore:
    values = np.full(10, value)
    metrics = {"score": value} | {f"R@{k}": value for k in (1, 5, 10)}
    return TaskScore(group, metrics, values, np.arange(10), values)


def test_the_mt_score_is_of_the_papers_tasks():
    scores = {name: score(task.group, 0.5) for name, task in paper_tasks().items()}
    alone = mean_score(scores), table_row({name: of.metrics for name, of in scores.items()})
    scores |= {name: score("extra", 1.0) for name in ("daquar", "esnli_ve")}
    assert (mean_score(scores), table_row({name: of.metrics for name, of in scores.items()})) == alone
    assert mean_score(scores, "extra")[0] == 1 and mean_score({"daquar": scores["daquar"]})[0] == 1
    assert table_row({"daquar": {"score": 1.0}})["MT Score"] is None


def test_published_weights_are_of_the_papers_tasks():
    class PublishedWeights:
        run_config, heads = {}, {"pointing": 1, "entailment": 3}

    source = ModelSource("AT->ST", PublishedWeights(), TINY, None)
    assert [task.name for task in source.tasks] == [
        "visual7w",
        "refcoco",
        "refcoco+",
        "refcocog",
        "guesswhat",
        "snli_ve",
    ]


def test_cleanings_average_and_total_are_of_the_papers_tasks():
    def count(name: str, removed: int) -> TaskCount:
        task = TASKS[name]
        return TaskCount(task, 100, 10, removed, {split: (1000, 1000 - removed) for split in task.learned})

    rows = [count("snli_ve", 10), count("refcoco", 20)]
    alone, more = (removal_report(of, []).splitlines() for of in (rows, [*rows, count("daquar", 90)]))
    assert [line for line in more if not line.startswith("DAQUAR")] == alone
    assert sum(line.startswith("DAQUAR") for line in more) == 2
    assert next(line for line in alone if line.startswith("average")).split()[-1] == "15.00%"


def test_test_images_of_entities_and_esnli_ve_leave_every_training(tmp_path, run_command):
    """They are Flickr30k's photos, under the same names as retrieval's and SNLI-VE's."""
    for split, images in (("train", ("1", "2", "3")), ("val", ("4",)), ("test", ("5", "2"))):
        files.entities(tmp_path / "flickr30k_entities", split, images)
    for split, images in (("train", ("1", "5", "6")), ("dev", ("7",)), ("test", ("3", "8"))):
        files.esnli_ve(tmp_path / "esnli_ve", split, images)
    files.daquar(tmp_path / "daquar", questions())
    files.daquar(tmp_path / "daquar", [("what is it ?", "sofa", "image7")], test=True)
    assert run_command("finetune.clean", "--data", tmp_path, "--processes", 1)[0] == 0
    removed = {
        path.stem: {json.loads(line)["image"] for line in path.read_text().splitlines()}
        for path in (tmp_path / "clean" / "removed").iterdir()
    }
    assert removed == {"flickr30k_entities": {"2", "3"}, "esnli_ve": {"5"}, "daquar": {"image7"}}


# Real files


@pytest.fixture(scope="module")
def photos(real_data):
    folder = real_data / "photos"
    if not folder.is_dir():
        pytest.skip(f"the annotations of photographs are not there ({folder})")
    return folder


@pytest.mark.parametrize(
    ("part", "split", "counts"), [("train", "train", (93227, 63607)), ("dev", "val", (15801, 10671))]
)
def test_real_entities(photos, tmp_path, part, split, counts):
    with tarfile.open(photos / f"entities-{part}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    if part != split:
        (tmp_path / f"{part}.txt").rename(tmp_path / f"{split}.txt")
    examples = ENTITIES.read(tmp_path, split)
    images = (tmp_path / f"{split}.txt").read_text().split()
    phrases = sum(1 for image in images for _ in read_phrases(tmp_path / "Sentences" / f"{image}.txt"))
    assert (phrases, sum(e.facts["boxes"] == 1 for e in examples)) == counts
    for e in examples:
        x1, y1, x2, y2 = e.target
        assert 0 <= x1 < x2 <= e.facts["width"] and 0 <= y1 < y2 <= e.facts["height"]
        assert iou_with_box([e.target], e.target)[0] == 1


def test_real_esnli_ve(photos, tmp_path):
    for split, count in (("train", 2543), ("dev", 352)):
        (tmp_path / f"esnlive_{split}.csv").symlink_to(photos / f"esnlive_{split}.csv")
        examples = ESNLI.read(tmp_path, split)
        assert len(examples) == count and Counter(len(e.images) for e in examples) == {1: count}


def test_real_daquar(photos, tmp_path):
    name = "qa.894.raw.train.format_triple"
    (tmp_path / name).symlink_to(photos / name)
    train, val = (DAQUAR.read(tmp_path, split) for split in ("train", "val"))
    images = [{e.images[0] for e in part} for part in (train, val)]
    assert len(train) + len(val) == 6795 and len(images[0]) + len(images[1]) == len(images[0] | images[1]) == 794
    assert 0.18 < len(images[1]) / 794 < 0.22
    vocabulary = DAQUAR.vocabulary(tmp_path)
    assert all(plain_answer(answer) == answer for answer in vocabulary.answers)
    assert DAQUAR.scores(val, [e.facts["answer"] for e in val])["accuracy"].mean() == 1


def test_real_flickr8k(photos, tmp_path):
    (tmp_path / "dataset_flickr8k.json").symlink_to(photos / "dataset_flickr8k.json")
    counts = {split: len(TASKS["flickr_retrieval"].read(tmp_path, split)) for split in ("train", "val")}
    assert counts == {"train": 30000, "val": 5000}
