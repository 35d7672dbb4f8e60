"""Pretraining weights without fine-tuning: retrieval ranked by the alignment head, and attention maps."""

import json
import shutil

import numpy as np
import pytest
import torch
from launching import python, run_ranks

from finetune.config import EvaluateConfig
from finetune.data.regions import Regions
from finetune.inference.attention_maps import VIEWS, explain
from finetune.inference.model_loader import load
from finetune.inference.predictions import predict
from finetune.inference.predictor import Predictor
from finetune.pages.attention_page import page_of
from finetune.tasks import all_tasks
from pretrain.data.collate import Limits, stack
from pretrain.engine.checkpoint import MODEL, best_checkpoint, read_tensors, save_weights
from pretrain.models.image_input import image_stream_input
from pretrain.models.vilbert import AttentionMaps
from pretrain.pretrained.load_model import load_pretraining
from pretrain.tokenizer.tokenizer import load_tokenizer
from shards.common.dist_info import ALONE

TASKS = all_tasks()
NAME, SPLIT = "flickr_retrieval", "test"


def pair_inputs(run, model, text: str, sample, words: int, regions: int) -> tuple:
    """One caption and one image as pretraining has them, with nothing masked: the encoder's arguments."""
    limits = Limits(words, regions, model.encoder.config.v_feature_size)
    batch = stack([sample], load_tokenizer(run).encode([text], words), [0], [False], limits)
    features, locations = image_stream_input(batch.features, batch.boxes, batch.valid)
    mask = torch.ones(1, features.shape[1], dtype=torch.bool)
    return batch.input_ids, batch.input_ids >= 0, features, locations, mask


@pytest.fixture(scope="module")
def slow(world, pretrained):
    """(examples, images, alignment logits (captions, images, 2)) of a split, one pair at a time."""
    task, model = TASKS[NAME], load_pretraining(pretrained)
    examples, regions = task.read(world / NAME, SPLIT), Regions(world / "regions" / task.images)
    images = list(dict.fromkeys(example.images[0] for example in examples))
    logits = np.zeros((len(examples), len(images), 2))
    with torch.no_grad():
        for row, example in enumerate(examples):
            for column, image in enumerate(images):
                inputs = pair_inputs(pretrained, model, example.text, regions[image], task.max_tokens, task.max_regions)
                logits[row, column] = model.alignment(model.encoder.fuse(model.encoder(*inputs)))[0].numpy()
    return examples, images, logits


def test_scores_are_the_alignment_logits_pair_by_pair(world, pretrained, slow):
    _, _, logits = slow
    config = EvaluateConfig(run=str(pretrained), data=str(world), task=NAME, workers=0)
    task_pass, collator = load(config, TASKS[NAME], SPLIT)
    scores = predict(task_pass, collator, 7, 0, ALONE)
    expected = logits[..., 0] - logits[..., 1]  # class 0 is "aligned"
    assert task_pass.task_token is None and scores.shape == expected.shape and np.ptp(expected) > 0.01
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def recall(slow, k: int) -> tuple[float, float]:
    """(R@k, TR@k) by the probability of class 0, counted caption by caption and image by image."""
    examples, images, logits = slow
    probability = np.exp(logits[..., 0]) / np.exp(logits).sum(-1)
    own = [images.index(example.images[0]) for example in examples]
    found = [own[row] in np.argsort(-probability[row])[:k] for row in range(len(examples))]
    texts = [any(own[row] == image for row in np.argsort(-probability[:, image])[:k]) for image in range(len(images))]
    return float(np.mean(found)), float(np.mean(texts))


def evaluate(run_command, world, run, *flags):
    return run_command("finetune.evaluate", "--run", run, "--data", world, "--workers", 0, *flags)


def test_the_command_prints_and_stores_recall_as_zero_shot(world, pretrained, slow, tmp_path, run_command):
    run = tmp_path / "run"
    shutil.copytree(pretrained, run)
    status, out, err = evaluate(run_command, world, run, "--task", NAME, "--split", "tests")
    assert (status, err) == (0, "")
    kept = json.loads((run / "scores" / f"{NAME}-{SPLIT}.json").read_text())
    assert kept["zero_shot"] is True and kept["examples"] == len(slow[0])
    for k in (1, 5, 10):
        assert (kept[f"R@{k}"], kept[f"TR@{k}"]) == pytest.approx(recall(slow, k))
    low, high = kept["interval"]
    assert low <= kept["score"] == kept["R@1"] <= high
    assert f"Flickr30k retrieval, test (zero-shot): R@1 {kept['R@1']:.1%} ({low:.1%} to {high:.1%})" in out
    for split in ("val", "fold0"):
        flags = ("--task", "coco_retrieval", "--split", split, "--scores", tmp_path / "coco.json")
        status, out, err = evaluate(run_command, world, run, *flags)
        assert (status, err) == (0, "") and f"COCO retrieval, {split} (zero-shot): R@1 " in out


def test_a_fine_tuned_run_is_not_marked(world, trained, tmp_path, run_command):
    flags = ("--task", NAME, "--split", SPLIT, "--scores", tmp_path / "scores.json")
    status, out, err = evaluate(run_command, world, trained, *flags)
    assert (status, err) == (0, "") and "zero-shot" not in out
    assert "zero_shot" not in json.loads((tmp_path / "scores.json").read_text())


def test_ranks_divide_the_images_between_them(world, pretrained, slow, tmp_path):
    flags = ("--run", pretrained, "--data", world, "--task", NAME, "--split", SPLIT, "--workers", 0)
    done = run_ranks(2, *flags, "--scores", tmp_path / "scores.json", script=("-m", "finetune.evaluate"))
    assert [status for status, _, _ in done] == [0, 0], done
    assert "(zero-shot)" in done[0][1] and done[1][1] == ""
    kept = json.loads((tmp_path / "scores.json").read_text())
    assert (kept["R@5"], kept["TR@5"]) == pytest.approx(recall(slow, 5))


@pytest.fixture(scope="module")
def published(pretrained, tmp_path_factory):
    """The run's weights under the names of pretrained_model.bin, with the tokenizer beside them."""
    file = tmp_path_factory.mktemp("published") / "pretrained_model.bin"
    done = python("pretrain.convert", pretrained, "--to", "published", "--out", file)
    assert done.returncode == 0, done.stderr
    shutil.copy(pretrained / "tokenizer.json", file.parent)
    return file


def test_reference_weights_rank_as_the_run_does(world, published, slow, tmp_path, run_command):
    """Also with a table of task tokens, which pretraining never used, and converted to a run directory."""
    weights = torch.load(published)
    weights["bert.embeddings.task_embeddings.weight"] = torch.randn(20, 128)
    with_tokens, converted = tmp_path / "with_tokens", tmp_path / "run"
    shutil.copytree(published.parent, with_tokens)
    torch.save(weights, with_tokens / published.name)
    done = python("pretrain.convert", published, "--out", converted)
    assert done.returncode == 0, done.stderr
    for run in (published, with_tokens / published.name, converted):
        flags = ("--task", NAME, "--split", SPLIT, "--scores", tmp_path / "scores.json")
        status, out, err = evaluate(run_command, world, run, *flags)
        assert (status, err) == (0, "") and "(zero-shot)" in out
        kept = json.loads((tmp_path / "scores.json").read_text())
        assert (kept["R@5"], kept["TR@5"]) == pytest.approx(recall(slow, 5)) and kept["zero_shot"]


def test_other_tasks_need_a_head_of_their_own(world, pretrained, published, run_command):
    for run in (pretrained, published):
        status, _, err = evaluate(run_command, world, run, "--task", "vqa")
        assert status == 2 and err.count("\n") == 1
        assert "only support coco_retrieval, flickr_retrieval (zero-shot, by the alignment head)" in err
        assert "fine-tune it on vqa first" in err


def test_weights_without_an_alignment_head(world, pretrained, tmp_path, run_command):
    run = tmp_path / "run"
    shutil.copytree(pretrained, run, ignore=shutil.ignore_patterns("checkpoints"))
    weights = read_tensors(best_checkpoint(pretrained), MODEL)
    save_weights(run, {name: value for name, value in weights.items() if not name.startswith("alignment.")})
    status, _, err = evaluate(run_command, world, run, "--task", NAME)
    assert status == 2 and err.count("\n") == 1 and f"{run}: has no alignment head" in err


def test_fine_tuning_still_begins_with_a_new_retrieval_head(world, pretrained, tmp_path, run_command):
    flags = ("--task", NAME, "--data", world, "--init", pretrained, "--epochs", 1, "--workers", 0)
    status, out, err = run_command("finetune.st", *flags, "--out", tmp_path / "st")
    assert (status, err) == (0, "") and "initialised randomly" in out and "heads.retrieval" in out


@pytest.fixture(scope="module")
def predictor(pretrained):
    return Predictor(pretrained)


@pytest.mark.parametrize("name", [NAME, "vqa", "refcoco"])
def test_attention_is_the_pretrained_models(world, pretrained, name):
    """Of an example of any task's data, without a task token and, but for retrieval, without a prediction."""
    task, model = TASKS[name], load_pretraining(pretrained)
    predictor = Predictor(pretrained, data=world)
    example = task.read(world / name, task.splits[1])[0]
    query = predictor.query_by_id(name, example.text, *example.images)
    (found,) = explain(*predictor.batch(query), predictor.source.tokenizer)
    maps = AttentionMaps()
    with torch.no_grad():
        sample = Regions(world / "regions" / task.images)[example.images[0]]
        model.encoder(
            *pair_inputs(pretrained, model, example.text, sample, task.max_tokens, task.max_regions), maps=maps
        )
    assert found.words[0] == "[CLS]" and f"[{name}]" not in found.words
    for view, weights in found.maps.items():
        expected = torch.stack(getattr(maps, VIEWS[view]))[:, 0].numpy()
        np.testing.assert_allclose(weights, expected, atol=1e-5)
    page = page_of(predictor, query)
    assert '"prediction":[]' in page and '"expression":null' in page


def test_without_a_data_folder_images_are_those_of_the_runs_own_pairs(world, predictor, tmp_path, run_command):
    image = sorted((world / "images" / "pairs").glob("*.png"))[0]
    caption = image.with_suffix(".txt").read_text()
    query = predictor.query_by_id(NAME, caption, image.stem)
    assert query.samples[0].key == Regions(world / "regions" / "pairs")[image.stem].key
    for given in (image.stem, image):
        flags = ("--run", predictor.run, "--task", NAME, "--image", given, "--text", caption)
        status, out, err = run_command("finetune.attention", *flags, "--out", tmp_path / "a.html")
        assert status == 0 and "page: " in out, err


def test_reference_weights_give_the_same_maps(world, predictor, published):
    image = sorted((world / "images" / "pairs").glob("*.png"))[0]
    (own,), (given,) = (
        explain(*one.batch(one.query(NAME, "a red star", image)), one.source.tokenizer)
        for one in (predictor, Predictor(published, data=world, region_shards=world / "regions" / "pairs"))
    )
    for view in VIEWS:
        np.testing.assert_allclose(given.maps[view], own.maps[view], atol=1e-5)


def test_prediction_ranks_images_by_the_alignment_head(world, predictor, pretrained):
    images = sorted((world / "images" / "pairs").glob("*.png"))[:3]
    found, model = predictor(NAME, "a red star", *images), load_pretraining(pretrained)
    odds = []
    with torch.no_grad():
        for sample in predictor.query(NAME, "a red star", *images).samples:
            inputs = pair_inputs(
                pretrained, model, "a red star", sample, TASKS[NAME].max_tokens, TASKS[NAME].max_regions
            )
            aligned, misaligned = model.alignment(model.encoder.fuse(model.encoder(*inputs)))[0].tolist()
            odds.append(aligned - misaligned)
    assert found.numbers == np.argsort(odds)[::-1].tolist() and predictor.tasks == ["coco_retrieval", NAME]
