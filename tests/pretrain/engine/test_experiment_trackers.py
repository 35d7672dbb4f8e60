"""--log_to: trackers get what metrics.jsonl has, a resumed run continues theirs, and their faults do not end a run."""

import json
import os
import sqlite3
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from launching import SABOTAGE, finish, start_ranks

from pretrain.engine.metrics_logger import RunLog
from shards.common.errors import UserError

FLAGS = ["--epochs", 1, "--batch_size", 8, "--log_every", 2, "--workers", 0, "--validation_pairs", 9]
ALL = "wandb,trackio,mlflow"


def numbers_of(run) -> dict:
    """(step, name of a metric as trackers get it) -> value, from metrics.jsonl."""
    return {
        (line["step"], f"{kind}/{name}"): value
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        for kind in [line["kind"]]
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float)
    }


class StandIn:
    """Packages of trackers that keep what they get.

    begun: (package, identifier, configuration) of every start; kept: package -> (step, name) -> value.
    """

    def __init__(self, monkeypatch):
        self.begun, self.kept, self.ended = [], {"wandb": {}, "trackio": {}, "mlflow": {}}, []
        wandb = {"setup": lambda: SimpleNamespace(settings=SimpleNamespace(project=None)), "init": self.init_wandb}
        mlflow = {
            "start_run": self.start_run,
            "log_params": self.log_params,
            "log_metrics": lambda values, step: self.keep("mlflow", values, step),
            "end_run": lambda: self.ended.append("mlflow"),
        }
        for name, functions in {"wandb": wandb, "trackio": {"init": self.init_trackio}, "mlflow": mlflow}.items():
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            vars(module).update(functions)
            monkeypatch.setitem(sys.modules, name, module)

    def keep(self, package, values, step):
        self.kept[package] |= {(step, name): value for name, value in values.items()}

    def init_wandb(self, *, project, id, name, dir, config, resume):
        assert (project, resume) == ("twelve-in-one", "allow") and name == os.path.basename(dir)
        self.begun.append(("wandb", id, config))
        return SimpleNamespace(
            define_metric=lambda pattern, step_metric: None,
            log=lambda values: self.keep("wandb", {k: v for k, v in values.items() if k != "step"}, values["step"]),
            finish=lambda: self.ended.append("wandb"),
        )

    def init_trackio(self, *, project, name, config, resume):
        assert (project, resume) == ("twelve-in-one", "allow")
        self.begun.append(("trackio", name, config))
        return SimpleNamespace(
            log=lambda values, step: self.keep("trackio", values, step), finish=lambda: self.ended.append("trackio")
        )

    def start_run(self, run_id, run_name):
        self.begun.append(("mlflow", run_id or "made", None))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "made"))

    def log_params(self, flags):
        assert self.begun[-1][0] == "mlflow"
        self.begun[-1] = (*self.begun[-1][:2], flags)


@pytest.fixture
def trackers(monkeypatch):
    return StandIn(monkeypatch)


def test_trackers_get_the_metrics_and_a_resumed_run_continues_theirs(
    dataset_folder, tmp_path, run_command, trackers, ending
):
    run = tmp_path / "run"
    flags = (*FLAGS, "--data", dataset_folder, "--out", run, "--log_to", f"tensorboard,{ALL}")
    with ending(after=4):
        status, out, err = run_command("pretrain.run", *flags)
    assert status == 130, err
    status, out, err = run_command("pretrain.run", "--out", run, "--resume")
    assert status == 0 and "tensorboard --logdir" in out, err
    expected = numbers_of(run)
    assert {"train/loss", "train/lr", "validation/loss"} <= {name for _, name in expected}
    assert {step for step, _ in expected} == {2, 4, 5, 6, 8, 10, 11}
    for package, kept in trackers.kept.items():
        assert kept == expected, package
    for package in ALL.split(","):
        [first, second] = [each for each in trackers.begun if each[0] == package]
        assert first[1] == second[1] and first[2]["batch_size"] == 8 and first[2]["log_to"] == f"tensorboard,{ALL}"
    assert json.loads((run / "trackers.json").read_text()) == {name: id for name, id, _ in trackers.begun[:3]}
    assert sorted(trackers.ended) == sorted(2 * ALL.split(","))
    assert list(run.glob("events.out.tfevents.*"))


def test_names_of_metrics_that_mlflow_refuses_are_changed(tmp_path, trackers):
    log = RunLog(tmp_path, 0, "mlflow")
    log.write(3, "validation", {"R@1": 0.5, "refcoco+/score": 0.25, "note": "a text"})
    log.close()
    assert trackers.kept["mlflow"] == {(3, "validation/R_1"): 0.5, (3, "validation/refcoco_/score"): 0.25}


def test_a_tracker_that_fails_does_not_end_the_run(dataset_folder, tmp_path, run_command, trackers, monkeypatch):
    def fail(values, step):
        raise ConnectionError("the server is gone\nmore")

    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", fail)
    run = tmp_path / "run"
    status, _, err = run_command("pretrain.run", *FLAGS, "--data", dataset_folder, "--out", run, "--log_to", ALL)
    assert status == 0 and err.count("\n") == 1
    assert "warning: --log_to mlflow: the server is gone; the run is no longer logged there, its metrics.jsonl" in err
    assert trackers.kept["wandb"] == numbers_of(run) and sorted(trackers.ended) == ["trackio", "wandb"]


def test_a_tracker_that_cannot_be_started_is_one_sentence(dataset_folder, tmp_path, run_command, trackers, monkeypatch):
    def fail(**_):
        raise ValueError("api_key not configured\nUse wandb login")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    flags = ("--data", dataset_folder, "--out", tmp_path / "run", "--log_to", "trackio,wandb")
    status, _, err = run_command("pretrain.run", *FLAGS, *flags)
    assert (status, err) == (2, "error: --log_to wandb: cannot be started (api_key not configured); remove it\n")
    assert trackers.ended == ["trackio"]


def test_a_server_of_mlflow_that_is_not_reachable_is_not_waited_for_for_minutes(tmp_path, trackers, monkeypatch):
    """Unless the environment says so; later requests have MLflow's own settings."""
    names, seen = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"), []

    def fail(**_):
        seen.append([os.environ.get(name) for name in names])
        raise ConnectionError("refused")

    monkeypatch.setattr(sys.modules["mlflow"], "start_run", fail)
    for number, timeout in enumerate((None, "60")):
        if timeout:
            monkeypatch.setenv(names[1], timeout)
        with pytest.raises(UserError, match=r"--log_to mlflow: cannot be started \(refused\)"):
            RunLog(tmp_path, 0, "mlflow")
        assert seen[number] == ["2", timeout or "8"] and os.environ.get(names[1]) == timeout
        assert names[0] not in os.environ


@pytest.mark.parametrize("command", ["pretrain.run", "finetune.mt", "finetune.st"])
def test_unknown_and_missing_trackers_are_one_sentence(command, tmp_path, run_command, monkeypatch):
    monkeypatch.setattr("pretrain.engine.experiment_trackers.find_spec", lambda name: None)
    flags = ("--out", tmp_path / "run", *(("--task", "vqa") if command == "finetune.st" else ()))
    for value, message in [
        ("wandb", "wandb is not installed; pip install wandb, or remove it"),
        ("tensorboard,comet", "comet is unknown; it should be none, or some of tensorboard, wandb, trackio, mlflow"),
        ("none,wandb", "none has to be the only one; it should be none, or some of tensorboard, "),
        ("wandb,,", "wandb is not installed"),
        (",", "an empty name is unknown"),
    ]:
        status, _, err = run_command(command, *flags, "--log_to", value)
        assert status == 2 and f"--log_to {value}: {message}" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_none_writes_metrics_alone(dataset_folder, tmp_path, run_command):
    run = tmp_path / "run"
    status, out, _ = run_command("pretrain.run", *FLAGS, "--data", dataset_folder, "--out", run, "--log_to", "none")
    assert status == 0 and "tensorboard" not in out and numbers_of(run)
    assert not list(run.glob("events.out.tfevents.*")) and not (run / "trackers.json").exists()


def test_a_new_run_in_a_folder_without_a_checkpoint_does_not_continue_that_of_another(
    dataset_folder, tmp_path, run_command, trackers
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trackers.json").write_text('{"mlflow": "another"}')
    flags = ("--data", dataset_folder, "--out", tmp_path / "run", "--log_to", "mlflow")
    assert run_command("pretrain.run", *FLAGS, *flags)[0] == 0
    assert [identifier for _, identifier, _ in trackers.begun] == ["made"]


def test_a_tracker_that_cannot_be_started_ends_all_ranks(dataset_folder, tmp_path):
    (tmp_path / "trackio.py").write_text("def init(**_):\n    raise ValueError('no space')\n")
    flags = (*FLAGS, "--data", dataset_folder, "--out", tmp_path / "run", "--log_to", "trackio", "--device", "cpu")
    results = finish(start_ranks(2, *flags, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.getcwd()}"), timeout=60)
    assert [status for status, _, _ in results] == [2, 2], results
    assert "--log_to trackio: cannot be started (no space)" in results[0][2] and results[1][2] == ""


@pytest.mark.slow
@pytest.mark.parametrize("package", ALL.split(","))
def test_the_real_packages_continue_one_run_offline(package, dataset_folder, tmp_path):
    pytest.importorskip(package)
    run, kept = tmp_path / "run", tmp_path / "kept"
    offline = {
        **{"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": kept, "HF_HUB_OFFLINE": "1"},
        **{"MLFLOW_TRACKING_URI": f"file:{kept}", "MLFLOW_ALLOW_FILE_STORE": "true"},
    }
    flags = (*FLAGS, "--data", dataset_folder, "--out", run, "--log_to", package)
    sabotage = {"SABOTAGE": "stop_after", "SABOTAGE_AT": 5, "SABOTAGE_RANK": 0, "SABOTAGE_ONCE": tmp_path / "once"}
    [(status, _, err)] = finish(start_ranks(1, *flags, script=(SABOTAGE,), **offline, **sabotage))
    assert status == 130, err
    [(status, _, err)] = finish(start_ranks(1, "--out", run, "--resume", **offline))
    assert status == 0 and "warning: --log_to" not in err, err
    expected = numbers_of(run)
    identifier = json.loads((run / "trackers.json").read_text())[package]
    if package == "wandb":  # both parts have one identifier; `wandb sync` joins them
        parts = sorted((run / "wandb").glob(f"offline-run-*-{identifier}/run-{identifier}.wandb"))
        assert len(parts) == 2 and len(list((run / "wandb").glob("offline-run-*"))) == 2
        assert all(b"train/loss" in part.read_bytes() for part in parts)
    elif package == "trackio":
        rows = sqlite3.connect(kept / "twelve-in-one.db").execute("select run_name, step, metrics from metrics")
        found = {}
        for name, step, metrics in rows:
            assert name == identifier
            found |= {(step, key): value for key, value in json.loads(metrics).items()}
        assert found == pytest.approx(expected)
    else:
        [folder] = kept.glob(f"*/{identifier}/metrics")
        assert {path.name for path in folder.parent.parent.iterdir() if path.is_dir()} == {identifier}
        names = {name.replace("@", "_") for _, name in expected}
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == names
        steps = [int(line.split()[2]) for line in (folder / "train" / "loss").read_text().splitlines()]
        assert sorted(set(steps)) == sorted({step for step, name in expected if name == "train/loss"})
