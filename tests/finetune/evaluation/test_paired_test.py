"""The paired test: McNemar by a table of binomials, and an interval that pairs the examples of an image."""

from math import comb

import numpy as np
import pytest

from finetune.evaluation.bootstrap import bootstrap_means, interval_of
from finetune.evaluation.paired_test import mcnemar, paired_test


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 12), (12, 3), (5, 5), (0, 9)])
def test_mcnemar_is_the_share_of_equally_or_less_likely_splits(first, second):
    total = first + second
    chances = [comb(total, k) / 2**total for k in range(total + 1)]
    expected = sum(chance for chance in chances if chance <= chances[first] * (1 + 1e-9))
    assert mcnemar(first, second) == pytest.approx(expected)


def test_only_scores_of_0_or_1_have_a_p_value():
    first, second = np.array([1.0, 1, 0, 1, 1]), np.array([0.0, 0, 0, 1, 0])
    test = paired_test(first, second, np.arange(5))
    assert (test.first, test.second, test.difference) == pytest.approx((0.8, 0.2, 0.6))
    assert test.p_value == pytest.approx(0.25), "three examples differ, all in favour of the first"
    assert paired_test(first, np.array([0.3, 0, 0, 1, 0]), np.arange(5)).p_value is None


def test_the_interval_is_that_of_the_differences_over_images():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 6)
    hard = rng.random(30)[clusters]
    first, second = hard * 0.9 + 0.1, hard * 0.9
    low, high = paired_test(first, second, clusters).interval
    assert (low, high) == pytest.approx((0.1, 0.1)), "the difficulty of an image cancels in the differences"
    noisy = (rng.random(30)[clusters] < 0.5).astype(float)  # all examples of an image agree
    low, high = paired_test(noisy, np.zeros(180), clusters, seed=3).interval
    assert (low, high) == interval_of(bootstrap_means(noisy, clusters, seed=3))
    narrow = paired_test(noisy, np.zeros(180), np.arange(180)).interval
    assert high - low > 1.5 * (narrow[1] - narrow[0])
