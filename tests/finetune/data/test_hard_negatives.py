"""Hard negatives, the random negatives of training, and evaluation that computes nothing twice."""

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from data_sets import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.annotations.example import Example
from finetune.config import RANKED_CAPTIONS
from finetune.data import hard_negatives
from finetune.data.hard_negatives import RetrievalNegatives, mean_features, nearest_images
from finetune.data.regions import Regions
from finetune.data.task_collate import TaskCollator
from finetune.data.task_data import CollatorSettings, TaskData
from finetune.evaluation.scores import describe_scores, selection_score
from finetune.heads.retrieval_head import OPTIONS, RetrievalHead
from finetune.inference.caption_image_scores import retrieval_scores
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import TaskPass
from finetune.prepared.packed_examples import PackedExamples
from finetune.tasks import find_task
from finetune.training.task_validation import four_way_right, validation_of
from pretrain.data.collate import Limits
from pretrain.models import packing
from pretrain.models.contrastive import TEMPERATURE
from pretrain.models.model_config import TINY
from pretrain.models.precision import Precision
from pretrain.tokenizer.tokenizer import learn_tokenizer
from shards.common.dist_info import ALONE, Ranks
from shards.common.errors import UserError


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 40), st.integers(1, 50), st.integers(0, 10_000), st.sampled_from([1, 90, 1 << 25]))
def test_the_nearest_are_those_of_a_plain_search(count, wanted, seed, block):
    """In blocks of one row, of a few rows, and of all."""
    with mock.patch.object(hard_negatives, "BLOCK", block):
        compare_with_a_plain_search(count, wanted, seed)


def compare_with_a_plain_search(count, wanted, seed):
    means = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    found = nearest_images(means, wanted)
    assert found.shape == (count, min(wanted, count - 1))
    for row in range(count):
        distances = ((means.astype(float) - means[row].astype(float)) ** 2).sum(1)
        order = [other for other in np.argsort(distances, kind="stable") if other != row]
        np.testing.assert_allclose(distances[found[row]], distances[order[: found.shape[1]]], atol=1e-5)
        assert row not in found[row] and len(set(found[row].tolist())) == found.shape[1]


@pytest.fixture
def regions(tmp_path):
    make_dataset(tmp_path / "regions", (13,))
    return Regions(tmp_path / "regions")


@pytest.fixture
def examples(regions):
    """Two captions of most images, three of one."""
    images = list(regions.numbers)
    texts = [(image, f"a {word} thing number {n}") for n, image in enumerate(images) for word in ("red", "blue")]
    pairs = enumerate([*texts, (images[3], "one more")])
    return PackedExamples.of(Example(n, text, (image,)) for n, (image, text) in pairs)


def negatives_of(examples, regions, seed: int) -> RetrievalNegatives:
    return RetrievalNegatives(examples, regions, seed, regions.dataset.folder.parent)


def test_options_are_of_other_images_and_follow_from_seed_and_epoch(regions, examples):
    negatives = negatives_of(examples, regions, 1)
    seen = set()
    for epoch in range(40):
        for number, example in enumerate(examples):
            caption, image, hard = negatives.draw(epoch, number)
            assert image != example.images[0]
            assert examples[caption].images != example.images and examples[hard].images != example.images
            seen.add((number, caption, image))
    assert negatives.draw(3, 5) == negatives_of(examples, regions, 1).draw(3, 5)
    assert [negatives.draw(e, 5) for e in range(9)] != [negatives_of(examples, regions, 2).draw(e, 5) for e in range(9)]
    assert len(seen) > 900  # of 27 examples in 40 epochs: hardly two draws are the same
    assert {image for number, _, image in seen if number == 0} == set(regions.numbers) - set(examples[0].images)


def test_hard_captions_are_of_the_nearest_images(regions, examples, monkeypatch):
    monkeypatch.setattr("finetune.data.hard_negatives.NEAREST", 2)
    monkeypatch.setattr("finetune.data.hard_negatives.nearest_images.__defaults__", (2,))
    negatives = negatives_of(examples, regions, 0)
    means = np.stack([regions[image].features.astype(float).mean(0) for image in negatives.images])
    for number in range(len(examples)):
        own = negatives.images.index(examples[number].images[0])
        near = np.argsort(((means - means[own]) ** 2).sum(1))[1:3]
        drawn = {examples[negatives.draw(epoch, number)[2]].images[0] for epoch in range(30)}
        assert drawn == {negatives.images[place] for place in near}


def test_nearest_images_are_searched_once_per_regions_and_images(tmp_path, regions, examples, monkeypatch):
    first, calls = negatives_of(examples, regions, 0), []
    search = hard_negatives.nearest_images
    monkeypatch.setattr(hard_negatives, "nearest_images", lambda means: calls.append(len(means)) or search(means))
    assert np.array_equal(negatives_of(examples, regions, 1).nearest, first.nearest) and not calls
    fewer = negatives_of(examples[:10], regions, 0)
    assert calls == [5] and fewer.nearest.shape == (5, 4) and fewer.nearest.max() < 5
    make_dataset(tmp_path / "again" / "regions", (13,), features=11)
    shutil.move(tmp_path / "prepared", tmp_path / "again")
    other = Regions(tmp_path / "again" / "regions")
    assert other.numbers == regions.numbers
    means = np.stack([other[image].features.astype(np.float32).mean(0) for image in first.images])
    assert np.array_equal(negatives_of(examples, other, 0).nearest, search(means)) and calls == [5, 13]


def test_mean_features_are_in_the_order_of_the_images_whatever_the_order_of_reading(regions, monkeypatch, capsys):
    images = list(reversed(regions.numbers))
    read = []
    monkeypatch.setattr(Regions, "__getitem__", lambda of, image: read.append(image) or of.reader[of.numbers[image]])
    means = mean_features(regions, images)
    assert read == list(regions.numbers) and "images" not in capsys.readouterr().err
    expected = np.stack([regions[image].features.astype(float).mean(0) for image in images])
    np.testing.assert_allclose(means, expected - expected.mean(0), atol=1e-6)
    monkeypatch.setattr(hard_negatives, "WORTH_A_BAR", 2)
    assert np.array_equal(mean_features(regions, images), means)
    nearest_images(means)
    shown = capsys.readouterr().err
    assert "mean features: 100%" in shown and "nearest images: 100%" in shown and "13/13" in shown


def test_one_image_has_nothing_to_be_told_from(regions, examples):
    with pytest.raises(UserError, match="retrieval needs examples of at least two images"):
        negatives_of(examples[:2], regions, 0)


def make_task_pass(examples, regions, precision="float32", contrastive_size=0, **options):
    torch.manual_seed(0)
    tokenizer = learn_tokenizer([example.text for example in examples], 200)
    sizes = TINY.replace(
        vocab_size=len(tokenizer), v_feature_size=12, task_tokens=20, contrastive_size=contrastive_size
    )
    task = find_task("coco_retrieval")
    model = TaskModel(sizes, {}).eval()
    collator = TaskCollator(task, examples, regions, tokenizer, Limits(30, 36, 12), **options)
    return TaskPass(model, task, Precision(precision, torch.device("cpu")), task.token), collator


@pytest.mark.parametrize(("contrastive_size", "on_rows"), [(0, False), (16, False), (0, True)])
@torch.no_grad()
def test_scores_of_all_pairs_are_those_of_each_pair_by_itself(
    regions, examples, contrastive_size, on_rows, monkeypatch
):
    """Captions of different lengths, images with 1 to 6 regions; passes of 4 captions with an image, which divide
    nothing, and of all captions with one, two and all images; attention on padded and (as on a GPU) on packed rows."""
    task_pass, collator = make_task_pass(examples, regions, contrastive_size=contrastive_size)
    images = list(dict.fromkeys(example.images[0] for example in examples))
    expected = np.empty((len(examples), len(images)))
    for place, image in enumerate(images):
        pairs = [Example(e.id, e.text, (image,)) for e in examples]
        alone = make_task_pass(examples, regions)[1]
        one = TaskCollator(collator.task, pairs, regions, alone.tokenizer, alone.limits)
        expected[:, place] = task_pass.logits(one(0, np.arange(len(pairs)))).double().numpy()
    assert np.unique(expected.round(5)).size > 100
    monkeypatch.setattr(packing, "runs_on", lambda device: on_rows)
    for batch_size in (4, 27, 60, 1000):
        done = []
        progress = lambda *of, done=done: done.append(of)  # noqa: E731
        scores = retrieval_scores(task_pass, collator, batch_size, ALONE, progress)
        np.testing.assert_allclose(scores, expected, atol=1e-5 if contrastive_size else 2e-6)
        assert len(done) == {4: 13 * 7, 27: 13, 60: 7, 1000: 1}[batch_size]
        assert done[-1] == (27 * 13, 27 * 13) and all(one < other for (one, _), (other, _) in pairwise(done))


def test_a_model_with_a_contrastive_head_adds_the_similarity_to_the_score(regions, examples):
    task_pass, collator = make_task_pass(examples, regions, contrastive_size=16)
    batch = collator(0, np.arange(5))
    x, encoder = task_pass.inputs(batch), task_pass.model.encoder
    found = task_pass.logits(batch)
    for row in range(5):
        tokens, rows = int(x.text_mask[row].sum()), int(x.image_mask[row].sum())
        encoded = encoder(
            x.input_ids[row, None, :tokens],
            x.text_mask[row, None, :tokens],
            x.features[row, None, :rows],
            x.locations[row, None, :rows],
            x.image_mask[row, None, :rows],
            task_ids=x.task_ids[row, None],
        )
        head = task_pass.model.heads["retrieval"](encoder.fuse(encoded))[0, 0]
        text = encoder.contrast.text(encoded.stream_states.text[0].mean(0))
        image = encoder.contrast.image(
            torch.cat([encoded.stream_states.image[0].mean(0), encoded.stream_states.image[0].amax(0)])
        )
        cosine = torch.nn.functional.cosine_similarity(text, image, dim=0)
        torch.testing.assert_close(found[row], head + cosine / TEMPERATURE, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert encoder.contrast.text.weight.grad.abs().sum() > 0 and encoder.contrast.image.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_the_model_is_told_the_task_by_its_token(regions, examples):
    task_pass, collator = make_task_pass(examples, regions)
    batch, scores = collator(0, np.arange(3)), []
    for token in (task_pass.task_token, task_pass.task_token + 1, None):
        told = TaskPass(task_pass.model, task_pass.task, task_pass.precision, token)
        ids = told.inputs(batch).task_ids
        assert ids is None if token is None else ids.tolist() == [token] * 3
        scores.append(told.logits(batch))
    assert not any(torch.allclose(scores[n], scores[n - 1], atol=1e-5) for n in range(3))


@pytest.mark.parametrize("batch_size", [8, 60])
@torch.no_grad()
def test_ranks_divide_the_images(regions, examples, batch_size):
    task_pass, collator = make_task_pass(examples, regions)
    whole = retrieval_scores(task_pass, collator, batch_size, ALONE)
    for count in (2, 3, 20):
        ranks = [Ranks(n, count, n) for n in range(count)]
        parts = [retrieval_scores(task_pass, collator, batch_size, of) for of in ranks]
        np.testing.assert_array_equal(sum(parts), whole)
        assert sum(part.any() for part in parts) == min(count, 13 if batch_size == 8 else 7)


def test_a_training_example_is_four_rows_with_the_pair_first(regions, examples):
    task_pass, collator = make_task_pass(examples, regions, negatives=negatives_of(examples, regions, 0))
    batch = collator(2, np.array([4, 9]))
    assert len(batch) == 2 and len(batch.pairs) == 2 * OPTIONS and batch.target.shape == (2, 2)
    one = TaskCollator(collator.task, examples, regions, collator.tokenizer, collator.limits)(0, np.array([4, 9]))
    ids, features = batch.pairs.input_ids, batch.pairs.features
    for number, row in enumerate((0, OPTIONS)):
        own = one.pairs.input_ids[number]
        assert torch.equal(ids[row, : len(own)], own) and torch.equal(ids[row + 2], ids[row])
        same = [bool((features[row + n] == features[row]).all()) for n in range(OPTIONS)]
        assert same == [True, True, False, True]
        assert not torch.equal(ids[row + 1], ids[row]) and not torch.equal(ids[row + 3], ids[row])
    loss, numbers = task_pass(batch, [2])
    assert loss.item() > 0 and numbers["examples"] == 2


def test_the_contrastive_loss_compares_the_captions_and_images_of_a_batch(regions, examples):
    """Against a loop over pairs, with a caption of the same image and one of the same words in the batch."""
    numbers = np.array([4, 5, 9, 20])
    captions = list(examples)
    assert captions[4].images == captions[5].images
    captions[20] = replace(captions[20], text=captions[9].text.upper() + " ")
    packed = PackedExamples.of(captions)
    task_pass, collator = make_task_pass(
        packed, regions, contrastive_size=16, negatives=negatives_of(packed, regions, 0)
    )
    batch = collator(0, numbers)
    plain_loss, plain = TaskPass(task_pass.model, task_pass.task, task_pass.precision, task_pass.task_token)(batch, [4])
    assert "contrastive" not in plain
    encoded = task_pass.model.encode(task_pass.inputs(batch))
    texts, images = (embeddings[::OPTIONS] for embeddings in task_pass.model.encoder.embed(encoded.stream_states))
    scores = (texts @ images.T / TEMPERATURE).tolist()
    negatives = {0: [2, 3], 1: [2, 3], 2: [0, 1], 3: [0, 1]}
    expected = 0.0
    for own, others in negatives.items():
        for score in (lambda a, b: scores[a][b], lambda a, b: scores[b][a]):
            total = sum(math.exp(score(own, other)) for other in (own, *others))
            expected -= math.log(math.exp(score(own, own)) / total) / 2
    with_loss = TaskPass(task_pass.model, task_pass.task, task_pass.precision, task_pass.task_token, contrastive=0.5)
    loss, sums = with_loss(batch, [4])
    assert sums["contrastive"].item() == pytest.approx(expected, rel=1e-5) and sums["loss"] == plain["loss"]
    assert (loss - plain_loss).item() == pytest.approx(0.5 * expected / 4, rel=1e-4)


def test_the_contrastive_loss_of_one_example_is_nothing_and_needs_its_head(regions, examples):
    task_pass, collator = make_task_pass(
        examples, regions, contrastive_size=16, negatives=negatives_of(examples, regions, 0)
    )
    task_pass.contrastive = 1.0
    assert task_pass(collator(0, np.array([3])), [1])[1]["contrastive"].item() == 0
    task_pass, collator = make_task_pass(examples, regions, negatives=negatives_of(examples, regions, 0))
    task_pass.contrastive = 1.0
    assert "contrastive" not in task_pass(collator(0, np.array([3, 9])), [2])[1]


@pytest.mark.parametrize("ranks", [1, 3])
@torch.no_grad()
def test_four_way_accuracy_is_that_of_every_caption_scored_by_itself(regions, examples, ranks, monkeypatch):
    """27 captions in batches of 4, a slow version in the test, and the same negatives in every validation."""
    for module in ("finetune.inference.predictions", "pretrain.engine.distributed"):
        monkeypatch.setattr(f"{module}.all_reduce_sum", lambda values, ranks: values)
    task_pass, collator = make_task_pass(examples, regions, negatives=negatives_of(examples, regions, 5))
    plain = TaskCollator(collator.task, examples, regions, collator.tokenizer, collator.limits)

    def score(caption: str, image: str) -> float:
        return task_pass.logits(replace(plain, examples=[Example(0, caption, (image,))])(0, np.array([0]))).item()

    expected = []
    for number, example in enumerate(examples):
        own = example.images[0]
        other, image, hard = collator.negatives.draw(0, number)
        wrong = [score(examples[other].text, own), score(example.text, image), score(examples[hard].text, own)]
        expected.append(score(example.text, own) > max(wrong))
    task_pass.model.train()
    for _ in range(2):
        found = [four_way_right(task_pass, collator, 4, 0, Ranks(n, ranks, n)) for n in range(ranks)]
        assert sum(found).tolist() == expected
    assert 0 < sum(expected) < len(expected) and task_pass.model.training


def test_retrieval_is_watched_by_four_way_accuracy_on_all_captions_and_reported_by_rank(regions, examples):
    task_pass, collator = make_task_pass(examples, regions)
    data = TaskData(task_pass.task, regions.dataset.folder.parent, Path(), regions, None, "stop")
    settings = CollatorSettings(collator.tokenizer, None, positions=256, max_regions=10)
    validation = validation_of(data, examples, settings, validate_on=None, seed=5)
    counted = len(examples)
    score = validation.score(task_pass, 4, 0, ALONE)
    right = four_way_right(task_pass, validation.four_way, 4, 0, ALONE)
    assert selection_score(score.metrics) == score.metrics["four_way_accuracy"] == right.mean() != score.metrics["R@1"]
    assert score.metrics["score"] == score.metrics["R@1"] and score.metrics["images"] == 13
    said = describe_scores(score.summary)
    assert "(among 13 images; in the paper 1,000)" in said and "; 4-way accuracy" in said
    assert "in the paper" not in describe_scores(score.summary | {"images": 1000})
    many = PackedExamples.of(list(examples) * 10)
    assert len(validation_of(data, many, settings, validate_on=None, seed=5)) == 10 * counted
    few = validation_of(data, many, settings, validate_on=None, seed=5)
    assert len(few.examples.examples) == RANKED_CAPTIONS and len(few.four_way.examples) == 10 * counted
    pointing = TaskData(find_task("refcoco"), Path(), Path(), regions, None, "stop")
    assert validation_of(pointing, examples, settings, validate_on=None, seed=0).four_way is None


def test_equal_scores_count_against_a_pair():
    scores = torch.tensor([1.0, 1.0, 0.0, 0.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert RetrievalHead().training_scores(scores, None).tolist() == [0, 1, 0]
