"""The GPU record: what its stages write, the page that is made of it, and the predictions for more GPUs."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest
import torch
from launching import finish
from torch.utils.flop_counter import FlopCounterMode

from shards.common.errors import UserError

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("*.jsonl"))


@pytest.fixture(scope="module")
def benchmark_module():
    """Imports a script of benchmarks/ by its name; each of them writes sys.path[0]."""
    before = list(sys.path)

    def load(name: str):
        sys.path.insert(0, "")
        return importlib.import_module(f"benchmarks.{name}")

    sys.path.insert(0, str(ROOT))
    yield load
    sys.path[:] = before


# ---- stages ----------------------------------------------------------------------------------------------------------

COMMON = {"stage", "device", "torch", "commit"}
KEYS = {
    "machine": {"matrix_tflops", "copy_gb_s", "product", "forward_tflops", "cuda", "memory_gb", "cpus"},
    "operators": {"backends", "self_check", "operator", "us", "gb_s", "copy_gb_s"},
    "attention": {"shape", "backend", "mask", "forward_backward_us"},
    "step": {"way", "batch_size", "ms", "host_ms", "pairs_per_second", "mfu", "peak_gb"},
    "agree": {"way", "loss_error", "gradient_error"},
    "resume": {"way", "repeated_equal", "resumed_equal", "save_s", "restore_s"},
    "nccl": {"replicated", "ms", "host_ms", "batch_size", "start_s"},
    "detector": {"precision", "layout", "images_per_second", "outside_backbone", "host_ms"},
    "fp16": {"precision", "losses", "skipped", "scale"},
    "memory": {"flags", "peak_gb", "ms"},
    "tasks": {"task", "examples", "text_rows", "image_rows", "ms", "host_ms", "mfu", "peak_gb"},
    "shards": {"pairs", "seconds"},
    "program": {"way", "pairs_per_second", "data_wait_share", "steps", "whole_run_s", "workers", "peak_gb"},
}
SLOW = ("fp16", "memory", "tasks", "shards", "program")


def dry_run(folder: Path, *stages: str) -> list[dict]:
    """The lines that the stages write without a GPU."""
    path = folder / "record.jsonl"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "SCRATCH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "benchmarks/gpu_record.py", *stages, "--record", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_lines(lines: list[dict], stages) -> None:
    for stage in stages:
        found = [line for line in lines if line["stage"] == stage]
        assert found and all(line.keys() >= COMMON for line in found), stage
        assert all(line["device"] == "cpu (dry run)" for line in found)
        assert KEYS[stage] <= {key for line in found for key in line}, stage
        assert stage == "attention" or not any("failed" in line for line in found), stage


def test_a_dry_run_writes_the_keys_of_each_stage(tmp_path):
    stages = [stage for stage in KEYS if stage not in SLOW]
    lines = dry_run(tmp_path, *stages)
    check_lines(lines, stages)
    assert all(line["resumed_equal"] and line["repeated_equal"] for line in lines if line["stage"] == "resume")
    assert all(line["gradient_error"] < 0.05 for line in lines if line["stage"] == "agree")


@pytest.mark.slow
def test_a_dry_run_of_the_longer_stages_writes_their_keys(tmp_path):
    lines = dry_run(tmp_path, *SLOW)
    check_lines(lines, SLOW)
    assert len([line for line in lines if line["stage"] == "tasks"]) == 13


def test_every_stage_with_lines_has_expected_keys_and_an_identity(benchmark_module):
    stages = benchmark_module("gpu_record").STAGES
    assert set(KEYS) == set(stages) - {"packed_attention", "compiled_blocks", "compiled_encoder"}  # these need a GPU
    assert set(stages) <= set(benchmark_module("gpu_table").IDENTITY)


def test_useful_flops_are_those_of_the_matrix_products(benchmark_module):
    """Against torch's counter, with full images and captions of one length, attention counted apart."""
    step = benchmark_module("gpu_stages.pretraining_step")
    from benchmarks.pairs import random_batch
    from pretrain.models.model_config import TINY
    from pretrain.objective.pretraining_loss import Objective

    engine = step.make_engine("float32", 0.0, torch.device("cpu"))
    batch = random_batch(4, TINY, words=12, mean_length=10**6)
    assert (batch.lengths == 12).all() and batch.valid.all()
    objective = Objective(mask_id=4, ordinary_ids=torch.arange(5, TINY.vocab_size))
    batch.predicted_tokens, batch.predicted_regions = objective.count_predictions(batch)
    assert batch.predicted_tokens and batch.predicted_regions
    with FlopCounterMode(display=False) as counter:
        engine.replica(batch, [batch.predicted_tokens, batch.predicted_regions, len(batch)])[0].backward()
    counts = counter.get_flop_counts()["Global"]
    matrices = sum(n for operator, n in counts.items() if str(operator) in ("aten.mm", "aten.addmm"))
    expected = step.useful_flops(
        TINY, batch.total_tokens, batch.image_row_count, batch.predicted_tokens, batch.predicted_regions
    )
    assert matrices == pytest.approx(expected, rel=0.05)


# ---- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(benchmark_module, tmp_path):
    """page(lines, ...) -> the page of records with these lines, each a dict without device and commit, or text."""

    def make(*records: list) -> str:
        paths = []
        for number, lines in enumerate(records, 1):
            paths.append(tmp_path / f"gpu-2026-01-0{number}.jsonl")
            common = {"device": "GPU A", "torch": "2.9", "commit": "abc1234"}
            texts = [line if isinstance(line, str) else json.dumps(common | line) for line in lines]
            paths[-1].write_text("\n".join(texts) + "\n")
        return benchmark_module("gpu_table").page(paths, benchmark_module("gpu_record").STAGES)

    return make


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the tables of a section, without the lines between heading and rows."""
    text = page.split(f"### {title}\n", 1)[1].split("\n### ")[0].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in cells if set("".join(row)) != {"-"}]


def step_line(way: str, size: int, ms: float, **more) -> dict:
    return {"stage": "step", "way": way, "batch_size": size, "ms": ms, "pairs_per_second": size / ms * 1e3} | more


def test_figures_are_in_their_columns(page):
    text = page(
        [
            {"stage": "machine", "matrix_tflops": 781.59, "copy_gb_s": 2977.1, "cuda": "13.0", "cpus": 16},
            step_line("eager", 512, 95.198, host_ms=93.9, mfu=0.18234, launches=2345, peak_gb=15.916),
            {"stage": "program", "way": "eager", "pairs_per_second": 4818.0, "data_wait_share": 0.00795},
            {"stage": "agree", "way": "bf16", "loss_error": 4.386e-5, "gradient_error": 0.0125},
            {"stage": "resume", "way": "eager", "repeated_equal": True, "resumed_equal": False},
            {"stage": "fp16", "precision": "fp16", "losses": [15.75019, 14.9], "skipped": 1, "scale": 65536.0},
            {"stage": "fp16", "precision": "bf16", "residual": "precision", "losses": [15.74993]},
            {"stage": "memory", "flags": "--precision bf16", "peak_gb": 15.232, "ms": 86.84},
            {"stage": "tasks", "task": "vqa", "examples": 128, "ms": 40.26, "mfu": 0.3},
            {"stage": "tasks", "task": "all twelve", "examples": 2000, "ms": 700.4, "peak_gb": 30.0},
            {"stage": "attention", "shape": [2, 3], "backend": "math", "mask": "bool", "forward_backward_us": 2053.4},
            {"stage": "attention", "shape": [2, 3], "backend": "cudnn", "mask": "bool", "failed": "no | plan"},
            {"stage": "operators", "backends": {"CUDA": "compiled"}, "self_check": True},
            {"stage": "operators", "operator": "mask_overlapping", "us": 2.281},
            {"stage": "nccl", "replicated": True, "batch_size": 64, "ms": 80.0},
            {"stage": "detector", "precision": "bf16", "images_per_second": 12.34, "outside_backbone": 0.251},
        ]
    )
    assert "| date | 2026-01-01 |" in text and "| commits | abc1234 |" in text
    assert (
        "| bf16 matrix rate, TFLOP/s | 782 |" in text and "| copy bandwidth (read and written), GB/s | 2,980 |" in text
    )
    assert rows(text, "Training step") == [
        ["way", "pairs", "ms", "host ms", "pairs/s", "share of the matrix rate", "launches", "kernels, ms", "peak GB"],
        ["eager", "512", "95.2", "93.9", "5,380", "18.2%", "2,345", "–", "15.9"],
    ]
    # 31 million pairs / 4,818 pairs/s / 3,600 s = 1.787 hours
    assert rows(text, "Whole program")[1][:4] == ["eager", "4,820", "0.795%", "1.79"]
    assert rows(text, "Agreement with float32 on the CPU")[1] == ["bf16", "4.39e-05", "0.0125"]
    assert rows(text, "Resume")[1][:3] == ["eager", "yes", "no"]
    assert rows(text, "Loss by precision")[1:] == [
        ["fp16", "15.750", "14.900", "1", "65,536"],
        ["bf16 --residual precision", "15.750", "–", "–", "–"],
    ]
    assert rows(text, "Memory by flags")[1] == ["`--precision bf16`", "15.2", "86.8"]
    assert [row[0] for row in rows(text, "The twelve tasks")] == ["task", "vqa", "all twelve"]
    assert rows(text, "Attention backends of torch") == [
        ["batch x heads x queries x keys x width", "mask", "math", "cudnn"],
        ["2 x 3", "bool", "2,050", "failed"],
    ]
    assert "Implementation in use: compiled (CUDA). Self-check of the operators: passed." in text
    assert rows(text, "Operators")[1][:3] == ["mask_overlapping", "–", "2.28"]
    assert rows(text, "DistributedDataParallel over NCCL")[1][:3] == ["yes", "64", "80.0"]
    assert rows(text, "Detector")[1] == ["bf16", "–", "–", "12.3", "25.1%", "–"]
    assert r"| attention | shape 2 x 3, backend cudnn, mask bool | no \| plan |" in text


def test_a_later_line_replaces_an_earlier_one_of_the_same_device_and_keys(page):
    text = page(
        [step_line("eager", 512, 95.0), step_line("eager", 64, 80.0), {"stage": "agree", "precision": "bf16"} | ERRORS],
        [
            step_line("eager", 512, 70.0, commit="def5678"),
            step_line("eager", 512, 60.0, device="GPU B"),
            {"stage": "agree", "way": "bf16", "loss_error": 0.5, "gradient_error": 0.25},
        ],
    )
    first, second = text.split("## GPU A")[1].split("## GPU B")
    table = [(row[0], row[1], row[2], row[-1]) for row in rows(first, "Training step")[1:]]
    assert table == [("eager", "64", "80.0", "abc1234"), ("eager", "512", "70.0", "def5678")]
    assert rows(first, "Agreement with float32 on the CPU")[1:] == [["bf16", "0.500", "0.250"]]
    assert [row[2] for row in rows(second, "Training step")[1:]] == ["60.0"]
    assert "| commits | abc1234, def5678 |" in first and "| date | 2026-01-01, 2026-01-02 |" in first


ERRORS = {"loss_error": 0.1, "gradient_error": 0.1}


def test_failed_and_missing_stages_are_listed(page, benchmark_module):
    failure = {"stage": "nccl", "failed": "ValueError: no device"}
    text = page([step_line("eager", 512, 95.0), failure, {"stage": "tasks", "failed": "OutOfMemoryError: of 80 GB"}])
    assert ["nccl", "", "ValueError: no device"] in rows(text, "Failed")
    missing = text.split("### Not measured")[1]
    for stage in benchmark_module("gpu_record").STAGES:
        assert (f"- stage `{stage}`: not measured" in missing) == (stage not in ("step", "nccl", "tasks")), stage
    assert "- training step, way `--cuda_graph true`: not measured" in missing and "way `eager`" not in missing
    again = page([failure], [{"stage": "nccl", "replicated": False, "batch_size": 64, "ms": 80.0}])
    assert "no device" not in again and "No line of the records has a failure." in again


def test_lines_of_each_stage_with_no_further_key_make_a_page(page, benchmark_module):
    text = page([{"stage": stage} for stage in (*benchmark_module("gpu_table").IDENTITY, "another")])
    assert "- stage `another`: recorded, but has no table" in text


def test_records_of_a_dry_run_and_broken_lines_are_refused(page, benchmark_module):
    with pytest.raises(UserError, match="line 2: from a dry run on a CPU"):
        page([step_line("eager", 512, 95.0), step_line("eager", 6, 40.0, device="cpu (dry run)")])
    for broken in ('{"stage": "step", "dev', "[1]", '{"stage": "step"}'):
        with pytest.raises(UserError, match="line 1: not a JSON object"):
            page([broken])
    with pytest.raises(UserError, match="no record found"):
        benchmark_module("gpu_table").page([], ())


def test_the_committed_page_is_that_of_the_committed_records(tmp_path):
    """Make it again with `python benchmarks/gpu_record.py --table docs/gpu.md`."""
    command = (ROOT / "benchmarks" / "gpu_record.py", "--table", tmp_path / "gpu.md")
    [(status, _, err)] = finish([fork_server.start(*command, cwd=ROOT)])
    assert status == 0, err
    assert (tmp_path / "gpu.md").read_text(encoding="utf-8") == (ROOT / "docs/gpu.md").read_text(encoding="utf-8")


# ---- predictions for more GPUs ---------------------------------------------------------------------------------------

GRAPHED = "--residual precision --cuda_graph true"


@pytest.fixture
def scaling(benchmark_module):
    return benchmark_module("scaling")


def test_every_parameter_has_a_gradient(benchmark_module, scaling):
    """The predictions count the gradients of all parameters."""
    step = benchmark_module("gpu_stages.pretraining_step")
    engine, batch = step.make_engine("float32", 0.0, torch.device("cpu")), step.pretraining_batches(1, 4)[0]
    engine.replica(batch, [batch.predicted_tokens, batch.predicted_regions, len(batch)])[0].backward()
    assert all(parameter.grad is not None for parameter in engine.model.parameters())
    assert scaling.gradient_numbers() == 239_023_229


def test_all_reduce_by_hand(scaling):
    config = scaling.Config(nvlink_gb_s=100.0, nvlink_us=1.0, network_gb_s=10.0, network_us=10.0)
    assert scaling.all_reduce_ms(config, 1, 1e9, 10) == 0
    # 2 x 7/8 x 1 GB at 100 GB/s = 17.5 ms, and 10 calls of 14 steps of 1 us
    assert scaling.all_reduce_ms(config, 8, 1e9, 10) == pytest.approx(17.5 + 0.14)
    # 8 nodes: 2 x 7/8 x 0.125 GB at 10 GB/s = 21.875 ms more, and 10 calls of 14 steps of 10 us
    assert scaling.all_reduce_ms(config, 64, 1e9, 10) == pytest.approx(17.64 + 21.875 + 1.4)


def test_the_agreement_fits_what_was_measured(scaling):
    agreement = scaling.Agreement("log")
    assert agreement(1) == 0 and 20 < agreement(64) < 25
    for ranks, ms in scaling.AGREEMENT_MS.items():
        assert agreement(ranks) == pytest.approx(ms, abs=0.6)
    assert scaling.Agreement("linear")(512) > 10 * agreement(512)


def test_the_step_waits_for_the_slower_of_host_and_gpu(scaling):
    config = scaling.Config(overlap=0.5)
    eager = scaling.Way("eager", {512: 100.0, 64: 80.0}, {512: 60.0, 64: 80.0})
    graph = scaling.Way(GRAPHED, {512: 60.0, 64: 15.0}, {512: 1.0, 64: 1.0})
    one = scaling.predict(config, eager, 1, 512, 3000.0)
    assert (one.ms, one.exposed_ms, one.agreement_ms) == (100.0, 0.0, 0.0)
    several = scaling.predict(config, eager, 8, 64, 3000.0)  # the host decides
    assert several.ms == 80.0 + several.agreement_ms and several.exposed_ms < 1
    several = scaling.predict(config, graph, 8, 64, 3000.0)  # the agreement is hidden, the all-reduce is not
    assert several.ms == 15.0 + several.exposed_ms and several.exposed_ms > several.reduce_ms > 1
    assert several.pairs_per_second == pytest.approx(512e3 / several.ms)
    assert scaling.predict(config, eager, 64, 8, None).one_ms == pytest.approx(77.5)
    assert scaling.predict(config, scaling.Way("eager", {512: 1.0}, {512: 1.0}), 8, 64, None) is None


def test_the_report_of_predictions(scaling, tmp_path):
    lines = [step_line(way, size, ms, host_ms=ms) for way, size, ms in STEPS]
    path = tmp_path / "gpu-2026-01-01.jsonl"
    path.write_text("".join(json.dumps({"device": "GPU A", "commit": "abc"} | line) + "\n" for line in lines))
    text = "\n".join(scaling.report(scaling.Config(records=str(tmp_path))))
    assert "239,023,229 float32 numbers, 0.956 GB" in text and "one GPU A, bf16, commit abc" in text
    assert "--cuda_graph true: not measured, so nothing is predicted" in text
    eager, graph = text.split("eager: measured")[1].split(f"{GRAPHED}: measured")
    for part in (eager, graph):
        assert [line.split()[0] for line in part.splitlines() if line[:7].strip().isdigit()] == [
            "1",
            "8",
            "64",
            "512",
        ] * 2
    assert "too few batch sizes measured" in graph and "too few" not in eager
    with pytest.raises(UserError, match="--device GPU B: no record"):
        scaling.report(scaling.Config(records=str(tmp_path), device="GPU B"))
    with pytest.raises(UserError, match="no record of the stage step"):
        scaling.report(scaling.Config(records=str(tmp_path / "none")))


STEPS = (("eager", 512, 95.0), ("eager", 64, 80.0), (GRAPHED, 512, 50.0))
