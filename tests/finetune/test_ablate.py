"""finetune.ablate: rows, resuming, and the comparison of rows."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from finetune.ablate import AblateConfig, Run, as_begun, compare
from finetune.ablate import table as tabulate
from finetune.ablations import PAPER_TABLES, SUITES, Row
from finetune.paper import paper_row
from finetune.scores import CLUSTERS
from shards.errors import UserError
from shards.files import write_json


def test_rows_are_the_papers():
    for suite, table in PAPER_TABLES.items():
        for name in SUITES[suite]:
            assert paper_row(table, name)["MT Score"] > 50


def test_a_suite_is_run_resumed_and_tabulated(world, pretrained, tmp_path, run_command):
    flags = ["--suite", "table12", "--data", world, "--init", pretrained, "--out", tmp_path, "--iterations", 1]
    flags += ["--seeds", 1, "--rows", "AT", "--jobs", 2]
    status, out, err = run_command("finetune.ablate", *flags)
    assert (status, err) == (0, "") and "table12: 2 runs, 0 of them finished before" in out
    table = (tmp_path / "table12" / "table.txt").read_text()
    rows = {line[:20].strip(): line.split() for line in table.splitlines()}
    assert any(name.startswith("the paper: AT") for name in rows)
    assert table.startswith("table12: means of 1 seed, validation, not cleaned (the paper's models are trained on ")
    cleaned = []
    for name in ("AT without G4", "AT"):
        of_row = Run(name, Row(), 0, tmp_path / "cleaned" / name)
        finished = tmp_path / "table12" / name.replace(" ", "_") / "seed0" / "mt"
        shutil.copytree(finished, of_row.out, ignore=shutil.ignore_patterns("checkpoints"))
        config = json.loads((of_row.out / "config.json").read_text())
        write_json(of_row.out / "config.json", config | {"flags": config["flags"] | {"clean": "True"}})
        cleaned.append(of_row)
    assert tabulate("table12", cleaned).startswith("table12: means of 1 seed, validation\n")
    [mine] = [line for line in table.splitlines() if line.startswith("AT without G4 ")]
    result = json.loads((tmp_path / "table12" / "AT_without_G4" / "seed0" / "mt" / "result.json").read_text())
    assert mine.split()[-1] == f"{100 * result['mt_score']:.2f}" and len(result["tasks"]) == 10
    status, out, _ = run_command("finetune.ablate", *flags)
    assert status == 0 and "2 of them finished before" in out and table.strip() in out
    status, _, err = run_command("finetune.ablate", *flags, "--rows", "Vanilla")
    assert status == 2
    for name, value in (("iterations", 2), ("lr_scale", 3)):
        status, _, err = run_command("finetune.ablate", *flags, f"--{name}", value)
        assert status == 2 and f"was made with --{name} {1 if name == 'iterations' else 8}" in err


@pytest.mark.slow
def test_rows_of_pretraining_have_their_own(world, tmp_path, run_command):
    flags = ["--suite", "pretraining", "--data", world, "--out", tmp_path, "--iterations", 1, "--epochs", 1]
    status, _, err = run_command("finetune.ablate", *flags, "--seeds", 1, "--rows", "no pretraining")
    assert (status, err) == (0, "")
    run = tmp_path / "pretraining" / "aligned_pairs_overlap" / "seed0"
    assert (run / "pretrain" / "result.json").exists()
    assert json.loads((run / "mt" / "config.json").read_text())["start"] == {"kind": "ST", "run": str(run / "pretrain")}
    scratch = tmp_path / "pretraining" / "no_pretraining" / "seed0" / "mt" / "config.json"
    assert json.loads(scratch.read_text())["start"]["kind"] == "scratch"


def test_a_failed_run_is_told_with_its_log(world, tmp_path, run_command):
    flags = ["--suite", "table11", "--data", world, "--out", tmp_path, "--init", "nowhere", "--seeds", 1]
    status, _, err = run_command("finetune.ablate", *flags)
    assert status == 2 and "mt.log: python -m finetune.mt ended with status 2" in err
    assert "--init nowhere: no such file or directory" in err


def test_a_suite_goes_on_with_the_rate_that_it_was_begun_with(tmp_path):
    """Whatever the default is by then; runs that were begun at two rates, or on two data sets, are no table."""
    config = AblateConfig(suite="table11", data="data", init="weights", iterations=3)
    runs = [Run("row", Row(), seed, tmp_path / str(seed)) for seed in range(3)]
    assert as_begun(runs, config) == config
    for run, rate in zip(runs[:2], (4.0, 8.0), strict=True):
        flags = {"data": "data", "init": "weights", "iterations": 3, "lr_scale": rate}
        write_json(run.out / "config.json", {"flags": flags})
    assert as_begun(runs, config) == config  # without a checkpoint there is nothing to go on with
    for run in runs[:2]:
        write_json(run.out / "checkpoints" / "step-00000001" / "checkpoint.json", {"step": 1, "score": None})
    assert as_begun(runs[::2], config) == replace(config, lr_scale=4.0)
    for asked in (config, replace(config, lr_scale=8.0), replace(config, iterations=None)):
        with pytest.raises(UserError, match=r"was made with --(lr_scale|iterations)"):
            as_begun(runs, asked)
    for name in ("data", "init"):
        with pytest.raises(UserError, match=f"was made with --{name} "):
            as_begun(runs[:1], replace(config, **{name: "other"}))
    scratch = [Run("row", Row({"init": "scratch"}), 0, runs[0].folder)]  # its own start is none of the suite's
    assert as_begun(scratch, replace(config, init="other")).lr_scale == 4.0


def made_run(folder, seed, values, per_image=1) -> Run:
    """A finished run whose tasks have these values, of images with `per_image` examples each."""
    run = Run("row", Row(), seed, folder)
    run.out.mkdir(parents=True)
    clusters = {f"{CLUSTERS}{name}": np.arange(len(of)) // per_image for name, of in values.items()}
    np.savez(run.out / "values.npz", **values, **clusters)
    return run


def test_rows_are_compared_image_by_image(tmp_path):
    """With ten equal examples per image the interval is that of the images: sqrt(10) times as wide as of examples."""
    rng, widths = np.random.default_rng(0), []
    gains = {name: rng.choice([-0.3, 0.0, 0.6], 50) for name in "ab"}
    for per_image, repeat in ((1, 1), (10, 10), (1, 10)):
        folder = tmp_path / f"{per_image}-{repeat}"
        gain = {name: np.repeat(of, repeat) for name, of in gains.items()}
        base = {name: np.full(len(of), 0.3) for name, of in gain.items()}
        row = [made_run(folder / "row", 0, {name: base[name] + gain[name] for name in "ab"}, per_image)]
        difference, (low, high), _ = compare(row, [made_run(folder / "full", 0, base, per_image)])
        assert difference == pytest.approx(np.mean([of.mean() for of in gains.values()]))
        widths.append(high - low)
    assert widths[0] == pytest.approx(widths[1]) and widths[1] == pytest.approx(widths[2] * 10**0.5, rel=0.1)


def test_runs_of_earlier_versions_have_intervals_over_examples_and_a_warning(tmp_path):
    runs = [made_run(tmp_path / name, 0, {"a": np.linspace(0, 1, 20)}, 5) for name in ("row", "full")]
    for run in runs:
        np.savez(run.out / "values.npz", a=np.load(run.out / "values.npz")["a"])
    with pytest.warns(UserWarning, match="has no images of a .* intervals are over examples and too narrow"):
        assert compare(*([run] for run in runs)) == (0.0, (0.0, 0.0), 1.0)


def test_rows_are_compared_example_by_example(tmp_path):
    """An effect far smaller than the spread of examples shows, because the same examples are paired."""
    rng = np.random.default_rng(0)
    base = {name: (rng.random(500) < 0.5).astype(float) for name in "abcd"}
    rows = {"full": [], "row": []}
    for seed in range(3):
        for row, gain in (("full", 0.0), ("row", 0.02)):
            values = {name: value + gain * (rng.random(500) < 0.9) for name, value in base.items()}
            rows[row].append(made_run(tmp_path / row / str(seed), seed, values))
    difference, (low, high), p = compare(rows["row"], rows["full"])
    assert difference == pytest.approx(0.018, abs=0.001) and 0.016 < low < difference < high < 0.02 and p < 1e-6
    values = {row: [np.load(one.out / "values.npz") for one in runs] for row, runs in rows.items()}
    a, b = ([of_run[name].mean() for of_run in values[row] for name in "abcd"] for row in ("row", "full"))
    assert p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert compare(rows["full"], rows["full"]) == (0.0, (0.0, 0.0), 1.0)
