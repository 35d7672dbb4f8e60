"""The losses: true means over what counts, and nothing from misaligned pairs."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_sets import make_samples

from pretrain.data.collate import Limits, stack
from pretrain.data.random_choices import sample_keys
from pretrain.models.model_config import TINY
from pretrain.models.packing import positions
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.objective.alignment_term import AlignmentTerm
from pretrain.objective.pretraining_loss import Objective
from pretrain.objective.region_term import FeatureTerm, RegionTerm, class_distribution
from pretrain.objective.token_term import TokenTerm

SIZES = TINY.replace(
    vocab_size=40, v_feature_size=12, v_target_size=9, hidden_size=32, v_hidden_size=32, bi_hidden_size=32
)
LIMITS = Limits(max_tokens=20, max_regions=36, feature_size=12, num_classes=9, per_region=3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PretrainingModel(SIZES).eval()


def make_objective(**options) -> Objective:
    return Objective(mask_id=4, ordinary_ids=torch.arange(5, 40), **options)


def make_batch(objective, count=24, words=12, misaligned=None, limits=LIMITS, **options):
    rng = np.random.default_rng(5)
    samples = make_samples(count, **options)
    ids = [[2, *rng.integers(5, 40, rng.integers(1, words)).tolist(), 3] for _ in samples]
    swapped = np.arange(count) % 2 == 1 if misaligned is None else misaligned
    batch = stack(samples, ids, sample_keys(0, 0, np.arange(count)), swapped, limits)
    batch.predicted_tokens, batch.predicted_regions = objective.count_predictions(batch)
    return batch


def run(model, objective, batch):
    model.zero_grad()
    losses = objective.forward_losses(model, batch, objective.mask(batch))
    losses.loss(losses.local_counts.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"predict_overlapped": True}, {"aligned_only": False}, {"overlap": None}])
def test_losses_equal_a_loop_over_every_position(model, options):
    objective = make_objective(**options)
    batch = make_batch(objective)
    inputs = objective.mask(batch)
    with torch.no_grad():
        losses = objective.forward_losses(model, batch, inputs)
        encoded = model.encoder(
            inputs.input_ids, inputs.text_mask, inputs.features, inputs.locations, inputs.image_mask
        )
        words = regions = 0.0
        predicted_tokens = predicted_regions = 0
        from pretrain.objective.masking import choose_tokens

        chosen = choose_tokens(batch.keys, batch.lengths, batch.input_ids.shape[1])
        for row in range(len(batch)):
            if batch.misaligned[row] and objective.aligned_only:
                continue
            for column in range(batch.input_ids.shape[1]):
                if chosen[row, column]:
                    scores = model.word_scores(encoded.text[row, column][None])
                    words += F.cross_entropy(scores, batch.input_ids[row, column][None]).item()
                    predicted_tokens += 1
            for column in range(batch.valid.shape[1]):
                picked = inputs.masked_regions.chosen[row, column]
                if options.get("predict_overlapped"):
                    picked = picked | inputs.masked_regions.masked[row, column]
                if picked:
                    prediction = model.regions(encoded.image[row, column + 1]).log_softmax(-1)
                    target = torch.zeros(9)
                    target[batch.class_ids[row, column].long()] = batch.class_probs[row, column].float()
                    rest = [c for c in range(9) if c not in batch.class_ids[row, column].tolist()]
                    target[rest] = (1 - target.sum()) / len(rest)
                    regions += (target * (target.log() - prediction)).sum().item()
                    predicted_regions += 1
    assert (losses.local_counts["word_count"], losses.local_counts["region_count"]) == (
        predicted_tokens,
        predicted_regions,
    )
    assert losses.sums["words"].item() == pytest.approx(words, abs=1e-3)
    assert losses.sums["regions"].item() == pytest.approx(regions, abs=1e-3)


def test_regions_that_overlap_a_hidden_one_are_hidden_from_the_model():
    """Their features do not reach it by their own row, nor by the mean of row 0 (which the published code forgets)."""
    batch = make_batch(make_objective(), regions=(5, 6))
    batch.boxes[:] = torch.tensor([0.2, 0.2, 0.6, 0.6])  # any zeroed region hides all of its image
    batch.boxes[:, 0] = torch.tensor([0.7, 0.7, 0.9, 0.9])  # but the first
    inputs = make_objective().mask(batch)
    masked = inputs.masked_regions.masked
    overlapped = masked & ~inputs.masked_regions.chosen
    assert overlapped.any()
    assert (inputs.features[:, 1:][masked] == 0).all()
    rows = overlapped.any(1)
    changed = dataclasses.replace(batch, features=batch.features + 7 * overlapped[..., None].half())
    assert torch.equal(make_objective().mask(changed).features, inputs.features)
    plain = make_objective(overlap=None).mask(batch)
    assert not torch.equal(plain.features[rows], inputs.features[rows])


def test_the_model_looks_at_what_is_there_and_at_no_padding():
    objective = make_objective()
    batch = make_batch(objective)
    inputs = objective.mask(batch)
    lengths = batch.lengths.tolist()
    assert inputs.text_mask.tolist() == [[i < n for i in range(max(lengths))] for n in lengths]
    regions = batch.valid.sum(1).tolist()
    assert inputs.image_mask.tolist() == [[i <= n for i in range(max(regions) + 1)] for n in regions]


def test_labels_of_misaligned_pairs_change_no_loss_and_no_gradient(model):
    """Their words and regions are masked in the input all the same: only what was under the masks is changed."""
    objective = make_objective()
    batch = make_batch(objective)
    inputs = objective.mask(batch)
    assert (inputs.input_ids != batch.input_ids)[batch.misaligned].any()
    assert inputs.masked_regions.masked[batch.misaligned].any()
    losses, gradients = run(model, objective, batch)
    under_mask = batch.misaligned[:, None] & (inputs.input_ids == 4)
    other = dataclasses.replace(
        batch,
        input_ids=torch.where(under_mask, 39, batch.input_ids),
        class_ids=torch.where(batch.misaligned[:, None, None], batch.class_ids.flip(-1), batch.class_ids),
        class_probs=torch.where(batch.misaligned[:, None, None], batch.class_probs * 0.5, batch.class_probs),
    )
    again, other_gradients = run(model, objective, other)
    for name in ("words", "regions", "alignment"):
        assert torch.equal(losses.sums[name], again.sums[name])
    assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)


def test_misaligned_pairs_are_masked_like_aligned_ones(model):
    objective = make_objective()
    batch = make_batch(objective, misaligned=np.zeros(24, bool))
    swapped = dataclasses.replace(batch, misaligned=~batch.misaligned, predicted_tokens=0, predicted_regions=0)
    aligned, misaligned = objective.mask(batch), objective.mask(swapped)
    assert torch.equal(aligned.input_ids, misaligned.input_ids)
    assert torch.equal(aligned.features, misaligned.features)


@pytest.mark.parametrize("regions", [(RegionTerm(),), (FeatureTerm(),), ()], ids=["classes", "features", "none"])
def test_a_batch_without_an_aligned_pair_has_masked_losses_of_zero(model, regions):
    objective = make_objective(terms=(TokenTerm(), *regions, AlignmentTerm()))
    if regions == (FeatureTerm(),):
        model.regions = type(model.regions)(SIZES, 12)
    batch = make_batch(objective, misaligned=np.ones(24, bool))
    losses, gradients = run(model, objective, batch)
    assert (losses.local_counts["word_count"], losses.local_counts["region_count"]) == (0, 0)
    assert losses.sums["words"].item() == 0
    assert losses.sums.get("regions", torch.zeros(())).item() == 0
    assert losses.sums["alignment"].item() > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_a_caption_of_one_word_and_an_image_with_one_region(model):
    objective = make_objective()
    batch = make_batch(objective, count=40, words=2, regions=(1, 1))
    assert batch.input_ids.shape[1] == 3 and batch.valid.shape[1] == 1
    losses, _ = run(model, objective, batch)
    assert 0 < losses.local_counts["word_count"] < 20 and 0 < losses.local_counts["region_count"] < 20
    assert torch.isfinite(losses.loss(losses.local_counts.values()))


def test_regression_of_features_is_the_mean_squared_error(model):
    objective = make_objective(terms=(TokenTerm(), FeatureTerm(), AlignmentTerm()))
    model.regions = type(model.regions)(SIZES, 12)
    batch = make_batch(objective, classes=0, limits=Limits(max_tokens=20, max_regions=36, feature_size=12))
    inputs = objective.mask(batch)
    losses = objective.forward_losses(model, batch, inputs)
    encoded = model.encoder(inputs.input_ids, inputs.text_mask, inputs.features, inputs.locations, inputs.image_mask)
    picked = inputs.masked_regions.chosen & ~batch.misaligned[:, None]
    prediction = model.regions(encoded.image[:, 1:][picked])
    mean = F.mse_loss(prediction, batch.features[picked].float())
    torch.testing.assert_close(losses.sums["regions"] / losses.local_counts["region_count"], mean)


def test_losses_of_parts_add_up_to_the_loss_of_the_whole(model):
    """Divided by the counts of the whole, whatever the counts of the parts."""
    objective = make_objective()
    whole = make_batch(objective)
    total = run(model, objective, whole)[0]
    counts = total.local_counts.values()
    parts = 0
    for begin, end in ((0, 3), (3, 4), (4, 24)):
        part = whole._map(lambda x, begin=begin, end=end: x[begin:end])
        part.predicted_tokens, part.predicted_regions = objective.count_predictions(part)
        parts += objective.forward_losses(model, part, objective.mask(part)).loss(counts).item()
    assert parts == pytest.approx(total.loss(counts).item(), abs=1e-5)


def test_what_the_listed_classes_leave_is_spread_evenly():
    found = class_distribution(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.3]]), 4)
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.1, 0.5, 0.1]]))
    full = class_distribution(torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.41]]), 2)
    torch.testing.assert_close(full.sum(), torch.tensor(1.0))


def test_positions_without_waiting():
    mask = torch.rand(7, 9) < 0.3
    assert torch.equal(positions(mask, int(mask.sum())), mask.flatten().nonzero()[:, 0])
    assert positions(torch.zeros(3, 3, dtype=torch.bool), 0).shape == (0,)
