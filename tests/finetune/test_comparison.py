"""The comparison of two runs: its scores are those of an evaluation, and its page shows who is right."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from launching import python

from finetune.annotations.example import Example
from finetune.config import EvaluateConfig
from finetune.evaluation.bootstrap import bootstrap_interval, clusters_of
from finetune.evaluation.scores import score_task
from finetune.inference.decoding import Prediction
from finetune.inference.judged_examples import JudgedExample
from finetune.inference.judged_pairs import (
    OUTCOMES,
    JudgedPair,
    TwoRuns,
    check_same_examples,
    choose_pairs,
    compare,
    count_outcomes,
)
from finetune.inference.model_loader import load
from finetune.inference.predictions import predict
from finetune.tasks import find_task
from shards.common.dist_info import ALONE
from shards.common.errors import UserError


@pytest.fixture(scope="module")
def other(world, pretrained, made_once):
    """A run of some tasks, other than `trained`."""
    flags = ("--tasks", "vqa,refcoco,flickr_retrieval,nlvr2", "--iterations", 8, "--seed", 1)
    return made_once("other", "finetune.mt", "--data", world, "--init", pretrained, "--workers", 0, *flags)


def evaluated(run, world, task):
    config = EvaluateConfig(run=str(run), data=str(world), task=task.name, workers=0)
    task_pass, collator = load(config, task, task.splits[1])
    predictions = predict(task_pass, collator, 16, 0, ALONE)
    return collator.examples, score_task(task, collator.examples, predictions)


@pytest.mark.parametrize("name", ["vqa", "refcoco", "flickr_retrieval", "nlvr2"])
def test_scores_and_test_are_those_of_two_evaluations(trained, other, world, name):
    task = find_task(name)
    flags = [EvaluateConfig(run=str(run), data=str(world)) for run in (trained, other)]
    pairs, _, _ = TwoRuns(*flags).judge(task, task.splits[1], 1000, 7)
    (examples, first), (_, second) = (evaluated(run, world, task) for run in (trained, other))
    np.testing.assert_allclose([pair.first.value for pair in pairs], first.values)
    np.testing.assert_allclose([pair.second.value for pair in pairs], second.values)
    a, b = first.values > 0.5, second.values > 0.5
    expected = [(a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum(), (a & b).sum()]
    assert list(count_outcomes(pairs).values()) == expected
    test, clusters = compare(task, pairs), clusters_of(example.images for example in examples)
    assert test.difference == pytest.approx(first.metrics["score"] - second.metrics["score"])
    assert test.interval == bootstrap_interval(first.values - second.values, clusters, seed=task.token)
    if name != "vqa":
        assert test.p_value is not None and pairs[0].first.metric == (
            "R@1" if name == "flickr_retrieval" else "accuracy"
        )


def pair(number, first, second, a=0.5, b=0.5):
    """Of two runs with these scores and confidences."""
    both = ((first, a), (second, b))
    made = [
        JudgedExample(number, SimpleNamespace(), Prediction("vqa", ["x"], [share], [0]), value, "accuracy")
        for value, share in both
    ]
    return JudgedPair(*made)


def test_outcomes_of_soft_scores():
    scores = [(0.6, 0.3), (0.3, 1.0), (0.5, 0.0), (0.6, 1.0)]
    assert [pair(0, *both).outcome for both in scores] == list(OUTCOMES)


def test_the_most_confident_mistakes_of_each_outcome_are_chosen():
    pairs = [pair(n, 1, 0, a=1 - n / 10, b=n / 10) for n in range(5)]  # B is wrong, with confidence n / 10
    pairs += [pair(10 + n, 0, 0, a=n / 10, b=0.25) for n in range(5)]
    pairs += [pair(20 + n, 1, 1, a=n / 10, b=0) for n in range(5)]
    assert [one.first.number for one in choose_pairs(pairs, 2)] == [4, 3, 14, 13, 24, 20]
    assert [one.first.number for one in choose_pairs(pairs, 3)] == [4, 3, 2, 14, 13, 10, 24, 22, 20]


def test_other_examples_are_refused():
    examples = [Example(n, f"question {n}", ("image",), {"yes": 1.0}) for n in range(3)]
    check_same_examples(examples, list(examples), "a and b")
    changed = [*examples[:2], Example(2, "question 2", ("image",), {"no": 1.0})]
    with pytest.raises(UserError, match="a and b: example 3 is not the same in both; compare on one data folder"):
        check_same_examples(examples, changed, "a and b")
    with pytest.raises(UserError, match="a and b: 3 and 2 examples"):
        check_same_examples(examples, examples[:2], "a and b")


@pytest.fixture(scope="module")
def page(trained, other, world, tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "page.html"
    tasks = ("--task", "vqa,refcoco,flickr_retrieval")
    flags = ("--run", trained, "--compare", other, *tasks, "--count", 2, "--out", out)
    done = python("finetune.examples", *flags)
    assert done.returncode == 0, done.stderr
    assert "RefCOCO, val: accuracy A " in done.stdout and ", McNemar p " in done.stdout
    return out


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


def test_cards_have_the_outcome_of_their_predictions(page):
    data = data_of(page)
    for card in data["cards"]:
        first, second = (one["right"] for one in card["runs"])
        assert (
            card["outcome"]
            == {(1, 0): OUTCOMES[0], (0, 1): OUTCOMES[1], (0, 0): OUTCOMES[2], (1, 1): OUTCOMES[3]}[first, second]
        )
        assert all((page.parent / one["attention"]).exists() for one in card["runs"])
        assert {image["name"] for one in card["runs"] for image in one["images"]} <= set(data["pictures"])
    for task, counts in data["counts"].items():
        shown = [sum(card["task"] == task and card["outcome"] == name for card in data["cards"]) for name in OUTCOMES]
        assert shown == [min(2, counts[name]) for name in OUTCOMES]


def test_tabs_show_the_cards_of_an_outcome(page, look):
    opened, data = look(page), data_of(page)
    for number, name in enumerate(OUTCOMES):
        tab = opened.locator("#outcomes button").nth(number)
        total = sum(counts[name] for counts in data["counts"].values())
        assert tab.inner_text().startswith(f"{name}: {total} (")
        tab.click()
        assert opened.locator("figure:visible").count() == sum(card["outcome"] == name for card in data["cards"])
    opened.select_option("#task", "RefCOCO")
    name = next(name for name in OUTCOMES if data["counts"]["RefCOCO"][name])
    tab = opened.locator("#outcomes button").nth(OUTCOMES.index(name))
    assert tab.inner_text().startswith(f"{name}: {data['counts']['RefCOCO'][name]} (")
    tab.click()
    figure = opened.locator("figure:visible").first
    assert figure.locator("section").count() == 2 and figure.locator("rect.meant").count() == 1
    assert figure.locator("rect.chosen").count() == 2 and figure.locator("rect.chosen.other").count() == 1
    assert opened.problems == [] and opened.excess_on_a_phone() == 0


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--task", "snli_ve"), "was trained on vqa, flickr_retrieval, refcoco, nlvr2; fine-tune it on snli_ve first"),
        (("--task", "vqa", "--split", "test"), "--split test: vqa has no public answers in this split"),
    ],
)
def test_mistakes(trained, other, world, tmp_path, run_command, flags, complaint):
    flags = ("--run", trained, "--compare", other, "--out", tmp_path / "page.html", *flags)
    status, _, err = run_command("finetune.examples", *flags)
    assert status == 2 and complaint in err and "Traceback" not in err
    if "snli_ve" in flags:
        assert f"--compare {other}" in err, "the flag that names the run is that of run B"


def test_a_run_without_a_common_task(trained, world, pretrained, tmp_path, run_command):
    status, _, err = run_command("finetune.examples", "--run", trained, "--compare", tmp_path / "none")
    assert status == 2 and f"--compare {tmp_path / 'none'}: no such file or directory" in err
    status, _, err = run_command("finetune.examples", "--run", trained, "--compare", pretrained)
    assert status == 2 and f"--compare {pretrained}: does not list its tasks; name them by --task" in err
