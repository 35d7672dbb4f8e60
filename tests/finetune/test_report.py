"""Reports: the numbers are those of the runs' results, in the paper's layout, and the page can be looked at."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from launching import python

from finetune import report
from finetune.evaluation.bootstrap import bootstrap_means, interval_of
from finetune.evaluation.paper_results import paper_table
from finetune.evaluation.scores import CLUSTERS, load_values
from finetune.pages import report_page
from finetune.pages.report_plots import paused_spans
from finetune.reporting.paper_layout import ablation_tables, gap_scores, method_cells, methods, table9
from finetune.run_dirs.finished_runs import MULTI, PRETRAINING, SINGLE, Run, find_runs, read_run
from finetune.tasks import all_tasks
from shards.common.errors import UserError


@pytest.fixture(scope="module")
def single(world, trained, made_once):
    """A run of one task from the run of all, with its test evaluated."""
    flags = ("--task", "refcoco", "--data", world, "--workers", 0)
    out = made_once("st-refcoco", "finetune.st", *flags, "--init", trained, "--epochs", 2)
    done = python("finetune.evaluate", *flags, "--run", out, "--split", "testA")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def variant(trained, tmp_path):
    """A copy of the run of all tasks, as if its flags had been others: variant(NAME, flags) -> its folder.

    without: flags that the version of the run did not have.
    """

    def make(name: str, iterations=4, start="ST", without=(), **flags):
        folder = tmp_path / name
        shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints", "scores"))
        config, result = (json.loads((folder / file).read_text()) for file in ("config.json", "result.json"))
        config["flags"] = {name: value for name, value in config["flags"].items() if name not in without} | flags
        config["start"]["kind"] = start
        result["iterations"] = iterations
        rng = np.random.default_rng(len(name))
        values, clusters = load_values(folder / "values.npz")
        values = {task: rng.random(len(v)) for task, v in values.items()}
        np.savez(folder / "values.npz", **values, **{f"{CLUSTERS}{task}": v for task, v in clusters.items()})
        for task, of in values.items():
            result["tasks"][task]["score"] = float(of.mean())
            main = "R@1" if task.endswith("retrieval") else "accuracy"
            result["tasks"][task][main] = float(of.mean())
        for file, value in (("config.json", config), ("result.json", result)):
            (folder / file).write_text(json.dumps(value))
        return folder

    return make


def test_runs_are_found_where_they_are(trained, pretrained, single, tmp_path):
    runs = find_runs([str(pretrained), str(trained), str(single), str(trained)])
    assert [run.kind for run in runs] == [PRETRAINING, MULTI, SINGLE]
    shutil.copytree(single, tmp_path / "a" / "seed0" / "mt")
    assert [run.path for run in find_runs([str(tmp_path)])] == [tmp_path / "a" / "seed0" / "mt"]
    with pytest.raises(UserError, match="contains no run; give run directories of"):
        find_runs([str(tmp_path / "a" / "seed0" / "mt" / "checkpoints")])
    with open(tmp_path / "a" / "seed0" / "mt" / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "kind": "tr')  # a run that goes on
    run = read_run(tmp_path / "a" / "seed0" / "mt")
    assert run.training and all(line["step"] < 99 for line in run.training)


def test_runs_are_found_behind_links(trained, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mt").symlink_to(trained)
    assert [run.path for run in find_runs([str(tmp_path / "runs")])] == [tmp_path / "runs" / "mt"]


def test_a_bad_byte_in_the_metrics_costs_a_line(trained, tmp_path, capsys):
    """Not the report, and not the lines behind it."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "scores"))
    known, path = read_run(trained), tmp_path / "run" / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    assert known.training[0]["step"] <= known.validation[-1]["step"]
    path.write_bytes(b"\n".join([lines[0], b"\xff\xfe{", b"[1]", *lines[1:-1], b'{"step": 9']))
    read = read_run(tmp_path / "run")
    assert (read.training, read.validation) == (known.training, known.validation)
    assert f"{path}: skipped 2 unreadable lines" in capsys.readouterr().out


def test_table9_has_the_test_where_it_was_scored(trained, single):
    columns, rows = table9(find_runs([str(trained), str(single)]))
    assert columns == ["the paper's ST", "the paper's AT->ST", "AT, not cleaned", "AT->ST, not cleaned"]
    of = {row.name: {c.removesuffix(", not cleaned"): cell for c, cell in row.cells.items()} for row in rows}
    kept = json.loads((single / "scores" / "refcoco-testA.json").read_text())
    assert of["RefCOCO"]["AT->ST"].value == pytest.approx(100 * kept["accuracy"])
    assert of["RefCOCO"]["AT->ST"].note == "testA" and of["RefCOCO"]["AT"].note == "val"
    assert of["RefCOCO"]["AT->ST"].interval == pytest.approx([100 * end for end in kept["interval"]])
    assert "AT->ST" not in of["VQA"] and of["VQA"]["the paper's ST"].value == 71.82
    tasks = json.loads((trained / "result.json").read_text())["tasks"]
    assert of["IR COCO R5"]["AT"].value == pytest.approx(100 * tasks["coco_retrieval"]["R@5"])


def test_runs_stand_below_the_papers_row_of_the_same_method(variant):
    paths = [variant("seed0", seed=0), variant("seed1", seed=1, together="/somewhere/runs/mt")]
    paths += [variant("head", task_token="head"), variant("eight", gap=8), variant("short", iterations=2)]
    paths += [variant("scratch", start="scratch"), variant("bert", start="BERT")]
    paths.append(variant("one-step", without=("balance", "max_regions"), one_step=True, regions=None))
    found = methods(find_runs(map(str, paths)))
    assert [len(one.runs) for one in found] == [2, 1, 1, 1, 1, 1, 1]
    tables = ablation_tables(found)
    assert list(tables) == ["table10", "table11"]
    names = [row.name for row in tables["table10"]]
    assert names[:4] == [
        "balance sum, 4 iterations, not cleaned",
        "the paper: token per dataset",
        "token per dataset, 4 iterations, not cleaned",
        "token per dataset, 2 iterations, not cleaned",
    ]
    for paper, own in (("token per head", "token per head"), ("no CC pretraining", "no CC pretraining")):
        assert names[names.index(f"the paper: {paper}") + 1] == f"{own}, 4 iterations, not cleaned"
    assert names.count("no CC pretraining, 4 iterations, not cleaned") == 2  # from random weights, and from a BERT
    names = [row.name for row in tables["table11"]]
    assert names[names.index("the paper: Δ 8") + 1] == "Δ 8, 4 iterations, not cleaned"
    paper = tables["table10"][1]
    assert paper.paper and paper.cells["MT Score"].value == 69.08


def test_a_start_is_named_like_a_run(variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = read_run(variant("run"))
    for start, named in (
        ({"kind": "ST", "run": str(tmp_path / "runs" / "pretrain")}, "ST, from runs/pretrain"),
        ({"kind": "ST", "run": "/other/runs/pretrain"}, "ST, from /other/runs/pretrain"),
        ({"kind": "BERT", "run": "bert-base-uncased"}, "BERT, from bert-base-uncased"),
        ({"kind": "scratch", "run": None}, "scratch"),
    ):
        assert report_page.start_of(dataclasses.replace(run, config=run.config | {"start": start})) == named


def test_a_cleaned_run_is_the_papers_method_and_another_is_marked(variant):
    """Whatever the folder of finetune.clean; seeds with and without are not averaged together."""
    paths = [variant("plain"), variant("cleaned", clean="True"), variant("other", clean="data/clean", seed=1)]
    found = methods(find_runs(map(str, paths)))
    assert [(one.cleaned, one.changes, len(one.runs)) for one in found] == [(True, {}, 2), (False, {}, 1)]
    assert [one.name for one in found] == [
        "the full method, 4 iterations",
        "the full method, 4 iterations, not cleaned",
    ]
    tables = ablation_tables(found)
    assert list(tables) == ["table10"]
    assert [row.name for row in tables["table10"]][:3] == [
        "the paper: token per dataset",
        "token per dataset, 4 iterations",
        "token per dataset, 4 iterations, not cleaned",
    ]
    columns, rows = table9(find_runs(map(str, paths)))
    assert columns[2:] == ["AT", "AT, not cleaned"]
    of = {row.name: row.cells for row in rows}
    scores = [json.loads((path / "result.json").read_text())["tasks"]["vqa"]["accuracy"] for path in paths]
    assert of["VQA"]["AT, not cleaned"].value == pytest.approx(100 * scores[0])
    assert of["VQA"]["AT"].value == pytest.approx(50 * (scores[1] + scores[2]))


def test_a_run_is_as_clean_as_the_one_it_began_with(variant, single, pretrained):
    at, clean_at = variant("at"), variant("clean-at", clean="True")

    def cleaned(clean, run) -> bool:
        config = json.loads((single / "config.json").read_text())
        config["flags"]["clean"], config["start"] = clean, {"kind": "AT->ST", "run": run and str(run)}
        return Run(single, config, None, [], [], {}).cleaned

    assert cleaned("True", clean_at) and not cleaned("True", at) and not cleaned(None, clean_at)
    assert cleaned("True", None) and cleaned("True", pretrained) and cleaned("True", at / "gone")
    config = json.loads((clean_at / "config.json").read_text())
    config["start"]["run"] = str(clean_at)  # --init and --out the same
    (clean_at / "config.json").write_text(json.dumps(config))
    assert cleaned("True", clean_at)


def test_seeds_are_averaged_and_their_interval_is_over_images(variant):
    paths = [variant("a"), variant("seeds", seed=1)]
    (method,) = methods(find_runs(map(str, paths)))
    rows = ablation_tables([method])["table10"]
    cell = rows[1].cells["RefCOCO"]
    values = np.mean([np.load(path / "values.npz")["refcoco"] for path in paths], 0)
    assert cell.value == pytest.approx(100 * values.mean())
    clusters = np.load(paths[0] / "values.npz")["clusters/refcoco"]
    assert clusters.max() + 1 < len(values)  # some images have several expressions
    expected = interval_of(bootstrap_means(100 * values, clusters, seed=all_tasks()["refcoco"].token))
    assert cell.interval == pytest.approx(expected) and cell.note == "mean of 2 seeds"
    low, high = rows[1].cells["MT Score"].interval
    assert low < rows[1].cells["MT Score"].value < high and high - low < cell.interval[1] - cell.interval[0]
    assert rows[1].cells["Mean G1"].interval is None


def test_the_sweep_of_gaps(variant):
    assert gap_scores(methods(find_runs([str(variant("one"))]))) == {}
    found = methods(find_runs(map(str, [variant("many", gap=16), variant("few"), variant("head", task_token="head")])))
    scores = gap_scores(found)
    assert list(scores) == [4, 16] and scores[16].value != scores[4].value
    paths = [variant(f"cleaned-{gap}", gap=gap, clean="True") for gap in (4, 16)]
    assert list(gap_scores(methods(find_runs(map(str, paths))))) == [4, 16]


def test_where_a_task_was_stopped(tmp_path):
    def run(*going):
        lines = [{"step": step, "kind": "validation", "a/going": value} for step, value in going]
        return Run(tmp_path, {}, None, [{"step": 99}], lines, {})

    assert paused_spans(run((10, 1), (20, 0), (30, 0), (40, 1), (50, 0), (60, 1)), "a") == [(20, 40), (50, 60)]
    assert paused_spans(run((10, 1), (20, 0)), "a") == [(20, 99)]
    assert paused_spans(run((10, 1)), "a") == []


@pytest.fixture
def page(trained, pretrained, single, variant, tmp_path, run_command):
    runs = [pretrained, trained, single, variant("wide", gap=16)]
    status, said, err = run_command("finetune.report", *runs, "--out", tmp_path / "report.html")
    assert status == 0 and f"4 runs: {pretrained}, {trained}" in said, err
    return tmp_path / "report.html"


def test_the_page(page, look, trained):
    opened = look(page, offline=True)
    together = "Single-task and multi-task training"
    titles = ["Runs", "Scores", "Stop-and-go", together, "Pretraining", "Run metadata"]
    assert [one.inner_text() for one in opened.locator("h2").all()] == titles
    captions = opened.locator("figure.plot figcaption").all_inner_texts()
    assert [re.match(r"Figure \d(, \w+)?|Pretraining", caption)[0] for caption in captions] == [
        *("Figure 2", *("Figure 6, top", "Figure 6, bottom") * 2, "Figure 7", "Pretraining")
    ]
    table = opened.locator("h3", has_text="Table 10").locator("xpath=following-sibling::div[1]")
    assert table.locator("tbody tr").count() == len(paper_table("table10_ablations")["rows"]) + 1
    headings = [one.locator("th").all_inner_texts() for one in opened.locator("thead").all()]
    assert ["run", "tasks", "initial weights", "steps", "time", "validation"] in headings
    assert ["run", "started", "code", "software", "hardware"] in headings
    assert ["", "training", "validation", "training in the paper"] in headings
    assert next(line for line in headings if "AT" in line or "AT, not cleaned" in line)[-1] == "split of these runs"
    own = table.locator("tr.own td span").first.inner_text()
    assert own == f"{100 * json.loads((trained / 'result.json').read_text())['tasks']['vqa']['score']:.2f}"
    assert "refcoco" in opened.locator("details").first.evaluate("e => e.parentNode.textContent")
    assert opened.problems == [] and opened.excess_on_a_phone() == 0


def test_a_long_name_breaks_on_a_phone(variant, tmp_path, run_command, look):
    """Instead of covering the next cell."""
    name = "a-word-without-a-space-of-many-characters"
    status, _, err = run_command("finetune.report", variant("long", optimizer=name), "--out", tmp_path / "report.html")
    assert status == 0, err
    opened = look(tmp_path / "report.html", offline=True)
    opened.set_viewport_size({"width": 375, "height": 800})
    label = opened.locator("tbody th", has_text=name).first
    assert label.evaluate("e => e.scrollWidth - e.clientWidth") <= 0


def test_the_page_of_cleaned_runs(variant, single, tmp_path, run_command, look):
    """Figure 2 once for each kind of runs; the sizes of data sets are beside the paper's of the same kind."""
    runs = [variant(f"{clean}-{gap}", gap=gap, clean=clean) for gap in (4, 8) for clean in ("True", None)]
    status, _, err = run_command("finetune.report", *runs, single, "--out", tmp_path / "report.html")
    assert status == 0, err
    opened = look(tmp_path / "report.html", offline=True)
    captions = opened.locator("figure.plot figcaption").all_inner_texts()
    assert sum(caption.startswith("Figure 2") for caption in captions) == 2
    drawn = " ".join(opened.locator("figure.plot svg").all_text_contents())
    assert "these runs, with 95%" in drawn and "these runs, not cleaned, with 95%" in drawn
    rows = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()[-1]
        for row in opened.locator("h3", has_text="Data sets")
        .locator("xpath=following-sibling::div[1]")
        .locator("tbody tr")
        .all()
    }
    assert (rows["VQA v2"], rows["VQA v2, not cleaned"]) == ("542,104", "655,111")
    assert rows["RefCOCO, not cleaned"] == "120,624" and opened.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_plots_take_the_pages_colours(page, look, scheme):
    opened = look(page, color_scheme=scheme)
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]", page.read_text(encoding="utf-8"))  # none of matplotlib's own left
    colours = opened.evaluate(
        """() => {
            const text = document.querySelector('figure.plot svg text');
            return [getComputedStyle(text).fill, getComputedStyle(document.body).backgroundColor];
        }"""
    )
    text, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (text < 200 and paper > 700) if scheme == "light" else (text > 600 and paper < 100)


def test_the_same_runs_give_the_same_page(trained, tmp_path, run_command):
    pages = []
    for name in ("a.html", "b.html"):
        status, _, err = run_command("finetune.report", trained, "--out", tmp_path / name)
        assert status == 0, err
        pages.append((tmp_path / name).read_text(encoding="utf-8"))
    assert pages[0] == pages[1]


def test_an_unfinished_run_and_one_without_scores(trained, pretrained, tmp_path, run_command, look):
    for name, source in (("mt", trained), ("pretrain", pretrained)):
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints", "result.json"))
    config = json.loads((tmp_path / "mt" / "config.json").read_text())
    del config["made"]  # of an earlier version
    (tmp_path / "mt" / "config.json").write_text(json.dumps(config))
    (tmp_path / "pretrain" / "metrics.jsonl").write_text("")
    status, _, err = run_command("finetune.report", tmp_path, "--out", tmp_path / "report.html")
    assert status == 0, err
    opened = look(tmp_path / "report.html")
    assert opened.get_by_text("not finished").count() == 2 and opened.problems == []


def test_a_fault_in_the_program_keeps_its_traceback(trained, tmp_path, monkeypatch):
    """It is not reported as a damaged file."""
    monkeypatch.setattr("finetune.pages.report_page._overview", lambda runs: runs[0].no_such_attribute)
    with pytest.raises(AttributeError):
        report.run(report.ReportConfig((str(trained),), out=str(tmp_path / "report.html")))


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda config, result: config.pop("start"), "config.json has no start"),
        (lambda config, result: config["flags"].update(gap="4"), "config.json has --gap '4'"),
        (lambda config, result: result["tasks"].pop("refcoco"), "result.json has no scores of refcoco"),
        (lambda config, result: result["tasks"]["coco_retrieval"].pop("R@5"), "coco_retrieval has no R@5"),
    ],
)
def test_what_a_run_lacks_is_named(variant, alter, message):
    run = variant("damaged")
    config, result = (json.loads((run / name).read_text()) for name in ("config.json", "result.json"))
    alter(config, result)
    for name, value in (("config.json", config), ("result.json", result)):
        (run / name).write_text(json.dumps(value))
    with pytest.raises(UserError, match=f"damaged: .*{re.escape(message)}; the file is damaged"):
        find_runs([str(run)])


def test_mistakes(tmp_path, run_command):
    status, _, err = run_command("finetune.report")
    assert status == 2 and "RUNS is missing: run directories" in err
    status, _, err = run_command("finetune.report", tmp_path)
    assert status == 2 and "contains no run" in err
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text("[]")
    status, _, err = run_command("finetune.report", tmp_path)
    assert status == 2 and "config.json: has invalid content" in err


def test_recall_among_fewer_images_is_noted_in_every_table(variant):
    """The paper's numbers are among 1,000 images."""
    runs = find_runs([str(variant("a"))])
    images = runs[0].result["tasks"]["coco_retrieval"]["images"]
    assert images < 1000
    cells = method_cells(methods(runs)[0])
    for column in ("RC R@1", "RC R@5", "RC R@10"):
        assert cells[column].note == f"among {images} images"
    assert cells["VQA"].note == ""
    rows = {row.name: row.cells for row in table9(runs)[1]}
    assert rows["IR COCO R1"]["AT, not cleaned"].note == f"val, among {images} images"
    for count, note in ((1000, "val"), (5000, "val, among 5,000 images")):
        runs[0].result["tasks"]["coco_retrieval"]["images"] = count
        assert {row.name: row.cells for row in table9(runs)[1]}["IR COCO R1"]["AT, not cleaned"].note == note


def test_ticks_of_a_narrow_range_have_different_labels():
    pytest.importorskip("matplotlib")
    from finetune.pages.vector_plots import drawing, percent_axis

    with drawing(3, 2) as (figure, axes):
        axes[0, 0].plot([1, 2, 3], [0.702, 0.709, 0.716])
        percent_axis(axes[0, 0], [0.702, 0.716])
        figure.canvas.draw()
        labels = [label.get_text() for label in axes[0, 0].get_yticklabels()]
    assert len(labels) > 2 and len(set(labels)) == len(labels) and all(label.endswith("%") for label in labels)


@pytest.mark.parametrize("steps", [[6], [6, 7], [1, 1000]])
def test_ticks_of_steps_are_integers(steps):
    pytest.importorskip("matplotlib")
    from finetune.pages.vector_plots import drawing, whole_steps

    with drawing(3, 2) as (figure, axes):
        axes[0, 0].plot(steps, steps, "o")
        whole_steps(axes[0, 0])
        figure.canvas.draw()
        ticks = axes[0, 0].get_xticks()
    assert len(ticks) and all(tick == int(tick) for tick in ticks)
