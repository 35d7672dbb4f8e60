"""Retrieval in two stages: the scores of all pairs among the candidates, and the others below them by similarity."""

import json

import numpy as np
import pytest
from launching import run_ranks

from finetune.config import EvaluateConfig
from finetune.inference.model_loader import load
from finetune.inference.predictions import predict
from finetune.inference.rerank import most_similar
from finetune.tasks import find_task
from shards.common.dist_info import ALONE

NAME, SPLIT = "flickr_retrieval", "test"


def scores_of(run, world, rerank, batch_size=7):
    config = EvaluateConfig(run=str(run), data=str(world), task=NAME, workers=0)
    task_pass, collator = load(config, find_task(NAME), SPLIT)
    done = []
    scores = predict(task_pass, collator, batch_size, 0, ALONE, lambda *of: done.append(of), rerank)
    return scores, done


def test_the_most_similar_are_those_of_a_sort():
    similarities = np.random.default_rng(0).normal(size=(23, 17))
    chosen = most_similar(similarities, 3)
    expected = np.zeros_like(chosen)
    for caption in range(23):
        expected[caption, np.argsort(-similarities[caption])[:3]] = True
    for image in range(17):
        expected[np.argsort(-similarities[:, image])[:3], image] = True
    assert (chosen == expected).all() and most_similar(similarities, 99).all()


def test_candidates_have_the_scores_of_the_whole_model(contrastive, world):
    everything, _ = scores_of(contrastive, world, None)
    captions, images = everything.shape
    scores, done = scores_of(contrastive, world, 3)
    scored = scores > -1e5
    assert done[-1] == (scored.sum(), scored.sum()) and (scored.sum(1) >= 3).all() and (scored.sum(0) >= 3).all()
    assert not scored.all(), "the test is of a part of the pairs"
    np.testing.assert_allclose(scores[scored], everything[scored], atol=1e-5)
    all_scored, _ = scores_of(contrastive, world, max(captions, images), batch_size=64)
    np.testing.assert_allclose(all_scored, everything, atol=1e-5)
    other = np.where(scored, -np.inf, scores)
    assert ((other.max(1) < np.where(scored, scores, np.inf).min(1)) | scored.all(1)).all()
    assert len(np.unique(other[~scored])) > 10, "the other pairs keep their order"


def test_several_ranks_give_the_scores_of_one(contrastive, world, tmp_path):
    flags = ("--run", contrastive, "--data", world, "--task", NAME, "--split", "train", "--workers", 0, "--rerank", 10)
    found = []
    for count in (1, 2, 3):
        path = tmp_path / f"{count}.json"
        for status, _, err in run_ranks(count, *flags, "--scores", path, script=("-m", "finetune.evaluate")):
            assert status == 0, err
        found.append(json.loads(path.read_text()))
        del found[-1]["made"]
    assert found[0]["rerank"] == 10 and found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("trained", ("--task", NAME, "--rerank", 10), "has no contrastive head"),
        ("trained", ("--task", "vqa", "--rerank", 10), "--rerank 10: is of retrieval"),
        ("contrastive", ("--task", NAME, "--rerank", 3), "--rerank 3: should be 10 or more"),
    ],
)
def test_where_it_does_not_apply_is_one_sentence(request, run_command, world, kind, flags, message):
    run = request.getfixturevalue(kind)
    status, _, err = run_command("finetune.evaluate", "--run", str(run), "--data", str(world), *map(str, flags))
    assert status == 2 and message in err and "Traceback" not in err
