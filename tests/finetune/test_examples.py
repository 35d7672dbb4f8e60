"""The page of right and wrong predictions: what it says is what an evaluation says, and its filters filter."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.config import EvaluateConfig
from finetune.evaluation.scores import score_task
from finetune.inference.decoding import Prediction
from finetune.inference.judged_examples import JudgedExample, choose_examples, judge, kind_of
from finetune.inference.model_loader import load
from finetune.inference.predictions import predict
from finetune.tasks import paper_tasks
from shards.common.dist_info import ALONE
from shards.common.errors import UserError

TASKS = paper_tasks()


def loaded(trained, world, name):
    config = EvaluateConfig(run=str(trained), data=str(world), task=name, workers=0)
    task_pass, collator = load(config, TASKS[name], TASKS[name].splits[1])
    task_pass.model.eval()
    return task_pass, collator


@pytest.mark.parametrize("name", TASKS)
def test_every_example_is_judged_as_an_evaluation_judges_it(trained, world, name):
    task_pass, collator = loaded(trained, world, name)
    said = judge(task_pass, collator, 7)
    predictions = predict(task_pass, collator, 16, 0, ALONE)
    values = score_task(TASKS[name], collator.examples, predictions).values
    np.testing.assert_allclose([one.value for one in said], values)
    for one in said:
        confidence = one.prediction.confidence
        assert confidence == sorted(confidence, reverse=True) and len(confidence) <= 5
        assert kind_of(TASKS[name], one.example) is not None and TASKS[name].head.expected(one.example)
    if name == "visual7w":
        assert {kind_of(TASKS[name], one.example) for one in said} == {"which"}
    if name == "gqa":
        assert {kind_of(TASKS[name], one.example) for one in said} <= {
            "query",
            "verify",
            "logical",
            "choose",
            "compare",
        }


def test_scores_that_are_nan_are_refused(trained, world):
    """The most confident mistakes among them would be arbitrary."""
    task_pass, collator = loaded(trained, world, "vqa")
    with torch.no_grad():
        next(task_pass.model.heads["vqa"].parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="VQA v2: the model's scores are NaN"):
        judge(task_pass, collator, 7)


def test_the_surest_mistakes_come_first_and_the_right_ones_are_spread():
    def said(number, confidence, value):
        return JudgedExample(number, SimpleNamespace(), Prediction("vqa", ["a"], [confidence], [0]), value, "accuracy")

    given = [said(n, share, value) for n, (share, value) in enumerate([(0.2, 0), (0.9, 0), (0.9, 0.3), (0.5, 0)])]
    given += [said(10 + n, n / 10, 1.0) for n in range(5)]
    assert [one.number for one in choose_examples(given, 3)] == [1, 2, 3, 14, 12, 10]
    assert [one.number for one in choose_examples(given, 100)] == [1, 2, 3, 0, 14, 13, 12, 11, 10]
    assert choose_examples([], 3) == []


@pytest.fixture(scope="module")
def page(trained, world, tmp_path_factory):
    """A page of several tasks."""
    from launching import python

    out = tmp_path_factory.mktemp("examples") / "page.html"
    tasks = "vqa,refcoco,nlvr2,flickr_retrieval"
    done = python("finetune.examples", "--run", trained, "--data", world, "--task", tasks, "--count", 3, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


def test_mistakes_come_before_what_is_right(page):
    cards = data_of(page)["cards"]
    confidence = [card["choices"][0][1] for card in cards]
    wrong = [share for share, card in zip(confidence, cards, strict=True) if not card["right"]]
    assert wrong == sorted(wrong, reverse=True) and wrong
    assert [card["right"] for card in cards] == sorted(card["right"] for card in cards)
    assert all((card["value"] > 0.5) == card["right"] for card in cards)


def test_filters(page, look):
    opened, cards = look(page), data_of(page)["cards"]
    assert opened.locator("figure:visible").count() == len(cards)
    opened.select_option("#task", "VQA v2")
    kinds = {card["kind"] for card in cards if card["task"] == "VQA v2"}
    kind = sorted(kinds)[0]
    opened.select_option("#kind", kind)
    expected = [card for card in cards if card["task"] == "VQA v2" and card["kind"] == kind]
    assert opened.locator("figure:visible").count() == len(expected)
    opened.select_option("#kind", "")
    opened.select_option("#task", "")
    opened.select_option("#right", "true")
    assert opened.locator("figure:visible").count() == sum(card["right"] for card in cards)
    opened.select_option("#right", "")
    opened.fill("#search", cards[0]["text"].upper())
    assert opened.locator("figure:visible").count() == sum(card["text"] == cards[0]["text"] for card in cards)
    assert opened.problems == [] and opened.excess_on_a_phone() == 0


def test_boxes_lie_where_they_should(page, look):
    opened = look(page)
    card = next(card for card in data_of(page)["cards"] if card["task"] == "RefCOCO")
    figure = opened.locator("figure", has=opened.get_by_text(card["text"], exact=False)).first
    for name, box in (("meant", card["expectedBox"]), ("chosen", card["chosenBox"])):
        rect = figure.locator(f"rect.{name}").first
        x = float(rect.get_attribute("x")) / card["images"][0]["width"]
        assert x == pytest.approx(box[0], abs=1e-3)
    assert figure.locator("rect.region").count() == len(card["regions"])


def test_each_example_links_to_its_attention(page, look):
    cards = data_of(page)["cards"]
    assert all((page.parent / card["attention"]).exists() for card in cards)
    opened = look(page)
    card = next(card for card in cards if card["task"] == "NLVR2")
    opened.click(f"a[href='{card['attention']}'] >> nth=0")
    assert opened.inner_text("#text") == f"“{card['text']}”" and opened.locator("#which button").count() == 2
    assert opened.locator("#panel canvas").count() == 1
    assert opened.problems == []


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ("--task", "vqa", "--split", "test"),
            "--split test: vqa has no public answers in this split; choose another one",
        ),
        (("--task", "vqa", "--split", "dev"), "--split dev: vqa has trainval"),
        (("--task", "poetry"), "--task poetry: should be"),
    ],
)
def test_mistakes(trained, world, run_command, flags, complaint):
    status, _, err = run_command("finetune.examples", "--run", trained, "--data", world, *flags)
    assert status == 2 and complaint in err and "Traceback" not in err


def test_a_run_that_names_no_tasks(world, tmp_path, run_command):
    status, _, err = run_command("finetune.examples", "--run", tmp_path, "--data", world)
    assert status == 2 and "does not list its tasks; name them by --task" in err
