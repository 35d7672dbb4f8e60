"""finetune.ablate: rows, resuming, and the comparison of rows."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from launching import finish, python, start_ranks
from safetensors.torch import load_file
from scipy import stats
from transformers import BertConfig, BertModel

from finetune.config import SMALL_LR, AblateConfig, MtConfig
from finetune.evaluation.paper_results import paper_row
from finetune.evaluation.scores import CLUSTERS
from finetune.models.task_model import TaskModel
from finetune.reporting.ablation_runs import (
    AblationRun,
    PlainWeights,
    as_begun,
    calls_of,
    check_same_inputs,
    own_share,
    plain_weights,
    prepare_suite,
)
from finetune.reporting.ablation_suites import PAPER_TABLES, SUITES, Row
from finetune.reporting.ablation_table import compare_rows
from finetune.reporting.ablation_table import table as tabulate
from finetune.run_dirs.model_source import choose_source
from pretrain.config import PretrainConfig
from pretrain.engine.checkpoint import MODEL, best_checkpoint, newest_checkpoint
from pretrain.models.model_config import ModelConfig
from pretrain.pretrained.hf_bert import bert_folder
from shards.common.cli import build
from shards.common.errors import UserError
from shards.common.files import write_json
from shards.storage.dataset import open_dataset, read_captions


def test_rows_are_the_papers():
    for suite, table in PAPER_TABLES.items():
        for name in SUITES[suite]:
            assert paper_row(table, name)["MT Score"] > 50


def test_a_suite_is_run_resumed_and_tabulated(world, pretrained, tmp_path, run_command):
    flags = ["--suite", "table12", "--data", world, "--init", pretrained, "--out", tmp_path, "--iterations", 1]
    flags += ["--seeds", 1, "--rows", "AT", "--jobs", 2]
    status, out, err = run_command("finetune.ablate", *flags)
    assert (status, err) == (0, "") and "table12: 2 runs, 0 of them already finished" in out
    table = (tmp_path / "table12" / "table.txt").read_text()
    rows = {line[:20].strip(): line.split() for line in table.splitlines()}
    assert any(name.startswith("the paper: AT") for name in rows)
    assert table.startswith("table12: means of 1 seed, validation, not cleaned (the paper's models are trained on ")
    cleaned = []
    for name in ("AT without G4", "AT"):
        of_row = AblationRun(name, Row(), 0, tmp_path / "cleaned" / name)
        finished = tmp_path / "table12" / name.replace(" ", "_") / "seed0" / "mt"
        shutil.copytree(finished, of_row.out, ignore=shutil.ignore_patterns("checkpoints"))
        config = json.loads((of_row.out / "config.json").read_text())
        write_json(of_row.out / "config.json", config | {"flags": config["flags"] | {"clean": "True"}})
        cleaned.append(of_row)
    assert tabulate("table12", cleaned).startswith("table12: means of 1 seed, validation\n")
    mine, cost = [line for line in table.splitlines() if line.startswith("AT without G4 ")]
    assert "10 optimizer steps" in cost
    result = json.loads((tmp_path / "table12" / "AT_without_G4" / "seed0" / "mt" / "result.json").read_text())
    assert mine.split()[-1] == f"{100 * result['mt_score']:.2f}" and len(result["tasks"]) == 10
    status, out, _ = run_command("finetune.ablate", *flags)
    assert status == 0 and "2 of them already finished" in out and table.strip() in out
    status, _, err = run_command("finetune.ablate", *flags, "--rows", "Vanilla")
    assert status == 2
    for name, value in (("iterations", 2), ("lr_scale", 3)):
        status, _, err = run_command("finetune.ablate", *flags, f"--{name}", value)
        assert status == 2 and f"was run with --{name} {1 if name == 'iterations' else SMALL_LR}" in err


@pytest.fixture
def own_data(world, tmp_path):
    """A data folder with the world's files that is no world: what stands in regions/pairs might be anybody's pairs."""
    data = tmp_path / "own_data"
    data.mkdir()
    for part in world.iterdir():
        if part.name not in ("world.json", "images"):
            (data / part.name).symlink_to(part)
    return data


@pytest.mark.slow
def test_rows_of_pretraining_have_their_own(own_data, tmp_path, run_command):
    flags = ["--suite", "pretraining", "--data", own_data, "--out", tmp_path, "--iterations", 1, "--epochs", 1]
    status, out, err = run_command("finetune.ablate", *flags, "--seeds", 1, "--rows", "no pretraining")
    assert (status, err) == (0, "") and "rows without pretraining: random weights, model configuration tiny" in out
    run = tmp_path / "pretraining" / "aligned_pairs_overlap" / "seed0"
    assert (run / "pretrain" / "result.json").exists()
    stored = json.loads((run / "mt" / "config.json").read_text())
    assert stored["start"] == {"kind": "ST", "run": str(run / "pretrain")}
    plain = json.loads((tmp_path / "pretraining" / "no_pretraining" / "seed0" / "mt" / "config.json").read_text())
    assert plain["start"]["kind"] == "scratch"
    of_data = {"vocab_size": 0, "v_target_size": 0}  # of the texts that are learned from, of pretraining's own head
    assert plain["model"] | of_data == stored["model"] | of_data


def test_pretraining_takes_the_pairs_of_any_data_folder(own_data, tmp_path):
    row = SUITES["pretraining"]["all pairs, overlap"]
    config = AblateConfig(suite="pretraining", data=str(own_data), config="base", bert="bert", precision="bf16")
    pretraining, training = calls_of(AblationRun("row", row, 3, tmp_path), config, None)
    assert pretraining.flags["data"] == str(own_data / "regions" / "pairs") and training.flags["data"] == str(own_data)
    assert read_captions(open_dataset(pretraining.flags["data"]))
    with pytest.raises(UserError, match=r"regions/pairs: no such folder; --suite pretraining needs region shards"):
        prepare_suite(replace(config, data=str(tmp_path)), [AblationRun("row", row, 0, tmp_path)])


def test_flags_reach_the_commands_that_have_them(tmp_path):
    """Every flag that is given is a flag of the command, and has the type that it has there."""
    asked = {"clean": "clean", "precision": "bf16", "device": "cpu", "data": "data", "iterations": 7, "lr_scale": 2.0}
    config = AblateConfig(suite="pretraining", config="base", bert="a bert", epochs=4, **asked)
    plain = PlainWeights({"init": "a bert", "config": "base"}, None, "")
    calls = {
        name: calls_of(AblationRun(name, row, 5, tmp_path), config, plain)
        for name, row in SUITES["pretraining"].items()
    }
    for of_row in calls.values():
        for call in of_row:
            flags = build({"pretrain.run": PretrainConfig, "finetune.mt": MtConfig}[call.module], call.flags)
            assert (flags.precision, flags.device, flags.seed) == ("bf16", "cpu", 5)
            if call.module == "pretrain.run":
                assert (flags.config, flags.bert, flags.epochs) == ("base", "a bert", 4)
            else:
                assert {name: getattr(flags, name) for name in asked} == asked
    pretraining, training = calls["all pairs, chosen alone"]
    assert pretraining.flags["aligned_only"] is False and training.flags["init"] == str(pretraining.out)
    [plain] = calls["no pretraining"]
    assert plain.flags["init"] == "a bert" and plain.flags["config"] == "base"
    [published] = calls_of(
        AblationRun("4", Row({"gap": 4}), 0, tmp_path), replace(config, init="x.bin", bert=None), None
    )
    assert (published.flags["init"], published.flags["config"]) == ("x.bin", "base")


def begin(call, **flags) -> None:
    """The run directory of a command that was begun with these flags, and otherwise as it is given."""
    write_json(call.out / "config.json", {"flags": call.flags | flags})
    write_json(call.out / "checkpoints" / "step-00000001" / "checkpoint.json", {"step": 1, "score": None})


NO_PRETRAINING = [SUITES["table10"]["no CC pretraining"]]


def sizes_of(run) -> dict:
    return json.loads((run / "config.json").read_text())["model"]


def started(plain: PlainWeights, feature_size: int, seed=0) -> tuple[ModelConfig, dict]:
    """(sizes, weights) of what finetune.mt begins with."""
    write_json(plain.flags["config"], plain.sizes.to_dict())
    found = choose_source(plain.flags["init"], plain.flags["config"], plain.flags.get("tokenizer"), ["a"], feature_size)
    torch.manual_seed(seed)
    model = TaskModel(found.sizes, {})
    found.load(model)
    return found.sizes, model.state_dict()


def test_without_pretraining_a_model_of_the_same_size_is_random(narrow, tmp_path):
    run, sizes = narrow, sizes_of(narrow)
    config = AblateConfig(suite="table10", init=str(run), out=str(tmp_path))
    plain = plain_weights(config, NO_PRETRAINING)
    assert plain.flags["init"] == "scratch" and "random weights, model configuration of" in plain.text
    found, weights = started(plain, sizes["v_feature_size"])
    assert found.to_dict() == sizes | {"task_tokens": 20}
    theirs = load_file(best_checkpoint(run) / "model.safetensors")
    same = [name for name in weights if weights[name].dim() > 1 and name in theirs]
    assert len(same) > 20 and all(weights[name].shape == theirs[name].shape for name in same)
    assert not any(torch.equal(weights[name], theirs[name]) for name in same)


@pytest.mark.parametrize("named", [True, False], ids=["--bert", "of the pretraining"])
def test_without_pretraining_a_model_of_the_same_size_has_berts_weights(narrow, tmp_path, named):
    run, sizes = narrow, sizes_of(narrow)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    torch.manual_seed(7)
    bert = BertModel(BertConfig(**{name: sizes[name] for name in (*names, "max_position_embeddings")}))
    bert.save_pretrained(tmp_path / "bert")
    shutil.copy(run / "tokenizer.json", tmp_path / "bert")
    shutil.copytree(run, tmp_path / "run")
    if not named:
        stored = json.loads((run / "config.json").read_text())
        stored["flags"]["bert"] = str(tmp_path / "bert")
        write_json(tmp_path / "run" / "config.json", stored)
    config = AblateConfig(suite="table10", init=str(tmp_path / "run"), out=str(tmp_path))
    plain = plain_weights(replace(config, bert=str(tmp_path / "bert") if named else None), NO_PRETRAINING)
    assert plain.flags["init"] == str(tmp_path / "bert") and "from the BERT " in plain.text
    found, weights = started(plain, sizes["v_feature_size"])
    assert found.to_dict() == sizes | {"task_tokens": 20}
    theirs = bert.state_dict()
    torch.testing.assert_close(
        weights["encoder.text_embedding.word.weight"], theirs["embeddings.word_embeddings.weight"]
    )
    up = "encoder.layer.1.intermediate.dense.weight"
    torch.testing.assert_close(weights["encoder.text_layers.1.feed_forward.up.weight"], theirs[up])
    pretraining = load_file(best_checkpoint(run) / "model.safetensors")["encoder.image_layers.0.output.weight"]
    assert not torch.equal(weights["encoder.image_layers.0.output.weight"], pretraining)


def test_a_bert_of_the_hub_is_its_folder_in_the_cache(tmp_path, monkeypatch):
    cached = tmp_path / "snapshot"
    cached.mkdir()
    for name in ("config.json", "pytorch_model.bin", "vocab.txt"):
        (cached / name).touch()
    found = {name: str(cached / name) for name in ("config.json", "pytorch_model.bin", "vocab.txt")}
    monkeypatch.setattr("pretrain.pretrained.hf_bert._from_hub", lambda name, file: found.get(file))
    assert bert_folder("bert-base-uncased") == str(cached) and bert_folder(str(tmp_path)) == str(tmp_path)


def test_flags_without_a_use_and_weights_that_are_not_there_are_refused(narrow, tmp_path):
    config = AblateConfig(suite="table11", init=str(narrow), out=str(tmp_path), bert="bert")
    with pytest.raises(UserError, match="--bert bert: none of the rows of table11 are initialised from a BERT"):
        plain_weights(config, [Row()])
    with pytest.raises(UserError, match="--init nowhere: no such file"):
        plain_weights(replace(config, init="nowhere"), NO_PRETRAINING)
    with pytest.raises(UserError, match=r"--config base: .* is a run with its own configuration"):
        plain_weights(replace(config, config="base"), NO_PRETRAINING)


def test_a_row_without_pretraining_is_not_mixed_with_another_size(narrow, pretrained, tmp_path):
    """Where --init has been trained anew with other sizes under the same name."""
    init, row = tmp_path / "init", NO_PRETRAINING[0]
    run = AblationRun("no CC pretraining", row, 0, tmp_path / "table10" / "seed0")
    config = AblateConfig(suite="table10", init=str(init), out=str(tmp_path), data=str(tmp_path))
    shutil.copytree(narrow, init)
    prepare_suite(config, [run])
    shutil.rmtree(init)
    shutil.copytree(pretrained, init)
    _, plain, finished = prepare_suite(config, [run])  # nothing was begun with the sizes that it had
    assert json.loads((tmp_path / "table10" / "model.json").read_text()) == plain.sizes.to_dict()
    assert finished == [False]
    begin(calls_of(run, config, plain)[0])
    assert prepare_suite(config, [run])[1] == plain
    shutil.rmtree(init)
    shutil.copytree(narrow, init)
    with pytest.raises(UserError, match=r"model\.json: model configuration differs from --init .*; give another --out"):
        prepare_suite(config, [run])


def test_a_failed_run_is_told_with_its_log(world, tmp_path, run_command):
    flags = ["--suite", "table11", "--data", world, "--out", tmp_path, "--init", "nowhere", "--seeds", 1]
    status, _, err = run_command("finetune.ablate", *flags)
    assert status == 2 and "mt.log: python -m finetune.mt ended with status 2" in err
    assert "--init nowhere: no such file or directory" in err


def test_a_suite_goes_on_with_the_rate_that_it_was_begun_with(tmp_path):
    """Whatever the default is by then; runs that were begun at two rates, or on two data sets, are no table."""
    config = AblateConfig(suite="table11", data="data", init="weights", iterations=3)
    runs = [AblationRun("row", Row(), seed, tmp_path / str(seed)) for seed in range(3)]
    assert as_begun(runs, config, None) == config
    for run, rate in zip(runs[:2], (4.0, 8.0), strict=True):
        [call] = calls_of(run, config, None)
        write_json(run.out / "config.json", {"flags": call.flags | {"lr_scale": rate}})
        assert as_begun(runs, config, None) == config  # without a checkpoint there is nothing to go on with
    for run, rate in zip(runs[:2], (4.0, 8.0), strict=True):
        begin(calls_of(run, config, None)[0], lr_scale=rate)
    assert as_begun(runs[::2], config, None) == replace(config, lr_scale=4.0)
    for asked in (config, replace(config, lr_scale=8.0), replace(config, iterations=None)):
        with pytest.raises(UserError, match=r"was run with --(lr_scale|iterations)"):
            as_begun(runs, asked, None)


@pytest.mark.parametrize("name", ["data", "init", "clean", "config", "precision", "device", "iterations"])
def test_runs_of_other_flags_are_not_mixed_into_a_table(tmp_path, name):
    config, [run] = AblateConfig(suite="table11"), [AblationRun("8", Row({"gap": 8}), 0, tmp_path)]
    begin(*calls_of(run, config, None))
    assert as_begun([run], config, None) == config
    other = 9 if name == "iterations" else "other"
    with pytest.raises(UserError, match=rf"mt: was run with --{name} .*, not with {other}; give the same flags"):
        as_begun([run], replace(config, **{name: other}), None)
    shutil.rmtree(run.out / "checkpoints")  # to save space, of a run that is finished
    write_json(run.out / "result.json", {})
    with pytest.raises(UserError, match=f"was run with --{name} "):
        as_begun([run], replace(config, **{name: other}), None)
    with pytest.raises(UserError, match="was run with --gap 8, not with 16"):
        as_begun([AblationRun("8", Row({"gap": 16}), 0, tmp_path)], config, None)


def test_runs_of_earlier_defaults_are_not_mixed_into_a_table(tmp_path):
    """Flags that the suite does not set have the defaults of their time."""
    config, [run] = AblateConfig(suite="table11"), [AblationRun("8", Row({"gap": 8}), 0, tmp_path)]
    [call] = calls_of(run, config, None)
    begin(call, clip=MtConfig.clip, workers=17, lr_scale=8.0)
    assert as_begun([run], config, None) == replace(config, lr_scale=8.0)
    begin(call, clip=0.5)
    with pytest.raises(UserError, match=rf"was run with --clip 0\.5, not with {MtConfig.clip}"):
        as_begun([run], config, None)


@pytest.mark.parametrize("name", ["bert", "config", "epochs", "precision"])
def test_pretraining_of_other_flags_is_not_gone_on_with(tmp_path, name):
    config, run = (
        AblateConfig(suite="pretraining"),
        AblationRun("row", SUITES["pretraining"]["all pairs, overlap"], 0, tmp_path),
    )
    begin(calls_of(run, config, None)[0], epochs=20)
    assert as_begun([run], config, None) == replace(config, epochs=20)
    with pytest.raises(UserError, match=f"pretrain: was run with --{name} "):
        as_begun([run], replace(config, **{name: 9 if name == "epochs" else "other"}), None)


def test_copied_runs_with_other_inputs_or_without_their_files_are_refused(tmp_path):
    outs, started = [tmp_path / name / "mt" for name in "abc"], {"kind": "ST", "run": "weights", "sha256": "1"}
    for out in outs:
        write_json(out / "config.json", {"flags": {}, "content": {"vqa": ["x"]}, "start": started})
        write_json(out / "result.json", {})
        (out / "values.npz").touch()
    check_same_inputs(outs)
    other = {"flags": {}, "content": {"vqa": ["y"], "gqa": ["z"]}, "start": started}
    write_json(outs[1] / "config.json", other)
    with pytest.raises(UserError, match=r"b.mt: data of vqa differ from those of .*a.mt; copy them from one machine"):
        check_same_inputs(outs)
    write_json(outs[1] / "config.json", {"flags": {}, "start": started | {"sha256": "2"}})
    with pytest.raises(UserError, match=r"b.mt: initial weights weights differ from those of"):
        check_same_inputs(outs)
    write_json(outs[1] / "config.json", {"flags": {}, "start": {"kind": "ST", "run": "others", "sha256": "2"}})
    check_same_inputs(outs)
    (outs[2] / "values.npz").unlink()
    with pytest.raises(
        UserError, match=r"c.mt: has result.json without values.npz; copy config.json, values.npz, result"
    ):
        check_same_inputs(outs)


def test_shares_have_every_run_once():
    for parts in (1, 3):
        shares = [own_share(AblateConfig(suite="table10", share=f"{k}/{parts}"), 8) for k in range(1, parts + 1)]
        assert sorted(place for share in shares for place in share) == list(range(8))
    for share in ("0/2", "3/2", "2", "a/b", "1/0"):
        with pytest.raises(UserError, match=f"--share {share}: should be K/N"):
            own_share(AblateConfig(suite="table10", share=share), 8)


def test_rows_without_g4_need_tasks_of_it_and_others(world, run_command, tmp_path):
    flags = ("--suite", "table12", "--data", world, "--out", tmp_path, "--tasks", "g1,g3")
    status, _, err = run_command("finetune.ablate", *flags)
    assert status == 2 and "--tasks g1,g3: rows without G4 need tasks of G4 and of other groups" in err


@pytest.mark.slow
def test_methods_against_interference_are_compared_on_two_machines(world, pretrained, tmp_path, run_command):
    """Each trains its share; the second one gets the small files of the first one's runs, in a folder elsewhere."""
    small = ("config.json", "result.json", "values.npz")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "world").symlink_to(world)
        (tmp_path / name / "pretrain").symlink_to(pretrained)

    def ablate(machine: str, share: str) -> tuple[int, str, str]:
        folder = tmp_path / machine
        flags = ["--suite", "interference", "--rows", "sum", "--tasks", "refcoco,nlvr2", "--lr_scales", "4,8"]
        flags += ["--seeds", 1, "--iterations", 2, "--data", folder / "world", "--init", folder / "pretrain"]
        return run_command("finetune.ablate", *flags, "--out", folder / "ablate", "--share", share)

    status, out, err = ablate("a", "1/2")
    assert (status, err) == (0, "") and "interference: 4 runs, 0 of them already finished" in out
    assert "2 runs of other shares are not finished; copy their results here and repeat this command" in out
    for path in [path for path in (tmp_path / "a" / "ablate").rglob("*") if path.name in small]:
        place = tmp_path / "b" / path.relative_to(tmp_path / "a")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    shutil.rmtree(tmp_path / "a")
    status, out, err = ablate("b", "1/1")
    assert (status, err) == (0, "") and "interference: 4 runs, 2 of them already finished" in out
    table = (tmp_path / "b" / "ablate" / "interference" / "table.txt").read_text()
    assert "in the table: a step per task, sum" in table and table.count("learning rate x") == 4
    assert "difference of the MT score by training with G4, over the other tasks\na step per task " in table
    rows = [line.split() for line in table.partition("cost of a run")[2].splitlines()]
    steps = {" ".join(row[:-8]): (int(row[-8]), int(row[-5])) for row in rows if row[-1:] == ["s"]}
    assert steps == {
        "a step per task": (4, 4),
        "sum": (2, 4),
        "a step per task, without G4": (2, 2),
        "sum, without G4": (2, 2),
    }
    seeds = {
        json.loads(path.read_text())["flags"]["seed"] for path in (tmp_path / "b").rglob("screening/*/mt/config.json")
    }
    assert seeds == {1000} and not (tmp_path / "b" / "ablate" / "interference" / "sum" / "seed1000").exists()
    status, again, _ = ablate("b", "1/1")
    assert status == 0 and "interference: 4 runs, 4 of them already finished" in again and table in again


ABLATE = ("-m", "finetune.ablate")


@pytest.mark.slow
def test_under_torchrun_every_run_takes_all_ranks(world, pretrained, tmp_path):
    """Two runs one after another in one store of torchrun's, to the weights that one process comes to."""
    flags = ["--suite", "table11", "--data", world, "--init", pretrained, "--iterations", 2, "--rows", "4"]
    flags += ["--precision", "float64", "--device", "cpu"]
    one_thread = ("--jobs", os.cpu_count() or 1)
    alone = python("finetune.ablate", *flags, "--seeds", 1, "--out", tmp_path / "alone", *one_thread)
    assert alone.returncode == 0, alone.stderr
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, *ABLATE)
    done = python(*launcher, *flags, "--seeds", 2, "--out", tmp_path / "torchrun")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("table11: 2 runs") == 1 and "2 of 2: 4, seed 1: MT score" in done.stdout
    logs = sorted(path.name for path in (tmp_path / "torchrun" / "table11" / "4" / "seed0").glob("*.log"))
    assert logs == ["mt-rank1.log", "mt.log"]
    folders = [tmp_path / name / "table11" / "4" / "seed0" / "mt" for name in ("alone", "torchrun")]
    one, two = (load_file(newest_checkpoint(folder) / MODEL) for folder in folders)
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=0, atol=1e-9)


def test_a_failure_under_torchrun_is_said_once_and_ends_all(world, tmp_path):
    flags = ["--suite", "table11", "--data", world, "--init", "nowhere", "--out", tmp_path, "--rows", "4"]
    results = finish(start_ranks(2, *flags, script=ABLATE), 600)
    assert [status for status, _, _ in results] == [2, 2]
    assert "mt.log: python -m finetune.mt ended with status 2: error: --init nowhere" in results[0][2]
    assert results[1][2] == ""
    results = finish(start_ranks(2, *flags, "--jobs", 2, script=ABLATE), 600)
    assert [status for status, _, _ in results] == [2, 2]
    assert "--jobs 2: under torchrun every run uses all ranks" in results[0][2]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sigterm_stops_the_run_that_is_under_way_with_a_checkpoint(world, pretrained, tmp_path, ranks):
    flags = ["--suite", "table11", "--data", world, "--init", pretrained, "--iterations", 5000, "--seeds", 1]
    processes = start_ranks(ranks, *flags, "--out", tmp_path, "--rows", "4", script=ABLATE)
    out, until = tmp_path / "table11" / "4" / "seed0" / "mt", time.monotonic() + 600
    while not (out / "metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.1)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [status for status, _, _ in finish(processes, 600)] == [128 + signal.SIGTERM] * ranks
    assert newest_checkpoint(out) and not (out / "result.json").exists()


def made_run(folder, seed, values, per_image=1) -> AblationRun:
    """A finished run whose tasks have these values, of images with `per_image` examples each."""
    run = AblationRun("row", Row(), seed, folder)
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
        difference, (low, high), _ = compare_rows(row, [made_run(folder / "full", 0, base, per_image)])
        assert difference == pytest.approx(np.mean([of.mean() for of in gains.values()]))
        widths.append(high - low)
    assert widths[0] == pytest.approx(widths[1]) and widths[1] == pytest.approx(widths[2] * 10**0.5, rel=0.1)


def test_runs_of_earlier_versions_have_intervals_over_examples_and_a_warning(tmp_path):
    runs = [made_run(tmp_path / name, 0, {"a": np.linspace(0, 1, 20)}, 5) for name in ("row", "full")]
    for run in runs:
        np.savez(run.out / "values.npz", a=np.load(run.out / "values.npz")["a"])
    with pytest.warns(UserWarning, match="no image clusters of a .* intervals are over examples and too narrow"):
        assert compare_rows(*([run] for run in runs)) == (0.0, (0.0, 0.0), 1.0)


def test_one_task_and_seed_have_no_t_test(tmp_path):
    one, other = ([made_run(tmp_path / name, 0, {"a": np.full(9, value)})] for name, value in (("x", 0.5), ("y", 0.25)))
    line = compare_rows(one, other).line("x")
    assert " ".join(line.split()) == "x +25.00% (+25.00% to +25.00%) no t-test of one value"


def test_rows_are_compared_example_by_example(tmp_path):
    """An effect far smaller than the spread of examples shows, because the same examples are paired."""
    rng = np.random.default_rng(0)
    base = {name: (rng.random(500) < 0.5).astype(float) for name in "abcd"}
    rows = {"full": [], "row": []}
    for seed in range(3):
        for row, gain in (("full", 0.0), ("row", 0.02)):
            values = {name: value + gain * (rng.random(500) < 0.9) for name, value in base.items()}
            rows[row].append(made_run(tmp_path / row / str(seed), seed, values))
    difference, (low, high), p = compare_rows(rows["row"], rows["full"])
    assert difference == pytest.approx(0.018, abs=0.001) and 0.016 < low < difference < high < 0.02 and p < 1e-6
    values = {row: [np.load(one.out / "values.npz") for one in runs] for row, runs in rows.items()}
    a, b = ([of_run[name].mean() for of_run in values[row] for name in "abcd"] for row in ("row", "full"))
    assert p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert compare_rows(rows["full"], rows["full"]) == (0.0, (0.0, 0.0), 1.0)
