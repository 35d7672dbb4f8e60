"""The cost of validation."""

from types import SimpleNamespace

import pytest

from pretrain.engine.training_log import LARGE, LONG, ValidationCost


def cost_of(validations: dict[str, int], steps: int = 1000) -> ValidationCost:
    task = SimpleNamespace(
        validations=lambda: validations,
        schedule=SimpleNamespace(total_steps=steps),
        shorter_validation="--validate_on N validates on fewer",
    )
    return ValidationCost(task)


def test_a_validation_that_takes_a_large_part_of_the_run_is_reported_once():
    cost = cost_of({"": 10})
    sentence = cost.note({"": 60.0}, per_step=1.0)
    assert sentence == "validation will take 38% of the run (10:00); --validate_on N validates on fewer"
    assert cost.note({"": 60.0}, per_step=1.0) is None
    assert cost.total == 120


@pytest.mark.parametrize(("seconds", "per_step", "said"), [(30, 5.6, True), (30, 5.8, False), (29, 1e-3, False)])
def test_small_shares_and_short_validations_are_not_reported(seconds, per_step, said):
    """Of 1,000 steps and ten validations of half a minute each."""
    assert (LARGE, LONG) == (0.05, 300)
    assert (cost_of({"": 10}).note({"": seconds}, per_step) is not None) == said


def test_tasks_count_by_how_often_each_is_validated():
    cost = cost_of({"vqa": 2, "refcoco": 20, "gqa": 5})
    assert cost.note({"refcoco": 10.0, "vqa": 100.0}, per_step=10.0) is None  # 400 of 10,400 seconds
    sentence = cost.note({"gqa": 100.0}, per_step=10.0)
    assert sentence.startswith("validation will take 8% of the run (15:00, longest gqa, refcoco, vqa);")
