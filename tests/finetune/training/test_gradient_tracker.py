"""The records of --track, on a tiny model in float64, against the measurement of finetune.interference."""

import json

import numpy as np
import pytest
import torch
from tiny_tasks import NAMES, tiny_parts, tiny_pass, tiny_tasks

from finetune.config import MtConfig
from finetune.gradients.interference_measurement import FixedBatches, measure
from finetune.gradients.task_gradients import TaskGradients, shared_parameters
from finetune.gradients.tracked_gradients import GRADIENTS_KIND, read_tracked
from finetune.training.gradient_tracker import MOST, SHARE, GradientTracker, default_interval
from finetune.training.model_setup import make_task_engine
from pretrain.engine.step import MetricSums
from shards.common.dist_info import ALONE

CPU = torch.device("cpu")


@pytest.fixture
def tracked():
    """(tasks, engine, tracker, fixed batches), after two steps of every task with dropout."""
    tasks = tiny_tasks(dropout=0.1)
    engine = make_task_engine(MtConfig(), ALONE, tiny_pass(tasks), 1e-3, 1e-3, None)
    for of_step in (*tiny_parts(tasks, 0), *tiny_parts(tasks, 1)):
        engine.step(0, of_step, MetricSums(), [4, 4, 4])
    batches = [[task.batch(seed) for seed in range(10, 13)] for task in tasks]
    gradients = TaskGradients(shared_parameters(engine.model).values(), len(tasks))
    return tasks, engine, GradientTracker(1, batches, [4, 4, 4], gradients), batches


def test_a_record_is_what_finetune_interference_measures(tracked):
    """Without dropout, and without the factors on the losses that are the tasks' learning rates."""
    tasks, engine, tracker, batches = tracked
    record = tracker.record(engine, CPU)
    slow = measure([FixedBatches(task, of) for task, of in zip(tasks, batches, strict=True)], 0, 0.1)
    assert record["tasks"] == list(NAMES) and record["parts"].keys() == slow.products.keys()
    np.testing.assert_allclose(record["loss"], slow.losses, rtol=1e-4)
    for part, found in record["parts"].items():
        similarity = np.array(found["similarity"], float)
        np.testing.assert_allclose(similarity, slow.similarities(part), rtol=1e-4, equal_nan=True)
        np.testing.assert_allclose(found["norm"], slow.norms(part), rtol=1e-4)
    for row, name in enumerate(NAMES):
        others = [other for other in range(3) if other != row]
        mean = slow.similarities("all")[:, row, others].mean()
        assert record[f"{name}/similarity"] == pytest.approx(mean, rel=1e-4)
        assert record[f"{name}/norm"] == pytest.approx(slow.norms("all")[:, row].mean(), rel=1e-4)


def test_a_record_changes_nothing(tracked):
    _, engine, tracker, _ = tracked
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    moments = [value.clone() for state in engine.optimizer.state.values() for value in state.values()]
    random = torch.get_rng_state()
    tracker.record(engine, CPU)
    assert all(torch.equal(value, before[name]) for name, value in engine.model.state_dict().items())
    after = [value for state in engine.optimizer.state.values() for value in state.values()]
    assert all(torch.equal(one, other) for one, other in zip(moments, after, strict=True))
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    assert torch.equal(torch.get_rng_state(), random) and engine.model.training


def test_the_default_interval_keeps_the_share_and_the_number_of_records():
    assert default_interval(record=384, iteration=704, iterations=150) == 55  # 384 / 55 / 704 = 1.0%
    assert default_interval(record=384, iteration=2000, iterations=40_000) == 200
    for record, iteration, iterations in ((384, 50, 9), (384, 2816, 1000), (8, 4000, 100_000)):
        every = default_interval(record, iteration, iterations)
        assert record / every / iteration <= SHARE and iterations / every <= MOST


def test_records_are_read_for_some_of_the_tasks(tracked, tmp_path):
    _, engine, tracker, _ = tracked
    record = tracker.record(engine, CPU)
    lines = [
        {"step": step, "kind": kind} | record
        for step, kind in ((5, GRADIENTS_KIND), (7, "train"), (10, GRADIENTS_KIND))
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + text[:50])  # the run was killed while it wrote a line
    found = read_tracked(tmp_path, ["third", "first"])
    assert found.steps == [5, 10] and found.seconds == pytest.approx(2 * record["seconds"])
    whole = np.array(record["parts"]["text"]["similarity"], float)
    np.testing.assert_array_equal(found.similarity["text"][1], whole[:, [2, 0]][:, :, [2, 0]])
    np.testing.assert_array_equal(found.norm["image"][0], np.array(record["parts"]["image"]["norm"])[:, [2, 0]])
    mean = found.over_training("text")
    assert np.isnan(mean[-1, 0, 0]) and mean[0, 0, 1] == pytest.approx(whole[0, 2, 0])
    assert read_tracked(tmp_path, ["first", "other"]) is None and read_tracked(tmp_path / "none", ["first"]) is None
