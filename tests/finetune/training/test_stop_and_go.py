"""Stop-and-go against the published controller's traces and a second, obvious version; regimes."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.training.stop_and_go import StopAndGo
from finetune.training.task_schedulers import REGIMES
from shards.common.errors import UserError

TRACES = json.loads((Path(__file__).parents[2] / "parity" / "stop_and_go.json").read_text())


@pytest.mark.parametrize("trace", TRACES, ids=range(len(TRACES)))
def test_states_are_the_published_ones(trace):
    state = StopAndGo()
    assert [(state.observe(score), state.stopped)[1] for score in trace["scores"]] == trace["in_stop"]


def obvious(scores: list[float]) -> list[bool]:
    """From the beginning for every score: what the state is after it, by looking back over the whole history."""
    stopped, changes, states = False, [-10], []  # changes: evaluations at which it was paused (again) or resumed
    for now, score in enumerate(scores):
        best, better = None, []
        for one in scores[: now + 1]:
            better.append(best is None or one > best * 1.001)
            best = one if better[-1] else best
        since = range(max(0, changes[-1] + 2), now + 1)  # the one after a change is forgiven
        bad_run = 0
        for n in since:
            bad_run = 0 if better[n] else bad_run + 1
        if bad_run >= 2:
            stopped, changes = True, [*changes, now]
        elif stopped and score < best * 0.995:
            stopped, changes = False, [*changes, now]
        states.append(stopped)
    return states


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.5, 0.5002, 0.501, 0.4974, 0.49])), max_size=40))
def test_states_are_those_of_an_obvious_version(scores):
    scores = [abs(score) for score in scores]
    state = StopAndGo()
    assert [(state.observe(score), state.stopped)[1] for score in scores] == (obvious(scores) if scores else [])


def test_a_task_that_never_improves_stops_and_one_that_falls_goes_again():
    state = StopAndGo()
    assert state.observe(0.6) is None and state.observe(0.6) is None
    assert state.observe(0.6).startswith("paused: 0.6000 is the second consecutive score")
    assert state.observe(0.598) is None and state.stopped  # a drop of less than half a percent of the best
    assert state.observe(0.5).startswith("resumed: 0.5000 has dropped below 0.6000") and not state.stopped


def test_what_is_kept_is_all_there_is():
    for cut in range(1, 39):
        one, other = StopAndGo(), StopAndGo()
        for score in TRACES[0]["scores"][:cut]:
            one.observe(score)
        other = StopAndGo(**json.loads(json.dumps(one.to_dict())))
        rest = TRACES[0]["scores"][cut:]
        assert [(one.observe(s), one.stopped) for s in rest] == [(other.observe(s), other.stopped) for s in rest]


NAMES, GROUPS, SIZES = ("a", "b", "c", "d"), ("G1", "G1", "G3", "G4"), (100, 1600, 400, 900)


def regime(name: str, gap: int = 4, iterations: int = 800, groups=GROUPS, first_phase: float = 0.25):
    return REGIMES[name](NAMES, groups, SIZES, iterations, gap, first_phase, 0)


@pytest.mark.parametrize("gap", [1, 4, 8, 16])
def test_a_stopped_task_trains_in_every_gapth_iteration(gap):
    dsg = regime("dsg", gap)
    for score in (0.5, 0.5, 0.5):
        change = dsg.observe("b", score)
    assert change.startswith("paused") and not dsg.active("b") and dsg.active("a")
    trained = [iteration for iteration in range(100) if "b" in dsg.training_tasks(iteration)]
    assert trained == list(range(0, 100, gap))
    assert all([name for name in dsg.training_tasks(n) if name != "b"] == ["a", "c", "d"] for n in range(100))
    again = regime("dsg", gap)
    again.restore(json.loads(json.dumps(dsg.state())))
    assert [again.training_tasks(n) for n in range(20)] == [dsg.training_tasks(n) for n in range(20)]


def test_a_checkpoint_without_the_state_of_a_task_is_refused():
    dsg = regime("dsg")
    state = dsg.state()
    del state["b"]
    with pytest.raises(KeyError):
        regime("dsg").restore(state)


@pytest.mark.parametrize("name", [name for name in REGIMES if name != "dsg"])
def test_other_regimes_have_no_state(name):
    other = regime(name)
    assert all(other.observe("a", 0.5) is None and other.active("a") for _ in range(9))
    assert other.state() == {} and other.restore({}) is None


def test_round_robin_never_stops():
    everybody = regime("round_robin")
    assert all(everybody.observe("a", 0.5) is None for _ in range(9))
    assert all(everybody.training_tasks(n) == list(NAMES) for n in range(20))


@pytest.mark.parametrize(("name", "first"), [("curriculum", "c"), ("anti_curriculum", "ab")])
@pytest.mark.parametrize(("first_phase", "alone"), [(0.25, 200), (0.1, 80), (1.0, 800)])
def test_a_curriculum_begins_with_one_group_alone(name, first, first_phase, alone):
    """The fastest-converging group first, G3; in the anti-curriculum the slowest, G1."""
    curriculum = regime(name, first_phase=first_phase)
    assert all(curriculum.training_tasks(n) == list(first) for n in range(alone))
    assert all(curriculum.training_tasks(n) == list(NAMES) for n in range(alone, 800))


@pytest.mark.parametrize(
    ("groups", "words"), [(("G2",) * 4, "none of the tasks is"), (("G3",) * 4, "all of the tasks are")]
)
def test_a_curriculum_without_its_first_group_or_without_others_is_refused(groups, words):
    with pytest.raises(UserError, match=f"trains G3 first, and {words} of that group"):
        REGIMES["curriculum"].check(groups)
    for name in ("dsg", "round_robin", "by_size", "smallest_first"):
        REGIMES[name].check(groups)


@pytest.mark.parametrize(("name", "order"), [("smallest_first", "acdb"), ("largest_first", "bdca")])
def test_tasks_enter_by_size_over_the_first_half(name, order):
    entering = regime(name)
    first = {task: min(n for n in range(800) if task in entering.training_tasks(n)) for task in NAMES}
    assert sorted(first, key=first.get) == list(order)
    assert [first[task] for task in order] == [0, 100, 200, 300]
    assert all(set(entering.training_tasks(n)) == set(NAMES) for n in range(400, 800))


@pytest.mark.parametrize(("name", "power"), [("by_size", 1), ("by_sqrt_size", 0.5)])
def test_tasks_are_drawn_in_proportion(name, power):
    drawn = [task for n in range(3000) for task in regime(name).training_tasks(n)]
    assert len(drawn) == 4 * 3000
    shares = np.array([drawn.count(task) for task in NAMES]) / len(drawn)
    expected = np.array(SIZES, float) ** power
    assert np.abs(shares - expected / expected.sum()).max() < 0.02
    assert regime(name).training_tasks(17) == regime(name).training_tasks(17)
