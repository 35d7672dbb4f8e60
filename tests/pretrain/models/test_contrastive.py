"""The contrastive loss and hard negatives: equal to loops over pairs, drawn as they should be, trained as a run."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_sets import make_dataset
from training_step import OBJECTIVE, SIZES, make_batch

from pretrain import load
from pretrain.data import random_choices
from pretrain.models.contrastive import TEMPERATURE, comparable, contrastive_losses, hard_negatives, retrieved
from pretrain.models.dropout import Dropout
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.objective.alignment_term import AlignmentTerm
from pretrain.objective.contrastive_term import ContrastiveTerm
from pretrain.objective.pretraining_loss import Objective
from pretrain.objective.region_term import RegionTerm
from pretrain.objective.token_term import TokenTerm
from shards.common import counter_rng

CONTRASTIVE = SIZES.replace(contrastive_size=16).with_dropout(0.0)
RUN = (*("--epochs", 4, "--batch_size", 16, "--lr", 0.003, "--workers", 0, "--validation_pairs", 30),)


def pairs_of(count=7):
    """Similarities of `count` pairs, of which 0 and 3 have one image, 1 and 4 one text, and 5 is misaligned."""
    torch.manual_seed(1)
    images, texts = torch.arange(count), torch.arange(count) + 100
    images[3], texts[4] = images[0], texts[1]
    aligned = torch.arange(count) != 5
    return torch.rand(count, count, dtype=torch.float64) * 2 - 1, comparable(images, texts, aligned)


def test_pairs_of_one_image_or_one_text_and_misaligned_ones_are_no_negatives():
    _, negatives = pairs_of()
    excluded = {(0, 3), (3, 0), (1, 4), (4, 1)} | {(n, n) for n in range(7)}
    excluded |= {(5, n) for n in range(7)} | {(n, 5) for n in range(7)}
    assert {(i, j) for i in range(7) for j in range(7) if not negatives[i, j]} == excluded


def test_contrastive_losses_equal_a_loop():
    similarities, negatives = pairs_of()
    losses, found = contrastive_losses(similarities, negatives), retrieved(similarities, negatives)
    for i in range(7):
        others = [j for j in range(7) if negatives[i, j]]
        by_caption = [similarities[i, j].item() for j in [i, *others]]
        by_image = [similarities[j, i].item() for j in [i, *others]]
        expected = 0.0
        for scores in (by_caption, by_image):
            exponentials = [math.exp(score / TEMPERATURE) for score in scores]
            expected -= math.log(exponentials[0] / sum(exponentials)) / 2
        assert losses[i].item() == pytest.approx(expected, abs=1e-9)
        assert found[i].item() == (by_caption[0] > max(by_caption[1:], default=-math.inf))
    assert losses[5] == 0  # it has nothing to be told apart from


def test_hard_negatives_are_drawn_by_similarity_and_follow_from_the_keys():
    similarities, negatives = pairs_of()
    similarities /= 10  # differences that leave every other pair a chance
    counts = {"image": np.zeros((7, 7)), "caption": np.zeros((7, 7))}
    draws = 4000
    for keys in torch.from_numpy(counter_rng.draw(np.arange(draws)[:, None], np.arange(7))):
        captions, images, found = hard_negatives(similarities, negatives, keys)
        assert found.tolist() == [True] * 5 + [False, True]
        for row in range(7):
            assert not found[row] or (captions[row] == row) != (images[row] == row)
            if found[row]:
                assert negatives[captions[row], images[row]]
                kind, other = ("image", images[row]) if captions[row] == row else ("caption", captions[row])
                counts[kind][row, other] += 1
    for kind, scores, allowed in (("image", similarities, negatives), ("caption", similarities.T, negatives.T)):
        expected = (scores / TEMPERATURE).masked_fill(~allowed, -math.inf).softmax(1).nan_to_num().numpy()
        total = counts[kind].sum(1, keepdims=True)
        shares = np.divide(counts[kind], total, out=np.zeros((7, 7)), where=total > 0)
        assert np.abs(shares - expected).max() < 0.05
        assert (np.abs(total[total > 0] / draws - 0.5) < 0.04).all()
    again = [hard_negatives(similarities, negatives, keys) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*again, strict=True))


def batch_of_aligned_pairs(count=10):
    batch = make_batch(count)
    batch.misaligned[:] = False
    batch.image_ids, batch.text_ids = torch.arange(count), torch.arange(count)
    batch.image_ids[4] = 3
    batch.predicted_tokens, batch.predicted_regions = OBJECTIVE.count_predictions(batch)
    batch.total_tokens, batch.total_regions = int(batch.lengths.sum()), int(batch.valid.sum())
    return batch


def contrastive_objective(weight: float, hard: bool = True) -> Objective:
    terms = TokenTerm(), RegionTerm(), AlignmentTerm(hard_negatives=hard), ContrastiveTerm(weight)
    return Objective(4, torch.arange(5, 40), terms=terms)


@pytest.mark.parametrize("counted", [True, False])
def test_losses_with_hard_negatives_equal_a_loop_over_pairs(counted):
    torch.manual_seed(0)
    model = PretrainingModel(CONTRASTIVE).train()
    objective = contrastive_objective(0.5)
    batch = batch_of_aligned_pairs()
    if not counted:
        batch.total_tokens = batch.total_regions = None  # states then keep their padding
    inputs = objective.mask(batch)
    with torch.no_grad():
        losses = objective.forward_losses(model, batch, inputs)
        encoder, size = model.encoder, len(batch)

        def one(caption, image):
            length, rows = int(batch.lengths[caption]), int(batch.valid[image].sum()) + 1
            return (
                inputs.input_ids[caption, None, :length],
                inputs.text_mask[caption, None, :length],
                inputs.features[image, None, :rows],
                inputs.locations[image, None, :rows],
                inputs.image_mask[image, None, :rows],
            )

        similarities = torch.empty(size, size)
        for i in range(size):
            for j in range(size):
                stream_states = encoder(*one(i, j)).stream_states
                text = F.normalize(encoder.contrast.text(stream_states.text[0].mean(0)), dim=0)
                image = torch.cat([stream_states.image[0].mean(0), stream_states.image[0].amax(0)])
                similarities[i, j] = text @ F.normalize(encoder.contrast.image(image), dim=0)
        negatives = comparable(batch.image_ids, batch.text_ids, ~batch.misaligned)
        captions, images, _ = hard_negatives(similarities, negatives, random_choices.negative_keys(batch.keys))
        aligned = right = 0.0
        for row in range(size):
            for pair, label in (((row, row), 0), ((int(captions[row]), int(images[row])), 1)):
                scores = model.alignment(encoder.fuse(encoder(*one(*pair))))
                aligned += F.cross_entropy(scores, torch.tensor([label])).item() / 2
                right += (scores.argmax() == label).item() / 2
    assert losses.sums["contrastive"].item() == pytest.approx(
        contrastive_losses(similarities, negatives).sum().item(), rel=1e-4
    )
    assert losses.sums["contrastive_right"] == retrieved(similarities, negatives).sum()
    assert losses.sums["contrastive_count"] == losses.local_counts["pair_count"] == size
    assert losses.sums["alignment"].item() == pytest.approx(aligned, rel=1e-4)
    assert losses.sums["alignment_right"].item() == pytest.approx(right)
    total = losses.loss((3, 4, 10)).item()
    plain = losses.sums["words"] / 3 + losses.sums["regions"] / 4 + losses.sums["alignment"] / 10
    assert total == pytest.approx((plain + 0.5 * losses.sums["contrastive"] / 10).item())


def test_alignment_is_validated_on_the_pairs_as_they_are():
    torch.manual_seed(0)
    model = PretrainingModel(CONTRASTIVE).eval()
    batch = batch_of_aligned_pairs()
    hard, plain = (contrastive_objective(1.0, hard) for hard in (True, False))
    with torch.no_grad():
        one, other = (objective.forward_losses(model, batch, objective.mask(batch)) for objective in (hard, plain))
    assert one.sums["alignment"] == other.sums["alignment"] and one.sums["contrastive"] == other.sums["contrastive"]


def test_a_single_pair_has_no_negative():
    torch.manual_seed(0)
    model = PretrainingModel(CONTRASTIVE).train()
    objective = contrastive_objective(1.0)
    batch = batch_of_aligned_pairs(5)._map(lambda x: x[:1])
    batch.predicted_tokens, batch.predicted_regions = objective.count_predictions(batch)
    batch.total_tokens, batch.total_regions = int(batch.lengths.sum()), int(batch.valid.sum())
    losses = objective.forward_losses(model, batch, objective.mask(batch))
    assert (
        losses.sums["contrastive"] == 0
        and losses.sums["contrastive_count"] == 0
        and torch.isfinite(losses.sums["alignment"])
    )
    losses.loss((1, 1, 1)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_dropout_of_region_features_is_a_dropout_of_its_own():
    sizes = SIZES.replace(v_feature_dropout=0.5)
    torch.manual_seed(0)
    model = PretrainingModel(sizes).train()
    dropout = model.encoder.image_embedding.feature_dropout
    assert isinstance(dropout, Dropout) and dropout.p == 0.5
    assert PretrainingModel(SIZES).encoder.image_embedding.feature_dropout is None
    assert sizes.with_dropout(0.1).v_feature_dropout == 0.5
    batch = make_batch()
    inputs = OBJECTIVE.mask(batch)
    with torch.no_grad():
        both = [OBJECTIVE.forward_losses(model, batch, inputs).sums["regions"] for _ in range(2)]
        evaluated = OBJECTIVE.forward_losses(model.eval(), batch, inputs).sums["regions"]
    assert both[0] == both[1] != evaluated  # it follows from the samples' keys


@pytest.fixture
def several_captions(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    make_dataset(folder, counts=(60, 60), per_image=2)
    return folder


def test_a_run_learns_resumes_and_keeps_its_embeddings(several_captions, tmp_path, run_command, ending):
    flags = (*RUN, "--data", several_captions, "--contrastive", 1, "--negatives", "hard", "--log_every", 1)
    whole, cut, half = tmp_path / "whole", tmp_path / "cut", 28
    status, out, err = run_command("pretrain.run", *flags, "--out", whole)
    assert (status, err) == (0, "") and "contrastive" in out
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert trained[-1]["loss_contrastive"] < trained[0]["loss_contrastive"]
    for line in trained:
        parts = [line[f"loss_{name}"] for name in ("words", "regions", "alignment", "contrastive")]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-5)
    scores = json.loads((whole / "result.json").read_text())["validation"]
    assert 0 <= scores["contrastive_accuracy"] <= 1
    assert scores["loss"] == pytest.approx(
        sum(scores[f"loss_{name}"] for name in ("words", "regions", "alignment", "contrastive"))
    )
    assert load(whole).contrast.text.weight.shape == (128, 128)
    with ending(before=half + 2):
        assert run_command("pretrain.run", *flags, "--out", cut, "--save_every", half)[0] == 130
    status, out, err = run_command("pretrain.run", "--out", cut, "--resume")
    assert (status, err) == (0, "") and f"resuming after step {half}" in out
    one, two = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
        for run in (whole, cut)
    )
    assert [line["loss"] for line in one] == [line["loss"] for line in two]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--negatives", "hard"), "--negatives hard: requires the contrastive loss"),
        (("--contrastive", 1, "--compile", "true"), "--contrastive 1: cannot be combined with --compile true"),
        (("--contrastive", -1), "--contrastive"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(several_captions, tmp_path, run_command, flags, message):
    status, _, err = run_command("pretrain.run", "--data", several_captions, "--out", tmp_path / "run", *flags)
    assert status == 2 and message in err
