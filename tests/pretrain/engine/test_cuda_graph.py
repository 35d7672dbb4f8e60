"""A step through a CUDA graph: the same numbers as without, for batches of every size that its buffers hold.

The capture is played by a function that runs again what it was given; attention works on packed rows, as on a GPU, by
its plain torch version.
"""

import json
import os

import graph_on_cpu
import pytest
import torch
from data_sets import make_dataset
from launching import run_ranks
from training_step import OBJECTIVE, make_batch, make_engine, part_of

from pretrain.engine.cuda_graph import Capacities, GraphedPass
from pretrain.engine.step import MetricSums
from shards.common.dist_info import ALONE


@pytest.fixture
def on_rows(monkeypatch):
    graph_on_cpu.install(monkeypatch.setattr)


def batches():
    """Of different sizes, the first not the largest in anything but the number of pairs."""
    whole = make_batch(24)
    parts = [part_of(whole, slice(12)), part_of(whole, slice(12, 23)), part_of(whole, slice(3, 4))]
    parts[2].input_ids = parts[2].input_ids[:, : int(parts[2].lengths.max())]
    return parts


def losses_and_weights(graph: bool, rounds: int = 3):
    engine, losses = make_engine("float64", dropout=0.2), []
    if graph:
        engine.graph = GraphedPass(engine.replica, 12, 20, engine.scaler.scale)
    for number in range(rounds):
        for batch in batches():
            sums = MetricSums()
            engine.step(number, [batch], sums, (batch.predicted_tokens, batch.predicted_regions, len(batch)))
            losses.append(engine.replica.metrics(sums.pop_totals(ALONE)))
    return losses, engine


def test_losses_and_weights_are_those_without_a_graph(on_rows):
    expected, plain = losses_and_weights(False)
    found, graphed = losses_and_weights(True)
    assert len(found) == 9 and found[0]["loss"] > 1
    for mine, other in zip(found, expected, strict=True):
        assert mine == pytest.approx(other, rel=1e-9)
    for (name, mine), other in zip(graphed.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12, msg=name)


def test_a_batch_without_room_is_computed_without_the_graph(on_rows):
    """And finds no gradients of the step before."""
    engine, plain = make_engine("float64"), make_engine("float64")
    engine.graph = GraphedPass(engine.replica, 4, 20, engine.scaler.scale)
    small, large = part_of(make_batch(24), slice(4)), make_batch(24)
    for number, batch in enumerate((small, large, small)):
        for one in (engine, plain):
            one.step(number, [batch], MetricSums(), (batch.predicted_tokens, batch.predicted_regions, len(batch)))
        assert engine.graph.holds(batch) == (batch is small)
    for mine, other in zip(engine.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_weights_in_bf16_are_those_of_the_step_with_and_without_the_graph(on_rows):
    """At a rate so high that a step on the weights of the step before shows."""
    losses = []
    for graph in (True, False):
        engine = make_engine("bf16", dropout=0)
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.02
        if graph:
            engine.graph = GraphedPass(engine.replica, 4, 20, engine.scaler.scale)
        small, large = part_of(make_batch(24), slice(4)), make_batch(24)
        found = []
        for number, batch in enumerate((small, large, large, small)):
            sums = MetricSums()
            engine.step(number, [batch], sums, (batch.predicted_tokens, batch.predicted_regions, len(batch)))
            found.append(engine.replica.metrics(sums.pop_totals(ALONE))["loss"])
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # stale weights differ by a quarter
    assert abs(losses[1][1] - losses[1][2]) > 0.1 * losses[1][1]


def test_capacities_hold_what_they_were_made_for_and_no_more():
    batch = make_batch(24)
    room = Capacities.of(batch, 20, 20)
    assert room.hold(batch) and room.hold(part_of(batch, slice(5)))
    assert not room.hold(make_batch(25))
    buffers = room.buffers(batch)
    assert buffers.input_ids.shape == (24, 20) and buffers.features.shape == batch.features.shape
    longer = make_batch(24)
    longer.input_ids = torch.zeros(24, 21, dtype=torch.int64)
    assert not room.hold(longer)
    longer = make_batch(24)
    longer.predicted_tokens = room.predicted_tokens + 1
    assert not room.hold(longer)


def test_where_there_is_no_graph_the_flag_is_refused_before_anything_is_made(tmp_path, run_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_command("pretrain.run", "--cuda_graph", "true", "--device", "cpu")
    assert status == 2 and "--cuda_graph true: requires a GPU and --accumulate 1; the device is cpu" in err
    assert not (tmp_path / "data").exists()


def test_ranks_and_graphs_change_no_number(tmp_path):
    """Twelve steps with dropout on one process without a graph, and with graphs on one and on three ranks."""
    make_dataset(tmp_path / "data", (27, 17), classes=200)
    flags = ("--data", tmp_path / "data", "--epochs", 2, "--batch_size", 8, "--dropout", 0.1, "--precision", "float64")
    flags = (*flags, "--log_every", 1, "--workers", 0, "--validation_pairs", 4)
    script = (os.path.join(os.path.dirname(__file__), "../../graph_on_cpu.py"),)
    for name, ranks, graph in (("plain", 1, False), ("one", 1, True), ("three", 3, True)):
        results = run_ranks(ranks, *flags, "--cuda_graph", graph, "--out", tmp_path / name, script=script)
        assert {status for status, _, _ in results} == {0}, results
    runs = {}
    for name in ("plain", "one", "three"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        runs[name] = [(line["loss"], line.get("gradient_norm", 0.0)) for line in lines]
    assert len(runs["plain"]) > 10
    for name in ("one", "three"):
        for mine, other in zip(runs[name], runs["plain"], strict=True):
            assert mine == pytest.approx(other, rel=1e-9)


def test_a_rank_without_a_pair_has_no_gradient(on_rows):
    engine = make_engine("float64")
    engine.graph = GraphedPass(engine.replica, 12, 20, engine.scaler.scale)
    whole = make_batch(12)
    counts = (whole.predicted_tokens, whole.predicted_regions, len(whole))
    engine.step(0, [whole], MetricSums(), counts)
    none = part_of(whole, slice(0))
    assert engine.graph.holds(none)
    engine.graph(none, counts)
    assert all((p.grad == 0).all() for p in engine.model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_real_graph_on_a_gpu_gives_the_numbers_of_eager_steps(precision):
    from pretrain.models.precision import Precision
    from pretrain.objective.pretraining_pass import PretrainingPass

    def run(graph):
        engine, losses = make_engine("float32", dropout=0.2), []
        engine.model.to("cuda")
        engine.precision = Precision(precision, torch.device("cuda:0"))
        engine.scaler = engine.precision.scaler()
        engine.replica = PretrainingPass(engine.model, OBJECTIVE.to("cuda"), engine.precision)
        if graph:
            engine.graph = GraphedPass(engine.replica, 12, 20, engine.scaler.scale)
        for number in range(3):
            for batch in batches():
                sums = MetricSums()
                counts = (batch.predicted_tokens, batch.predicted_regions, len(batch))
                engine.step(number, [batch.to("cuda")], sums, counts)
                losses.append(engine.replica.metrics(sums.pop_totals(ALONE))["loss"])
        return losses

    # In bf16 the rounding of other shapes' products grows fast at this rate: the first three steps alone are compared.
    near, steps = (1e-4, 9) if precision == "float32" else (2e-2, 3)
    assert run(True)[:steps] == pytest.approx(run(False)[:steps], rel=near)
