"""finetune.interference, end to end on a small world, and its page."""

import json

import numpy as np
import pytest
from scipy import stats

from finetune.config import InterferenceConfig
from finetune.decontamination.manifest import read_cleaned
from finetune.gradients import fixed_batches
from finetune.pages.interference_page import matrix
from finetune.tasks import choose_tasks
from shards.common.files import write_json

SOME = "flickr_retrieval,refcoco,nlvr2"
SMALL = ("--tasks", SOME, "--batches", 2, "--batch_size", 4, "--look_ahead", 1)


@pytest.fixture(scope="module")
def measured(trained):
    """The folder of the results of a run."""
    from launching import python

    done = python("finetune.interference", "--run", trained, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "the gradients need 3 * " in done.stdout and "proposed sets of tasks" in done.stdout
    return trained / "interference"


def test_numbers_and_arrays_are_of_the_same_measurement(measured):
    summary = json.loads((measured / "interference.json").read_text())
    arrays = np.load(measured / "interference.npz")
    assert summary["tasks"] == SOME.split(",") and summary["groups"] == ["G2", "G3", "G4"]
    assert sorted(summary["clustered"]) == [0, 1, 2]
    assert sorted(name for members in summary["sets"] for name in members) == sorted(summary["tasks"])
    products = arrays["products/all"]
    assert products.shape == (2, 3, 3) and arrays["after"].shape == (1, 3, 3)
    norms = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
    similarity = (products / norms[:, :, None] / norms[:, None]).mean(0)
    table = summary["parts"]["all"]["similarity"]
    for i in range(3):
        for j in range(3):
            if i != j:
                assert table["mean"][i][j] == pytest.approx(similarity[i, j]) and table["margin"][i][j] > 0
        assert table["margin"][i][i] is None  # a single pair of batches
    parts = [summary["parts"][part]["norm"]["mean"] for part in ("text", "image", "co-attention")]
    assert set(summary["parts"]) == {"all", "text", "image", "co-attention"} and np.all(np.array(parts) > 0)
    assert summary["affinity"]["mean"][0][1] == pytest.approx(1 - arrays["after"][0, 0, 1] / arrays["before"][0, 1])


def test_records_of_training_are_summarised_with_intervals_over_the_batches(measured):
    tracked = json.loads((measured / "interference.json").read_text())["tracked"]
    lines = [json.loads(line) for line in (measured.parent / "metrics.jsonl").read_text().splitlines()]
    records = [line for line in lines if line["kind"] == "gradients"]
    assert tracked["steps"] == [line["step"] for line in records] == [2, 4]
    one, other = (records[0]["tasks"].index(name) for name in ("refcoco", "nlvr2"))
    values = [[of_batch[one][other] for of_batch in line["parts"]["text"]["similarity"]] for line in records]
    of_batches = np.mean(values, 0)  # over training
    table = tracked["parts"]["text"]["similarity"]
    assert table["mean"][1][2] == pytest.approx(of_batches.mean())
    low, high = stats.t.interval(0.95, 3, of_batches.mean(), stats.sem(of_batches))
    assert table["margin"][1][2] == pytest.approx((high - low) / 2)


def test_the_page_has_all_matrices_and_fits_a_phone(measured, look):
    page = look(measured / "interference.html")
    # Clustered, by group, means of groups, expected, 3 parts, look-ahead; means over training of the whole and 3 parts.
    assert page.locator(".matrix").count() == 8 + 4
    assert page.locator("figure.plot").count() == 2
    assert page.locator(".matrix").first.locator("td").count() == 9
    assert page.excess_on_a_phone() <= 0 and page.problems == []


def test_batches_are_those_of_the_runs_training(world, trained, tmp_path, run_command, monkeypatch):
    """Without the images that --clean removed from it, with its limit of regions, and with its loss."""
    assert run_command("finetune.clean", "--data", world, "--out", tmp_path / "clean")[0] == 0
    run = tmp_path / "run"
    run.mkdir()
    for path in trained.iterdir():
        (run / path.name).symlink_to(path)
    config = json.loads((trained / "config.json").read_text())
    own = {"clean": str(tmp_path / "clean"), "max_regions": 7, "contrastive": 0.25}
    (run / "config.json").unlink()
    write_json(run / "config.json", config | {"flags": config["flags"] | own})
    used = []
    plain = fixed_batches.fixed_batches
    monkeypatch.setattr(fixed_batches, "fixed_batches", lambda of, *rest: (used.append(of), plain(of, *rest))[1])
    flags = fixed_batches.as_trained(InterferenceConfig(run=str(run), data=str(world), batches=2, batch_size=4))
    assert (flags.clean, flags.missing, flags.max_regions) == (own["clean"], "stop", 7)
    opened = fixed_batches.open_fixed_batches(flags, choose_tasks("refcoco,nlvr2,flickr_retrieval"))
    removed = 0
    for collator in used:
        images = {image for example in collator.examples for image in example.images}
        of_task = read_cleaned(tmp_path / "clean", collator.task).images
        assert images.isdisjoint(of_task)
        removed += len(of_task)
    assert removed > 0 and all(of.batches[0].pairs.valid.shape[1] <= 7 for of in opened)
    assert {of.task_pass.contrastive for of in opened} == {0.25}


def test_one_task_and_a_run_without_heads_are_refused(trained, pretrained, run_command):
    status, _, err = run_command("finetune.interference", "--run", trained, "--tasks", "vqa")
    assert status == 2 and "--tasks vqa: interference is between tasks" in err
    status, _, err = run_command("finetune.interference", "--run", pretrained, *SMALL)
    assert status == 2 and "fine-tune it on" in err


def test_cells_are_coloured_by_sign_and_in_italics_if_their_interval_contains_0():
    summary = {"titles": ["<a>", "b"], "groups": ["G1", "G2"]}
    table = {"mean": [[None, 0.5], [-0.25, 0.1]], "margin": [[None, 0.1], [0.1, 0.2]]}
    text = matrix(summary, table, [1, 0])
    assert "&lt;a&gt;" in text and text.index(">b ") < text.index("&lt;a&gt;")
    assert "var(--right) 80%" in text and "var(--wrong) 40%" in text and 'title="+0.400 to +0.600"' in text
    assert text.count('class="uncertain"') == 1
