"""The MT score and the layout of the paper's tables, worked out again from the paper's own numbers."""

import json

import numpy as np
import pytest

from finetune.evaluation.paper_results import PAPER, WITHOUT_G4, paper_row, paper_samples
from finetune.evaluation.scores import COLUMNS, TaskScore, mean_score, render_rows, table_row
from finetune.tasks import all_tasks

TABLES = json.loads(PAPER.read_text())
ROWS = [(table, row) for table in ("table10_ablations", "table11_stop_and_go_gap") for row in TABLES[table]["rows"]]


def scores_of(row: dict) -> dict[str, TaskScore]:
    metrics = {}
    for column, place in COLUMNS.items():
        if isinstance(place, tuple) and column in row:
            metrics.setdefault(place[0], {})[place[1]] = row[column] / 100
    scores = {}
    for name, of_task in metrics.items():
        of_task.setdefault("score", of_task.get("R@1"))
        scores[name] = TaskScore(
            all_tasks()[name].group,
            of_task,
            np.full(10, of_task["score"]),
            np.arange(10),
            np.full(10, of_task["score"]),
        )
    return scores


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_means_and_mt_score_are_the_papers(table, name):
    row = paper_row(table, name)
    mine = table_row({name: score.metrics for name, score in scores_of(row).items()})
    assert set(mine) == set(row) == set(COLUMNS)
    for column, value in row.items():
        assert mine[column] == pytest.approx(value, abs=0.0101), column


@pytest.mark.parametrize("name", TABLES[WITHOUT_G4]["rows"])
def test_table_12_divides_ten_tasks_by_twelve_and_we_by_ten(name):
    row, printed = paper_row(WITHOUT_G4, name), TABLES[WITHOUT_G4]["rows"][name][-1]
    scores = scores_of(row)
    mean = mean_score(scores)[0] * 100
    assert len(scores) == 10
    assert mean * 10 / 12 == pytest.approx(printed, abs=0.01)
    assert mean == pytest.approx(row["MT Score"], abs=0.012)
    mine = table_row({name: score.metrics for name, score in scores.items()})
    assert mine["Mean G4"] is None and mine["NLVR2"] is None
    text = render_rows({"mine": mine})
    assert "NLVR2" not in text and "Mean G3" in text and f"{mine['MT Score']:.2f}" in text


def test_the_interval_of_a_mean_of_tasks_is_narrower_than_theirs():
    rng = np.random.default_rng(0)
    scores = {
        name: TaskScore("G1", {"score": 0.5}, np.empty(0), np.empty(0), rng.normal(0.5, 0.05, 2000))
        for name in "abcdefgh"
    }
    low, high = mean_score(scores)[1]
    assert high - low == pytest.approx((scores["a"].interval[1] - scores["a"].interval[0]) / np.sqrt(8), rel=0.15)


def test_what_the_paper_says_of_a_tasks_size():
    """Training always; the test where table 8 counts what one split here has, in the same unit."""
    tasks = all_tasks()
    assert paper_samples(tasks["vqa"]) == {"trainval": 655111, "test": 447793}
    assert paper_samples(tasks["gqa"]) == {"trainval": 1072062, "testdev": 12578}
    assert paper_samples(tasks["vgqa"]) == {"train": 1437931, "val": 5000}
    assert paper_samples(tasks["refcocog"]) == {"train": 80512, "test": 9602}
    assert paper_samples(tasks["refcoco"]) == {"train": 120624}  # two splits are its test
    assert paper_samples(tasks["flickr_retrieval"]) == {"train": 145000}  # counted in images there
