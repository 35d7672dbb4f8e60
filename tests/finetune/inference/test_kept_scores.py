"""An interrupted ranking continues where it was, on any number of ranks, and only with the same model and data."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_sets import make_dataset
from launching import run_ranks

from finetune.annotations.example import Example
from finetune.config import EvaluateConfig
from finetune.data.regions import Regions
from finetune.data.task_collate import TaskCollator
from finetune.inference import caption_image_scores, kept_scores
from finetune.inference.kept_scores import KeptScores
from finetune.inference.model_loader import load
from finetune.inference.predictions import predict
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import TaskPass
from finetune.prepared.packed_examples import PackedExamples
from finetune.tasks import find_task
from pretrain.data.collate import Limits
from pretrain.models.model_config import TINY
from pretrain.models.precision import Precision
from pretrain.tokenizer.tokenizer import learn_tokenizer
from shards.common.dist_info import ALONE, Ranks

BATCH = 7
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A random model, and 26 captions of 13 images."""
    folder = tmp_path_factory.mktemp("regions")
    make_dataset(folder, (13,))
    regions, task = Regions(folder), find_task("coco_retrieval")
    pairs = [(image, f"a {word} thing {n}") for n, image in enumerate(regions.numbers) for word in ("red", "blue")]
    examples = PackedExamples.of(Example(n, text, (image,)) for n, (image, text) in enumerate(pairs))
    tokenizer = learn_tokenizer([text for _, text in pairs], 200)
    torch.manual_seed(0)
    model = TaskModel(TINY.replace(vocab_size=len(tokenizer), v_feature_size=12, task_tokens=20), {}).eval()
    collator = TaskCollator(task, examples, regions, tokenizer, Limits(30, 36, 12))
    return TaskPass(model, task, Precision("float32", CPU), task.token), collator


@pytest.fixture(scope="module")
def expected(opened):
    return predict(*opened, BATCH, 0, ALONE)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "scores" / "a.json"


@pytest.fixture
def ranked_images(monkeypatch):
    """The images (by the number of their first caption) whose scores are computed."""
    found, plain = [], caption_image_scores._image_states

    def noted(task_pass, collator, captions):
        found.extend(captions.tolist())
        return plain(task_pass, collator, captions)

    monkeypatch.setattr(caption_image_scores, "_image_states", noted)
    return found


def rank(opened, place, after=None, batch_size=BATCH):
    """The scores of all pairs; interrupted after a share of them."""

    def progress(done, total):
        if after is not None and done > after * total:
            raise KeyboardInterrupt

    kept = KeptScores(place, *opened, batch_size, ALONE)
    return predict(*opened, batch_size, 0, ALONE, progress, kept=kept), kept


def test_only_the_current_block_is_lost(opened, expected, place, ranked_images):
    with pytest.raises(KeyboardInterrupt):
        rank(opened, place, after=0.4)
    first = list(ranked_images)
    with pytest.raises(KeyboardInterrupt):
        rank(opened, place, after=0.3)
    again = ranked_images[len(first) :]
    assert first[-1] == again[0] and not set(first[:-1]) & set(again), "the interrupted block alone is repeated"
    scores, kept = rank(opened, place)
    assert np.array_equal(scores, expected)
    assert len(ranked_images) == expected.shape[1] + 2 and len(set(ranked_images)) == expected.shape[1]
    assert list(place.parent.iterdir()) == [place.with_name(".a.json.rank-0.part")]
    kept.remove()
    assert not list(place.parent.iterdir())


def test_another_number_of_ranks_continues(opened, expected, place, ranked_images, monkeypatch):
    """Three ranks are interrupted, two continue; each is called in turn here."""
    monkeypatch.setattr(kept_scores, "on_first", lambda ranks, function: function())
    task_pass, collator = opened
    for count, after in ((3, 0.5), (2, None)):
        kept = [KeptScores(place, task_pass, collator, BATCH, Ranks(n, count, n)) for n in range(count)]
        parts = []
        for number, of in enumerate(kept):
            if number:
                of._found.clear()  # only the first rank has them
            calls = []

            def progress(done, total, calls=calls, after=after):
                calls.append(done)
                if after and done > after * total:
                    raise KeyboardInterrupt

            with torch.no_grad():
                try:
                    of_rank = caption_image_scores.retrieval_scores(task_pass, collator, BATCH, of.ranks, progress, of)
                    parts.append(of_rank)
                except KeyboardInterrupt:
                    of.close()
    assert np.array_equal(sum(parts), expected)
    assert expected.shape[1] < len(ranked_images) <= expected.shape[1] + 3
    assert len(list(place.parent.glob(".a.json.rank-*.part"))) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage", "empty"])
def test_damaged_records_are_computed_again(opened, expected, place, ranked_images, damage):
    with pytest.raises(KeyboardInterrupt):
        rank(opened, place, after=0.5)
    path, before = place.with_name(".a.json.rank-0.part"), len(ranked_images)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-3], "garbage": data + b"\0" * 500, "empty": b""}.get(damage, data))
    assert np.array_equal(rank(opened, place)[0], expected)
    lost = len(ranked_images) - expected.shape[1]
    assert lost == {"cut": 2, "garbage": 1, "empty": before}.get(damage, lost) and (damage != "flipped" or lost > 2)


@pytest.mark.parametrize("change", ["weights", "examples", "batch_size", "limits"])
def test_scores_of_another_ranking_are_not_used(opened, expected, place, change):
    with pytest.raises(KeyboardInterrupt):
        rank(opened, place, after=0.5)
    task_pass, collator = opened
    if change == "batch_size":
        assert not KeptScores(place, task_pass, collator, BATCH + 1, ALONE).done
    elif change == "examples":
        assert not KeptScores(place, task_pass, replace(collator, examples=collator.examples[5:]), BATCH, ALONE).done
    elif change == "limits":
        limits = replace(collator.limits, max_regions=2)
        assert not KeptScores(place, task_pass, replace(collator, limits=limits), BATCH, ALONE).done
    else:
        bias = task_pass.model.heads["retrieval"].bias.data
        bias += 1
        assert not KeptScores(place, *opened, BATCH, ALONE).done
        scores, _ = rank(opened, place)
        bias -= 1
        np.testing.assert_allclose(scores, expected + 1, atol=1e-5)
    assert KeptScores(place, *opened, BATCH, ALONE).done or change == "weights"


def test_a_folder_that_cannot_be_written_keeps_nothing(opened, expected, place):
    place.parent.write_text("a file")
    assert np.array_equal(rank(opened, place)[0], expected)


def test_the_command_continues(pretrained, world, tmp_path, run_command):
    """Zero-shot retrieval, interrupted on one rank and finished on two."""
    run, data, task = str(pretrained), str(world), "flickr_retrieval"
    config = EvaluateConfig(run=run, data=data, task=task, batch_size=BATCH, device="cpu")
    flags = ("--run", run, "--data", data, "--task", task, "--split", "test", "--batch_size", BATCH, "--device", "cpu")
    plain, place = tmp_path / "plain.json", tmp_path / "scores.json"
    assert run_command("finetune.evaluate", *map(str, (*flags, "--scores", plain)))[0] == 0
    opened = load(config, find_task(task), "test")
    with pytest.raises(KeyboardInterrupt):
        rank(opened, place, after=0.5)
    done = len(KeptScores(place, *opened, BATCH, ALONE).done)
    (status, out, err), _ = run_ranks(2, *flags, "--scores", place, script=("-m", "finetune.evaluate"))
    assert status == 0 and f"test: {done} blocks of images are kept from an earlier start" in out, err
    found = [json.loads(path.read_text()) for path in (plain, place)]
    assert found[0].pop("made") and found[1].pop("made") and found[0] == found[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.json", "scores.json"]
