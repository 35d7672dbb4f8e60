"""Masking: the right shares, the right regions, and nothing but (seed, epoch, sample number) decides."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data import random_choices
from pretrain.models.image_input import image_stream_input
from pretrain.objective import masking

ORDINARY = torch.arange(5, 100)
MASK = 4


def keys_of(count: int, seed=0, epoch=0) -> torch.Tensor:
    return torch.from_numpy(random_choices.sample_keys(seed, epoch, np.arange(count)))


def many_words(rows=4000, width=20):
    keys = keys_of(rows)
    ids = torch.full((rows, width), 50)
    chosen = masking.choose_tokens(keys, torch.full((rows,), width), width)
    return ids, chosen, masking.mask_tokens(ids, chosen, keys, MASK, ORDINARY)


def share(part, whole) -> float:
    return float(part.sum() / whole.sum())


def test_shares_of_words_chosen_masked_random_and_kept():
    ids, chosen, masked = many_words()
    inner = torch.ones_like(chosen)
    inner[:, [0, -1]] = False
    assert abs(share(chosen, inner) - 0.15) < 0.005
    assert abs(share(chosen & (masked == MASK), chosen) - 0.8) < 0.015
    # A random word is the same word again once in 95 draws.
    assert abs(share(chosen & (masked == ids), chosen) - (0.1 + 0.1 / 95)) < 0.01
    random = masked[chosen & (masked != MASK) & (masked != ids)]
    assert set(random.tolist()) == set(ORDINARY.tolist()) - {50}
    assert (masked == ids)[~chosen].all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=30), st.integers(0, 3))
def test_first_last_and_padding_are_never_chosen(lengths, epoch):
    lengths = torch.tensor(lengths)
    width = 15
    chosen = masking.choose_tokens(keys_of(len(lengths), epoch=epoch), lengths, width)
    position = torch.arange(width)
    assert not chosen[:, 0].any()
    assert not chosen[position >= lengths[:, None] - 1].any()


def random_regions(rows: int, n: int, seed: int):
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(rows, n, 2, generator=rng) * 0.6
    boxes = torch.cat([corner, corner + 0.05 + 0.35 * torch.rand(rows, n, 2, generator=rng)], -1)
    valid = torch.arange(n) < torch.randint(1, n + 1, (rows, 1), generator=rng)
    return boxes, valid


def plain_iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 14))
def test_exactly_the_regions_that_overlap_a_zeroed_one_are_hidden(seed, n):
    boxes, valid = random_regions(6, n, seed)
    found = masking.choose_masked_regions(keys_of(6, seed), boxes, valid)
    assert not (found.chosen & ~valid).any() and not (found.seeds & ~found.chosen).any()
    for row in range(6):
        b = boxes[row].tolist()
        for i in range(n):
            # An IoU within rounding of the threshold may fall on either side.
            overlaps = [plain_iou(b[i], b[j]) for j in range(n) if found.seeds[row, j]]
            if any(abs(x - 0.4) < 1e-6 for x in overlaps):
                continue
            expected = bool(valid[row, i]) and (bool(found.seeds[row, i]) or any(x >= 0.4 for x in overlaps))
            assert bool(found.masked[row, i]) == expected


def test_shares_of_regions_chosen_and_zeroed_and_kept_ones_hide_nothing():
    boxes = torch.tensor([0.1, 0.1, 0.5, 0.5]).expand(5000, 8, 4)
    found = masking.choose_masked_regions(keys_of(5000), boxes, torch.ones(5000, 8, dtype=torch.bool))
    everything = torch.ones_like(found.chosen)
    assert abs(share(found.chosen, everything) - 0.15) < 0.005
    assert abs(share(found.seeds, found.chosen) - 0.9) < 0.01
    # All eight boxes are one: a single seed masks all of them, and chosen ones that are kept mask none.
    assert (found.masked.all(1) == found.seeds.any(1)).all()
    assert (found.masked.any(1) == found.seeds.any(1)).all()
    kept_only = found.chosen.any(1) & ~found.seeds.any(1)
    assert kept_only.any()


def test_without_overlap_masking_the_chosen_alone_are_hidden():
    boxes = torch.tensor([0.1, 0.1, 0.5, 0.5]).expand(50, 8, 4)
    found = masking.choose_masked_regions(keys_of(50), boxes, torch.ones(50, 8, dtype=torch.bool), overlap=None)
    assert (found.masked == found.seeds).all()


def test_row_zero_is_the_mean_of_the_visible_regions():
    boxes, valid = random_regions(20, 7, 3)
    masked = masking.choose_masked_regions(keys_of(20), boxes, valid).masked
    visible = valid & ~masked
    features = torch.randn(20, 7, 5)
    rows, locations = image_stream_input(features, boxes, visible)
    assert rows.shape == (20, 8, 5) and locations.shape == (20, 8, 5)
    for row in range(20):
        seen = [features[row, i] for i in range(7) if visible[row, i]]
        mean = torch.stack(seen).mean(0) if seen else torch.zeros(5)
        torch.testing.assert_close(rows[row, 0], mean)
        for i in range(7):
            expected = features[row, i] if visible[row, i] else torch.zeros(5)
            assert torch.equal(rows[row, i + 1], expected)
            x1, y1, x2, y2 = boxes[row, i].tolist()
            expected = torch.tensor([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)])
            torch.testing.assert_close(locations[row, i + 1], expected)
    assert (locations[:, 0] == torch.tensor([0.0, 0, 1, 1, 1])).all()


def test_an_image_that_is_hidden_as_a_whole_has_a_row_of_zeros():
    rows, _ = image_stream_input(torch.ones(1, 3, 2), torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool))
    assert rows.abs().sum() == 0


def test_what_is_masked_depends_on_the_sample_and_not_on_its_batch():
    """Neither its place, nor its neighbours, nor how far the batch is padded."""
    boxes, valid = random_regions(10, 9, 1)
    keys = keys_of(10)
    lengths = torch.full((10,), 8)
    whole = masking.choose_masked_regions(keys, boxes, valid)
    words = masking.choose_tokens(keys, lengths, 8)
    for row in (0, 3, 9):
        wide = torch.zeros(1, 12, 4)
        wide[:, :9] = boxes[row]
        padded = torch.zeros(1, 12, dtype=torch.bool)
        padded[:, :9] = valid[row]
        alone = masking.choose_masked_regions(keys[row : row + 1], wide, padded)
        assert torch.equal(alone.masked[0, :9], whole.masked[row]) and not alone.masked[0, 9:].any()
        assert torch.equal(masking.choose_tokens(keys[row : row + 1], lengths[:1], 20)[0, :8], words[row])


def test_epochs_and_seeds_mask_differently():
    seen = {
        tuple(masking.choose_tokens(keys_of(50, seed, epoch), torch.full((50,), 30), 30).flatten().tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(seen) == 9


def test_half_of_the_pairs_are_swapped():
    misaligned = random_choices.misaligned(random_choices.sample_keys(0, 0, np.arange(20_000)))
    assert abs(misaligned.mean() - 0.5) < 0.012
