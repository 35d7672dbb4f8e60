"""Batches from local shards and from streams: every pair once an epoch, and the same after a resume."""

import dataclasses

import numpy as np
import pytest
import torch
from data_sets import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.collate import Collator, Limits
from pretrain.masking import sample_keys
from pretrain.objective import Objective
from pretrain.pairs import Swaps
from pretrain.plan import Plan, share
from pretrain.sources import Places, ValidationBatches, open_pairs, training_steps
from pretrain.streams import turns
from pretrain.tokenizer import learn_pieces
from shards.errors import UserError
from shards.ranks import Ranks


def collator_of(pairs, numbers) -> Collator:
    pieces = learn_pieces(pairs.captions.texts, 100)
    objective = Objective(mask_id=pieces.mask_id, ordinary_ids=pieces.ordinary_ids())
    return Collator(pairs.captions, Swaps(pairs.captions, numbers), pieces, objective, 0, Limits(20, 36, 12, 9, 3))


def steps_of(pairs, ranks=1, rank=0, batch_size=8, epochs=3, skip_bad=False, **options):
    """One rank's parts of every step."""
    plan = Plan(len(pairs.training), batch_size, epochs, ranks=Ranks(rank, ranks, rank), **options)
    collator = dataclasses.replace(collator_of(pairs, pairs.training), skip_bad=skip_bad)
    return list(training_steps(pairs, collator, plan, Places(plan.workers, pairs.shards)))


def batches_of(pairs, **options):
    return [batch for parts in steps_of(pairs, **options) for batch in parts]


def numbers_by_epoch(pairs, batches, epochs=3):
    """The sample numbers of each epoch's batches, found by their keys."""
    per_epoch = len(batches) // epochs
    result = []
    for epoch in range(epochs):
        of = {key: number for number, key in enumerate(sample_keys(0, epoch, np.arange(len(pairs.shards))).tolist())}
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        result.append([of[key] for batch in part for key in batch.keys.tolist()])
    return result


@pytest.fixture(params=["local", "pipe", "http"])
def pairs(request, tmp_path, http_folder):
    make_dataset(tmp_path, (60, 2, 35))
    names = "part-0000{0..2}.tar"
    return open_pairs(
        {"local": str(tmp_path), "pipe": f"pipe:cat {tmp_path}/{names}", "http": f"{http_folder(tmp_path)}/{names}"}[
            request.param
        ],
        9,
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_training_pair_comes_once_an_epoch_in_an_order_of_its_own(pairs, workers):
    batches = batches_of(pairs, workers=workers)
    assert len(batches) == 3 * -(-len(pairs.training) // 8)
    epochs = numbers_by_epoch(pairs, batches)
    assert all(sorted(epoch) == pairs.training.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(("workers", "first_step"), [(0, 5), (2, 7), (3, 10), (3, 13), (3, 22)])
def test_a_resume_goes_on_with_the_same_batches(pairs, workers, first_step):
    whole = batches_of(pairs, workers=workers)
    rest = batches_of(pairs, first_step=first_step, workers=workers)
    assert len(rest) == len(whole) - first_step
    for one, two in zip(whole[first_step:], rest, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True) if torch.is_tensor(a)
        )


def test_eight_workers_and_one_small_shard(tmp_path):
    make_dataset(tmp_path, (41,))
    pairs = open_pairs(f"pipe:cat {tmp_path}/part-00000.tar", 4)
    batches = batches_of(pairs, epochs=1, workers=8)
    assert sorted(numbers_by_epoch(pairs, batches, 1)[0]) == pairs.training.tolist()


def test_held_out_pairs_are_in_no_training_batch_and_are_the_same_at_every_pass(pairs):
    validation = ValidationBatches(pairs, collator_of(pairs, pairs.validation), 4)
    one, two = list(validation), list(validation)
    assert sum(map(len, one)) == len(pairs.validation) > 0
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(one, two, strict=True))
    assert not set(pairs.validation.tolist()) & set(pairs.training.tolist())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(1, 9))
def test_readers_take_turns_while_they_have_any_left(total, readers):
    order = turns(total, readers)
    assert len(order) == total
    counts = [order.count(reader) for reader in range(readers)]
    assert counts == [end - begin for begin, end in (share(total, readers, reader) for reader in range(readers))]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_breaks_off_in_training_is_named(tmp_path, workers):
    make_dataset(tmp_path, (60, 37))
    pairs = open_pairs(f"pipe:cat {tmp_path}/part-0000{{0..1}}.tar", 9)
    with open(tmp_path / "part-00001.tar", "r+b") as file:
        file.truncate(9000)
    with pytest.raises(UserError, match=r"part-00001\.tar: the tar breaks off"):
        batches_of(pairs, workers=workers)


def test_nothing_listens_at_the_address(tmp_path):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/a\.tar"):
        open_pairs("http://127.0.0.1:9/a.tar", 9)
