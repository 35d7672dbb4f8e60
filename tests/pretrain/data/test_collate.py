"""From shards to batches: misaligned captions, limits, padding, and samples that the model cannot take."""

import dataclasses

import numpy as np
import pytest
import torch
from data_sets import make_dataset, make_samples

from pretrain.data.caption_pairs import Captions, MisalignedCaptions
from pretrain.data.collate import Collator, Limits, check_sample, stack
from pretrain.objective import masking
from pretrain.objective.pretraining_loss import Objective
from pretrain.tokenizer.tokenizer import learn_tokenizer, load_tokenizer
from shards.common.errors import UserError
from shards.storage.dataset import open_dataset, read_captions
from shards.storage.reader import RegionReader

LIMITS = Limits(max_tokens=10, max_regions=4, feature_size=12, num_classes=9, per_region=3)


@pytest.fixture
def batches(dataset_folder):
    dataset = open_dataset(str(dataset_folder))
    captions = Captions(read_captions(dataset))
    tokenizer = learn_tokenizer(captions.texts, 200)
    objective = Objective(mask_id=tokenizer.mask_id, ordinary_ids=tokenizer.ordinary_ids())
    return Reading(
        RegionReader(dataset),
        Collator(captions, MisalignedCaptions(captions, np.arange(97)), tokenizer, objective, 0, LIMITS),
    )


class Reading:
    """Batches by epoch and sample numbers."""

    def __init__(self, reader, collator):
        self.reader, self.collator = reader, collator

    def read(self, epoch, numbers):
        return self.collator(epoch, numbers, [self.reader[number] for number in numbers.tolist()])


def test_a_batch_holds_its_samples_padded(batches):
    numbers = np.array([5, 96, 0])
    batch = batches.read(0, numbers)
    samples = make_samples(60, seed=0) + make_samples(37, seed=1)
    for row, number in enumerate(numbers):
        sample = samples[number]
        count = min(len(sample.features), 4)
        assert batch.valid[row].sum() == count
        assert np.array_equal(batch.features[row, :count], sample.features[:count])
        assert np.array_equal(batch.boxes[row, :count], sample.boxes[:count])
        assert batch.features[row, count:].abs().sum() == 0
        length = int(batch.lengths[row])
        assert batch.input_ids[row, length:].sum() == 0
    assert batch.input_ids.shape[1] == batch.lengths.max()
    assert batch.valid.shape[1] == batch.valid.sum(1).max()


def test_captions_are_swapped_where_the_label_says_so(batches):
    numbers = np.arange(97)
    batch = batches.read(3, numbers)
    own = batches.collator.tokenizer.encode([batches.collator.captions[n] for n in numbers], 10)
    for row, ids in enumerate(own):
        same = batch.input_ids[row, : batch.lengths[row]].tolist() == ids
        assert same != bool(batch.misaligned[row])
    assert 30 < batch.misaligned.sum() < 67


def test_a_batch_is_a_function_of_seed_epoch_and_numbers(batches):
    one, two = batches.read(1, np.array([3, 4, 5])), batches.read(1, np.array([5, 4, 3]))
    assert torch.equal(one.keys.flip(0), two.keys) and torch.equal(one.misaligned.flip(0), two.misaligned)
    assert not torch.equal(batches.read(2, np.array([3, 4, 5])).keys, one.keys)


def test_counts_are_those_that_the_mask_has(batches):
    for epoch in range(5):
        batch = batches.read(epoch, np.arange(40))
        counted = ~batch.misaligned[:, None]
        words = masking.choose_tokens(batch.keys, batch.lengths, batch.input_ids.shape[1]) & counted
        assert batch.predicted_tokens == words.sum()
        assert batch.predicted_regions == (masking.choose_regions(batch.keys, batch.valid) & counted).sum()
        assert batch.total_tokens == (batch.input_ids != 0).sum() == batch.lengths.sum()
        assert batch.image_row_count == batch.valid.sum() + 40


def test_a_caption_longer_than_the_limit_is_cut_and_keeps_its_end_mark():
    tokenizer = learn_tokenizer(["one two three four five six"] * 2, 100)
    ids = tokenizer.encode(["one two three four five six", "one"], 5)
    assert [len(x) for x in ids] == [5, 3]
    assert ids[0][0] == ids[1][0] == tokenizer.special["[CLS]"]
    assert ids[0][-1] == ids[1][-1] == tokenizer.special["[SEP]"]


def test_a_learned_vocabulary_is_the_same_every_time_and_survives_saving(tmp_path):
    texts = [f"word{n % 17} and word{n % 5}s" for n in range(200)]
    one, two = learn_tokenizer(texts, 60), learn_tokenizer(texts, 60)
    assert one.backend.get_vocab() == two.backend.get_vocab()
    one.save(tmp_path)
    assert load_tokenizer(tmp_path).encode(texts, 30) == one.encode(texts, 30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": np.zeros((0, 12), np.float16)}, "no regions"),
        ({"features": np.zeros((2, 13), np.float16)}, "features of size 13, the model expects 12"),
        ({"features": np.full((2, 12), np.nan, np.float16)}, "NaN or infinite"),
        ({"features": np.full((2, 12), -np.inf, np.float16)}, "NaN or infinite"),
        ({"features": np.full((2, 12), 1e9, np.float32)}, "infinite in float16"),
        ({"boxes": np.full((2, 4), np.nan, np.float32)}, "boxes that are NaN"),
        ({"class_ids": None}, "--region_target features"),
        ({"class_ids": np.full((2, 3), 9)}, "outside the 9"),
        ({"class_ids": np.zeros((2, 2), np.int16)}, "2 classes per region, other samples have 3"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_samples_that_the_model_cannot_take_are_named_with_their_shard(changes, words):
    good, bad = make_samples(2, regions=(2, 2))
    bad = dataclasses.replace(bad, shard="a/part.tar", **changes)
    check_sample(good, LIMITS)
    with pytest.raises(UserError, match=words) as error:
        check_sample(bad, LIMITS)
    assert str(error.value).startswith(f"a/part.tar: {bad.key} has")


def test_bad_samples_stop_a_batch_or_are_left_out_of_it(batches):
    numbers = np.array([5, 96, 0, 7])
    samples = [batches.reader[number] for number in numbers.tolist()]
    samples[1] = dataclasses.replace(samples[1], features=np.full((2, 12), np.nan, np.float16))
    samples[2] = UserError("part-7.tar: cannot be read")
    with pytest.raises(UserError, match="NaN or infinite"):
        batches.collator(0, numbers, samples)
    skipping = dataclasses.replace(batches.collator, skip_bad=True)
    batch = skipping(0, numbers, samples)
    assert len(batch.problems) == 2 and batch.problems[1] == "part-7.tar: cannot be read"
    whole = batches.read(0, np.array([5, 7]))
    assert torch.equal(batch.input_ids, whole.input_ids) and torch.equal(batch.features, whole.features)
    none = skipping(0, numbers[1:3], samples[1:3])
    assert len(none) == 0 and (none.predicted_tokens, none.predicted_regions) == (0, 0)


def test_shards_without_classes_make_batches_without_classes(tmp_path):
    make_dataset(tmp_path, (3,), classes=0)
    reader = RegionReader(open_dataset(str(tmp_path)))
    batch = stack([reader[0], reader[1]], [[2, 3], [2, 5, 3]], [1, 2], [False, True], Limits(10, 4, 12))
    assert batch.class_ids.shape[-1] == 0
