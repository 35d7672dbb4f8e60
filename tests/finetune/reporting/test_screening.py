"""The screening of --suite interference: its runs, and the rows that are chosen by their scores."""

import pytest

from finetune.config import AblateConfig
from finetune.reporting.ablation_runs import AblationRun, calls_of
from finetune.reporting.ablation_suites import SUITES
from finetune.reporting.screening import SEED, chosen_rows, screening_config, screening_runs
from shards.common.errors import UserError
from shards.common.files import write_json

ROWS = SUITES["interference"]


@pytest.fixture
def config(tmp_path):
    return AblateConfig(suite="interference", out=str(tmp_path), lr_scales="4,8")


def finish(runs, score) -> None:
    for one in runs:
        one.out.mkdir(parents=True)
        found = {"regime": "dsg", "iterations": 1, "tasks": {}, "groups": {}, "mt_interval": [0, 1], "seconds": 1.0}
        write_json(one.out / "result.json", found | {"mt_score": score(one)})


def test_every_method_is_screened_at_every_learning_rate_on_a_seed_of_its_own(config):
    runs = screening_runs(config, ROWS)
    assert len(runs) == len(ROWS) * 2 and len({one.out for one in runs}) == len(runs)
    flags = [calls_of(one, screening_config(config), None)[0].flags for one in runs]
    assert {f["seed"] for f in flags} == {SEED} and {f["iterations"] for f in flags} == {150}
    pairs = {(f.get("balance", "steps"), f["lr_scale"]) for f in flags}
    assert pairs == {(name, scale) for name in ("steps", *list(ROWS)[1:]) for scale in (4.0, 8.0)}
    assert screening_config(AblateConfig(suite="interference", iterations=20)).iterations == 20


def test_the_four_best_methods_and_the_papers_way_are_in_the_table(config):
    runs, names = screening_runs(config, ROWS), list(ROWS)
    best = {"a step per task": 0.1, "sum": 0.2, "famo": 0.9, "nash": 0.8, "pcgrad": 0.7, "upgrad": 0.6}

    def score(one) -> float:
        name = one.name.partition(",")[0]
        better = one.row.flags["lr_scale"] == (8 if name in ("famo", "a step per task") else 4)
        return best.get(name, 0.3) + 0.01 * better

    finish(runs, score)
    rows, text = chosen_rows(config, ROWS, runs)
    kept = ["a step per task", "famo", "nash", "pcgrad", "upgrad"]
    assert list(rows) == kept + [f"{name}, without G4" for name in kept]
    assert rows["famo"].flags == {"balance": "famo", "lr_scale": 8}
    assert rows["a step per task"].flags == {"lr_scale": 8}
    nash = AblationRun("nash", rows["nash, without G4"], 0, runs[0].folder)
    flags = calls_of(nash, config, None)[0].flags
    assert (flags["balance"], flags["lr_scale"], flags["tasks"]) == ("nash", 4, "g1,g2,g3")
    assert all(f"{name}, learning rate x {scale}" in text for name in names for scale in (4, 8))
    assert "91.00%" in text and text.endswith("in the table: a step per task, famo, nash, pcgrad, upgrad")


@pytest.mark.parametrize("scales", ["4,x", "0,1", ""])
def test_a_factor_that_is_not_a_number_above_0_is_refused(config, scales):
    config.lr_scales = scales
    with pytest.raises(UserError, match="comma-separated numbers above 0"):
        screening_runs(config, ROWS)


def test_tasks_without_g4_are_chosen_among_the_tasks_of_the_suite(config):
    runs = screening_runs(config, ROWS)
    finish(runs, lambda one: 0.5)
    config.tasks = "vqa,refcoco,nlvr2"
    rows, _ = chosen_rows(config, ROWS, runs)
    of_row = {
        name: calls_of(AblationRun(name, row, 0, runs[0].folder), config, None)[0].flags for name, row in rows.items()
    }
    assert of_row["sum"]["tasks"] == "vqa,refcoco,nlvr2" and of_row["sum, without G4"]["tasks"] == "vqa,refcoco"
    for tasks in ("vqa,refcoco", "nlvr2"):  # all of them, or none
        config.tasks = tasks
        assert not any("without G4" in name for name in chosen_rows(config, ROWS, runs)[0])
