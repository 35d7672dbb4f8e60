"""finetune.mt --groups: the choice of the sets, and their runs and table on a small world."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from launching import lines_of, weights_of

from finetune.config import MtConfig
from finetune.gradients.measured_sets import measured_sets
from finetune.training.task_sets import begin_sets, choose_sets
from shards.common.errors import UserError
from shards.common.files import write_json

NAMES = ["snli_ve", "nlvr2", "refcoco"]
HELP = [[None, -0.1, 0.3], [-0.1, None, -0.2], [0.2, -0.3, None]]  # the first and the third task help each other


def measure(run, affinity=HELP, similarity=HELP, names=NAMES) -> None:
    """Writes an interference.json of these affinities into a run."""
    (run / "interference").mkdir(parents=True)
    parts = {"all": {"similarity": {"mean": similarity}}}
    table = None if affinity is None else {"mean": affinity}
    found = {"tasks": names, "parts": parts, "affinity": table, "flags": {"max_sets": 4}}
    write_json(run / "interference" / "interference.json", found)


def test_sets_follow_the_affinities_of_the_chosen_tasks(tmp_path):
    measure(tmp_path / "run")
    assert measured_sets(tmp_path / "run", NAMES) == [["snli_ve", "refcoco"], ["nlvr2"]]
    assert measured_sets(tmp_path / "run", ["refcoco", "nlvr2"]) == [["refcoco"], ["nlvr2"]]
    measure(tmp_path / "gradients", None, [[None, 0.3, -1], [0.3, None, -1], [-1, -1, None]])
    assert measured_sets(tmp_path / "gradients", NAMES) == [["snli_ve", "nlvr2"], ["refcoco"]]


def test_affinities_that_are_not_known_are_one_sentence(tmp_path):
    config = MtConfig(groups="auto", tasks="snli_ve,vqa", together=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"--together .*run: has no measured affinities; measure them with python -m"):
        choose_sets(config)
    measure(tmp_path / "run")
    with pytest.raises(UserError, match="does not contain vqa; give --tasks snli_ve,nlvr2,refcoco, or measure"):
        choose_sets(config)


def test_given_sets():
    assert choose_sets(MtConfig(groups="g4;refcoco,vqa")) == [["nlvr2", "snli_ve"], ["vqa", "refcoco"]]
    with pytest.raises(UserError, match="nlvr2 is in several sets"):
        choose_sets(MtConfig(groups="g4;nlvr2"))
    with pytest.raises(UserError, match="--groups refcoc: should be one of all"):
        choose_sets(MtConfig(groups="g4;refcoc"))
    with pytest.raises(UserError, match="--tasks g3: --groups g4;vqa has the tasks already"):
        choose_sets(MtConfig(groups="g4;vqa", tasks="g3"))


def test_sets_stay_the_same_when_the_affinities_are_measured_again(tmp_path):
    measure(tmp_path / "run")
    out, run = str(tmp_path / "sets"), str(tmp_path / "run")
    config = MtConfig(groups="auto", tasks=",".join(NAMES), together=run, out=out, track=True)
    runs = begin_sets(config)
    assert [(one.tasks, one.out) for one in runs] == [("refcoco,snli_ve", f"{out}/set1"), ("nlvr2", f"{out}/set2")]
    assert [one.track for one in runs] == [True, False]  # a task alone has nothing to be compared with
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="already contains runs of sets; use --resume"):
        begin_sets(config)
    assert begin_sets(replace(config, resume=True)) == runs
    with pytest.raises(UserError, match=r"--gap 8: the run in .* has 4"):
        begin_sets(replace(config, resume=True, gap=8))
    write_json(tmp_path / "sets" / "config.json", {"flags": {}})
    with pytest.raises(UserError, match=r"contains a run; --groups needs a folder for several"):
        begin_sets(config)


def test_each_set_is_the_run_of_its_tasks_alone_and_compared_with_all_together(
    world, pretrained, trained, tmp_path, run_command
):
    together, out = tmp_path / "together", tmp_path / "sets"
    shutil.copytree(trained, together, ignore=shutil.ignore_patterns("interference", "checkpoints"))
    measure(together)
    flags = ["--data", world, "--init", pretrained, "--workers", 0, "--max_batch", 20, "--iterations", 2]
    auto = ["--groups", "auto", "--tasks", ",".join(NAMES), "--together", together, "--out", out]
    status, said, err = run_command("finetune.mt", *flags, *auto)
    assert (status, err) == (0, "") and "set 1 of 2: refcoco,snli_ve" in said and "set 2 of 2: nlvr2" in said
    run_command("finetune.mt", *flags, "--tasks", "nlvr2", "--out", tmp_path / "alone")
    alone, of_set = weights_of(tmp_path / "alone", 2), weights_of(out / "set2", 2)
    assert all(value.equal(of_set[name]) for name, value in alone.items())
    assert lines_of(tmp_path / "alone", "validation") == lines_of(out / "set2", "validation")
    table = (out / "table.txt").read_text()
    results = [json.loads((folder / "result.json").read_text()) for folder in (together, out / "set1", out / "set2")]
    scores = [{name: of["score"] for name, of in result["tasks"].items()} for result in results]
    ours = scores[1] | scores[2]
    assert set(ours) == set(NAMES)
    for name, title in (("nlvr2", "NLVR2"), ("refcoco", "RefCOCO")):
        [line] = [line for line in table.splitlines() if line.startswith(f"{title} ")]
        assert f"{100 * (ours[name] - scores[0][name]):+.2f}%" in line
    mean = np.mean([ours[name] - scores[0][name] for name in NAMES])
    assert f"{100 * mean:+.2f}%" in table.partition("mean of these tasks")[2].splitlines()[0]
    assert f"those of {together}: --" in table and "set 1: refcoco,snli_ve: 2 iterations, 4 task steps" in table
    status, again, err = run_command("finetune.mt", "--out", out, "--resume")
    assert (status, err) == (0, "") and again.count("already finished; nothing to do") == 2 and table in again
    shutil.rmtree(together)
    shutil.rmtree(out / "set2")
    status, again, _ = run_command("finetune.mt", "--out", out, "--resume")
    assert status == 0 and again.count("already finished") == 1 and "all together" not in again.partition("2 sets")[2]
    assert weights_of(out / "set2", 2).keys() == of_set.keys()
