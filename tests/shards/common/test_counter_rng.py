"""Counter-based random numbers: the same everywhere, and random enough."""

import numpy as np
import torch

from shards.common import counter_rng


def splitmix(seed: int, counter: int) -> int:
    """The reference generator in plain unbounded integers."""
    mask = (1 << 64) - 1
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_numbers_are_those_of_splitmix64():
    # The first three outputs for seed 1234567 that reference implementations publish.
    assert [splitmix(1234567, n) for n in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    for seed in (0, 1234567, -5):
        found = counter_rng.draw(np.array([seed]), np.arange(50)).astype(np.uint64).tolist()
        assert found == [splitmix(seed, n) for n in range(50)]


def test_numpy_and_torch_agree_to_the_bit():
    keys, counters = np.array([[3], [-9], [2**62]]), np.arange(1000)[None]
    ours = counter_rng.draw(keys, counters)
    theirs = counter_rng.draw(torch.from_numpy(keys), torch.from_numpy(counters))
    assert (ours == theirs.numpy()).all()
    assert (counter_rng.uniform24(ours) == counter_rng.uniform24(theirs).numpy()).all()
    assert (counter_rng.below(ours, 7) == counter_rng.below(theirs, 7).numpy()).all()


def test_shares_come_out_as_asked():
    numbers = counter_rng.draw(np.int64(counter_rng.key(1, 2)), np.arange(200_000))
    for share in (0.0, 0.15, 0.5, 1.0):
        found = (counter_rng.uniform24(numbers) < counter_rng.threshold(share)).mean()
        assert abs(found - share) < 0.004
    assert np.bincount(counter_rng.below(numbers, 5), minlength=5).min() > 39_000


def test_a_permutation_holds_everything_once_and_depends_on_its_key():
    first, second = counter_rng.permutation(counter_rng.key(1), 101), counter_rng.permutation(counter_rng.key(2), 101)
    assert sorted(first.tolist()) == list(range(101))
    assert first.tolist() != second.tolist()
    assert len(counter_rng.permutation(5, 0)) == 0


def test_keys_depend_on_every_part_and_on_their_order():
    assert len({counter_rng.key(0, 1), counter_rng.key(1, 0), counter_rng.key(0, 1, 0), counter_rng.key(0)}) == 4


def test_text_keys_are_the_same_in_every_process():
    assert counter_rng.text_key("two cats") == 17629884659167323
