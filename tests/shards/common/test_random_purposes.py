"""No two purposes of random numbers share a stream."""

import re
from pathlib import Path

import numpy as np

from pretrain.data import random_choices
from pretrain.models.dropout import position_keys
from shards.common import counter_rng
from shards.common.random_purposes import Decision, EpochPurpose, SamplePurpose, sample_counter

ROOT = Path(__file__).parents[3]
KEYS = np.array([5, -7])
SAMPLE_KEYS = [3608400687859252187, 2757782590404044125]
EXAMPLE_ORDER = 5737291379245837990
DECISIONS = [7134611160154358618, 7866638711627835880, -3115616814462979733]
REGION = 7531444566053924058
DROPOUT = -5602287063420623165


def test_no_two_random_numbers_of_a_sample_are_the_same_stream():
    counters = [sample_counter(purpose, number) for purpose in SamplePurpose for number in range(1000)]
    assert len(set(counters)) == len(counters)
    drawn = [random_choices.decide(KEYS, decision) for decision in Decision]
    drawn += [random_choices.draw(KEYS, np.arange(40), p).T for p in SamplePurpose if p != SamplePurpose.DECISION]
    numbers = np.concatenate([np.atleast_2d(x) for x in drawn]).ravel()
    assert len(set(numbers.tolist())) == len(numbers)


def test_no_two_keys_of_an_epoch_are_the_same():
    keys = [counter_rng.key(0, epoch, purpose) for epoch in range(50) for purpose in EpochPurpose]
    assert len(set(keys)) == len(keys)


def test_purposes_are_named_where_they_are_used():
    """A number would not be noticed when another purpose takes it."""
    for package in ("shards", "pretrain", "finetune"):
        for path in (ROOT / package).rglob("*.py"):
            calls = re.findall(r"counter_rng\.key\([^()]*, (\w+)(?:,[^()]*)?\)", path.read_text())
            assert not [part for part in calls if part.isdigit()], path


def test_the_numbers_of_a_seed_stay_the_same():
    """Written down: results of a seed depend on them."""
    assert random_choices.sample_keys(3, 1, np.arange(2)).tolist() == SAMPLE_KEYS
    assert counter_rng.key(3, 1, EpochPurpose.EXAMPLE_ORDER) == EXAMPLE_ORDER
    assert [int(random_choices.decide(KEYS, decision)[0]) for decision in Decision] == DECISIONS
    assert int(random_choices.draw(KEYS, np.arange(3), SamplePurpose.REGION)[1, 2]) == REGION
    assert int(position_keys(KEYS, 1, np.arange(3))[0, 2]) == DROPOUT
