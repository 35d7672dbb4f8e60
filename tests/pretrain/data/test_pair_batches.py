"""Batches from local shards and from streams: every pair once an epoch, and the same after a resume."""

import dataclasses
import functools
import hashlib
import http.server
import itertools
import threading
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import QuietHandler
from data_sets import make_dataset, make_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.batch_schedule import BatchSchedule, part_range
from pretrain.data.caption_pairs import MisalignedCaptions
from pretrain.data.collate import Collator, Limits
from pretrain.data.dataloader import WorkerStatus
from pretrain.data.pair_batches import ValidationBatches, open_pairs, training_steps
from pretrain.data.random_choices import sample_keys
from pretrain.data.streaming_batches import StreamedBatches, reader_order
from pretrain.objective.pretraining_loss import Objective
from pretrain.tokenizer.tokenizer import learn_tokenizer
from shards.common.dist_info import Ranks
from shards.common.errors import UserError


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def collator_of(pairs, numbers) -> Collator:
    tokenizer = learn_tokenizer(pairs.captions.texts, 100)
    objective = Objective(mask_id=tokenizer.mask_id, ordinary_ids=tokenizer.ordinary_ids())
    return Collator(
        captions=pairs.captions,
        negatives=MisalignedCaptions(pairs.captions, numbers),
        tokenizer=tokenizer,
        objective=objective,
        seed=0,
        limits=Limits(20, 36, 12, 9, 3),
    )


def steps_of(pairs, ranks=1, rank=0, batch_size=8, epochs=3, skip_bad=False, **options):
    """One rank's parts of every step."""
    schedule = BatchSchedule(len(pairs.training), batch_size, epochs, ranks=Ranks(rank, ranks, rank), **options)
    collator = dataclasses.replace(
        collator_of(pairs, pairs.trained), skip_bad=skip_bad, draw_captions=pairs.one_caption
    )
    return list(training_steps(pairs, collator, schedule, WorkerStatus(schedule.workers, pairs.shards)))


def batches_of(pairs, **options):
    return [batch for parts in steps_of(pairs, **options) for batch in parts]


def numbers_by_epoch(pairs, batches, epochs=3, first_epoch=0):
    """The pair numbers of each epoch's batches, found by their keys."""
    per_epoch = len(batches) // epochs
    result = []
    for epoch in range(epochs):
        keys = sample_keys(0, first_epoch + epoch, np.arange(len(pairs.numbers))).tolist()
        of = {key: number for number, key in enumerate(keys)}
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        result.append([of[key] for batch in part for key in batch.keys.tolist()])
    return result


# Where the shards are, captions per image, and how many of them an epoch takes.
SOURCES = [("local", 1, "all"), ("http", 1, "all"), ("local", 3, "all"), ("pipe", 3, "one")]
SLOW_SOURCES = [slow(("pipe", 1, "all")), slow(("pipe", 3, "all")), slow(("local", 3, "one"))]


@pytest.fixture(params=[*SOURCES, *SLOW_SOURCES], ids=lambda source: "-".join(map(str, source)))
def pairs(request, tmp_path, http_folder):
    where, per_image, taken = request.param
    make_dataset(tmp_path, (60, 2, 37), per_image=per_image)
    names = "part-0000{0..2}.tar"
    addresses = {"local": str(tmp_path), "pipe": f"pipe:cat {tmp_path}/{names}"}
    data = addresses.get(where) or f"{http_folder(tmp_path)}/{names}"
    return open_pairs(data, 9 * per_image, taken)


@pytest.mark.parametrize("workers", [0, slow(1), 3])
def test_every_training_pair_comes_once_an_epoch_in_an_order_of_its_own(pairs, workers):
    batches = batches_of(pairs, workers=workers)
    assert len(batches) == 3 * -(-len(pairs.training) // 8)
    epochs = numbers_by_epoch(pairs, batches)
    assert all(sorted(epoch) == pairs.training.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def digest(batches) -> str:
    """Of the keys, texts and labels of batches, and of how much of them is predicted."""
    sha256 = hashlib.sha256()
    for batch in batches:
        for values in (batch.keys, batch.input_ids, batch.misaligned.long()):
            sha256.update(values.numpy().astype("<i8").tobytes())
        sha256.update(np.array([batch.predicted_tokens, batch.predicted_regions], "<i8").tobytes())
    return sha256.hexdigest()[:16]


@pytest.mark.parametrize("taken", ["all", "one"])
@pytest.mark.parametrize(
    ("address", "training", "on_ranks", "validation", "held"),
    [
        ("{}", "7ede615344b3ef7d", "8cfa0b0a5c5d0652", "854337eef299bc0d", [3, 23, 29, 34, 41, 52, 65, 85, 91, 96]),
        (
            "pipe:cat {}/part-0000{{0..2}}.tar",
            "bc20dff019fdbcf7",
            "7bf725c1d2f6b1a7",
            "af7b03bdbcbb8758",
            [3, 23, 29, 34, 41, 52],
        ),
    ],
    ids=["local", "pipe"],
)
def test_one_caption_per_image_gives_the_batches_that_it_gave_before(
    tmp_path, address, training, on_ranks, validation, held, taken
):
    """Recorded with the version that knew of one caption per image alone (commit 132192e)."""
    make_dataset(tmp_path, (60, 2, 37))
    pairs = open_pairs(address.format(tmp_path), 9, taken)
    assert pairs.validation.tolist() == held
    assert digest(batches_of(pairs)) == training
    assert digest(batches_of(pairs, ranks=2, rank=1, workers=2, accumulate=2)) == on_ranks
    assert digest(ValidationBatches(pairs, collator_of(pairs, pairs.validation), 4)) == validation


def test_every_pair_has_its_image_and_a_caption_of_it_or_none_of_its_own(pairs):
    """The features of a batch's rows are compared with those that were written, and the texts with the captions."""
    written = [s for n, count in enumerate((60, 2, 37)) for s in make_samples(count, seed=n)]
    collator, taken = collator_of(pairs, pairs.trained), set()
    for batch, numbers in zip(batches_of(pairs, workers=0), by_batch(pairs, batches_of(pairs, workers=0)), strict=True):
        for row, number in enumerate(numbers):
            image = int(pairs.numbers.samples_of(number))
            count = int(batch.valid[row].sum())
            assert np.array_equal(batch.features[row, :count], written[image].features)
            own = pairs.captions.of_image(image).tolist()
            texts = [ids for ids in collator.tokenizer.encode([pairs.captions[n] for n in own], 20)]
            text = batch.input_ids[row, : batch.lengths[row]].tolist()
            assert (text in texts) != bool(batch.misaligned[row])
            if text in texts:
                taken.add((image, texts.index(text)))
            if text in texts and not pairs.one_caption:
                assert own[texts.index(text)] == number
    if pairs.one_caption:  # of three epochs and half of the pairs of each: not always the same one
        assert {place for _, place in taken} == {0, 1, 2} and len(taken) > len({image for image, _ in taken})


def by_batch(pairs, batches):
    """The pair numbers of each batch of three epochs."""
    numbers = [number for epoch in numbers_by_epoch(pairs, batches) for number in epoch]
    ends = np.cumsum([len(batch) for batch in batches])
    return [numbers[end - len(batch) : end] for batch, end in zip(batches, ends, strict=True)]


def test_the_pairs_of_an_image_are_shuffled_apart(tmp_path):
    """On streams too: the buffer holds as many images as it does of one caption each."""
    make_dataset(tmp_path, (500,), per_image=5)
    for data in (str(tmp_path), f"pipe:cat {tmp_path}/part-00000.tar"):
        pairs = open_pairs(data, 0)
        (order,) = numbers_by_epoch(pairs, batches_of(pairs, epochs=1), 1)
        images = pairs.numbers.samples_of(np.array(order))
        assert (np.diff(images) == 0).mean() < 0.01


@pytest.mark.parametrize(("workers", "first_step"), [(0, 5), slow(2, 7), slow(3, 10), (3, 13), slow(3, 22)])
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
    sides = [pairs.captions.images_of(numbers).tolist() for numbers in (pairs.validation, pairs.trained)]
    assert not set(sides[0]) & set(sides[1])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(1, 9))
def test_readers_take_turns_while_they_have_any_left(total, readers):
    order = reader_order(total, readers)
    assert len(order) == total
    counts = [order.count(reader) for reader in range(readers)]
    assert counts == [end - begin for begin, end in (part_range(total, readers, reader) for reader in range(readers))]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_breaks_off_in_training_is_named(tmp_path, workers):
    make_dataset(tmp_path, (60, 37))
    pairs = open_pairs(f"pipe:cat {tmp_path}/part-0000{{0..1}}.tar", 9)
    with open(tmp_path / "part-00001.tar", "r+b") as file:
        file.truncate(9000)
    with pytest.raises(UserError, match=r"part-00001\.tar: the tar is truncated"):
        batches_of(pairs, workers=workers)


def test_nothing_listens_at_the_address(tmp_path):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/a\.tar"):
        open_pairs("http://127.0.0.1:9/a.tar", 9)


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (3, 2), slow(5, 1), slow(4, 0)])
def test_ranks_share_every_epoch_and_take_the_same_number_of_steps(pairs, ranks, workers):
    """A prime number of pairs to train on, in three shards of very different sizes."""
    of_ranks = [steps_of(pairs, ranks=ranks, rank=rank, workers=workers, accumulate=2) for rank in range(ranks)]
    for epoch in range(3):
        steps = slice(epoch * len(of_ranks[0]) // 3, (epoch + 1) * len(of_ranks[0]) // 3)
        seen = [
            number
            for one in of_ranks
            for number in numbers_by_epoch(
                pairs, [batch for parts in one[steps] for batch in parts], 1, first_epoch=epoch
            )[0]
        ]
        assert sorted(seen) == pairs.training.tolist()
    assert {len(one) for one in of_ranks} == {BatchSchedule(len(pairs.training), 8, 3).total_steps}
    sizes = [sum(map(len, parts)) for step in zip(*of_ranks, strict=True) for parts in [[b for p in step for b in p]]]
    assert max(sizes) <= 8 + 2 * ranks and sum(sizes) == 3 * len(pairs.training)


LAYOUTS = st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(1, 3))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(LAYOUTS, st.integers(1, 7)), min_size=1, max_size=3), LAYOUTS)
def test_a_run_on_streams_goes_on_with_what_is_left_on_any_layout(streamed, stops, last):
    """Stopped up to three times within two epochs, and gone on with other ranks, workers and accumulated parts."""
    first, stages, seen = 0, (), {0: [], 1: []}
    for (ranks, workers, accumulate), steps in [*stops, (last, 100)]:
        for rank in range(ranks):
            schedule = BatchSchedule(
                len(streamed.training), 10, 2, first, Ranks(rank, ranks, rank), workers, accumulate, stages
            )
            end = min(first + steps, schedule.total_steps)
            for step, numbers in enumerate(read_by(streamed, schedule, end - first), first):
                seen[step // schedule.steps_per_epoch] += numbers
        stages, first = schedule.stages_at(end), end
        if first == schedule.total_steps:
            break
    assert all(sorted(numbers) == streamed.training.tolist() for numbers in seen.values())


@pytest.fixture(scope="module", params=[slow((1, "all")), (2, "all"), slow((2, "one"))], ids=str)
def streamed(request, tmp_path_factory):
    folder, (per_image, taken) = tmp_path_factory.mktemp("streamed"), request.param
    make_dataset(folder, (30, 1, 22, 6), per_image=per_image)
    return open_pairs(f"pipe:cat {folder}/part-0000{{0..3}}.tar", 6 * per_image, taken)


def read_by(pairs, schedule, steps):
    """The sample numbers that one rank reads in each of some steps, its workers standing in a row in this process."""
    epoch, place = divmod(schedule.first_step, schedule.steps_per_epoch)
    while steps:
        parts = list(batches_in_turn(pairs, schedule, epoch * schedule.steps_per_epoch + place))
        taken = min(steps, schedule.steps_per_epoch - place)
        for step in range(taken):
            yield [n for part in parts[step * schedule.accumulate : (step + 1) * schedule.accumulate] for n in part]
        epoch, place, steps = epoch + 1, 0, steps - taken


def batches_in_turn(pairs, schedule, step):
    """As torch's DataLoader takes them: from each worker in turn, over and over."""
    collate = FakeCollator()
    readers = []
    for worker in range(schedule.layout.readers):
        batches = StreamedBatches(
            pairs.shards, pairs.numbers, pairs.member, collate, schedule, step, lambda shard: None
        )
        with mock.patch(
            "pretrain.data.streaming_batches.get_worker_info", lambda worker=worker: SimpleNamespace(id=worker)
        ):
            readers.append(list(batches))
    for row in itertools.zip_longest(*readers):
        yield from (numbers for numbers in row if numbers is not None)


class FakeCollator:
    seed = 0

    def __call__(self, epoch, numbers, samples):
        return numbers.tolist()


def test_a_stream_that_breaks_off_now_and_then_is_read_on(tmp_path):
    """A server that sends 20,000 bytes of a file at the most before it hangs up, and more at every further try."""
    make_dataset(tmp_path, (60, 37))
    sent = {}

    class Flaky(QuietHandler):
        def copyfile(self, source, outputfile):
            if not self.path.endswith(".tar"):
                return super().copyfile(source, outputfile)
            sent[self.path] = sent.get(self.path, 0) + 1
            outputfile.write(source.read(20_000 * sent[self.path]))

    handler = functools.partial(Flaky, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pairs = open_pairs(f"http://127.0.0.1:{server.server_address[1]}/part-0000{{0..1}}.tar", 9)
        epochs = numbers_by_epoch(pairs, batches_of(pairs, epochs=1), 1)
        server.shutdown()
    assert sorted(epochs[0]) == pairs.training.tolist()
    assert max(sent.values()) > 3


def test_few_streams_for_many_readers_are_warned_about(tmp_path, run_command):
    make_dataset(tmp_path / "data", (60, 37))
    flags = ("--epochs", 1, "--out", tmp_path / "run", "--workers", 3)
    _, out, _ = run_command("pretrain.run", "--data", f"pipe:cat {tmp_path}/data/part-0000{{0..1}}.tar", *flags)
    assert "2 shards for 3 readers (ranks x workers): several readers will open the same shard" in out
