"""Counter-based random numbers: the same everywhere, and random enough."""

import numpy as np
import torch

from shards import hashing


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
        found = hashing.draw(np.array([seed]), np.arange(50)).astype(np.uint64).tolist()
        assert found == [splitmix(seed, n) for n in range(50)]


def test_numpy_and_torch_agree_to_the_bit():
    keys, counters = np.array([[3], [-9], [2**62]]), np.arange(1000)[None]
    ours = hashing.draw(keys, counters)
    theirs = hashing.draw(torch.from_numpy(keys), torch.from_numpy(counters))
    assert (ours == theirs.numpy()).all()
    assert (hashing.uniform24(ours) == hashing.uniform24(theirs).numpy()).all()
    assert (hashing.below(ours, 7) == hashing.below(theirs, 7).numpy()).all()


def test_shares_come_out_as_asked():
    numbers = hashing.draw(np.int64(hashing.key(1, 2)), np.arange(200_000))
    for share in (0.0, 0.15, 0.5, 1.0):
        found = (hashing.uniform24(numbers) < hashing.threshold(share)).mean()
        assert abs(found - share) < 0.004
    assert np.bincount(hashing.below(numbers, 5), minlength=5).min() > 39_000


def test_a_permutation_holds_everything_once_and_depends_on_its_key():
    first, second = hashing.permutation(hashing.key(1), 101), hashing.permutation(hashing.key(2), 101)
    assert sorted(first.tolist()) == list(range(101))
    assert first.tolist() != second.tolist()
    assert len(hashing.permutation(5, 0)) == 0


def test_keys_depend_on_every_part_and_on_their_order():
    assert len({hashing.key(0, 1), hashing.key(1, 0), hashing.key(0, 1, 0), hashing.key(0)}) == 4


def test_text_keys_are_the_same_in_every_process():
    assert hashing.text_key("two cats") == 17629884659167323
