"""Heads and losses of the twelve tasks against the published implementation's outputs."""

import shutil

import pytest
import torch
from conftest import PARITY

from finetune.heads.answer_head import AnswerHead
from finetune.heads.candidates_head import CandidatesHead
from finetune.heads.classification_head import ClassificationHead
from finetune.heads.grounding_head import GroundingHead
from finetune.heads.inputs import TaskInputs
from finetune.heads.pointing_head import PADDING
from finetune.heads.retrieval_head import OPTIONS
from finetune.models.task_model import PAPER_HEADS, TaskModel
from finetune.run_dirs.model_source import choose_source
from pretrain.models.model_config import TINY
from pretrain.pretrained.state_dict_mapping import our_name
from shards.common.errors import UserError


def assert_close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=tolerance)


@pytest.fixture(scope="module")
def model(parity, tmp_path_factory):
    """The published weights by way of --init, with nothing missing and no weight of a used head without a place."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(parity["tasks_weights"], folder / "multi_task_model.bin")
    shutil.copy(PARITY / "config.json", folder)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(195))]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    source = choose_source(str(folder / "multi_task_model.bin"), None, None, (), 24)
    assert source.kind == "AT->ST"
    assert source.weights.heads == {
        "vqa": 3129,
        "gqa": 1533,
        "nlvr2": 2,
        "retrieval": 1,
        "entailment": 3,
        "pointing": 1,
    }
    model = TaskModel(source.sizes, {"vqa": 3129, "gqa": 1533}).eval()
    missing, unexpected = source.load(model)
    assert missing == []
    assert all(".q_dense" in n or n.startswith(("linguisic", "words", "regions", "alignment")) for n in unexpected)
    return model


HEADS = {head.name: head for head in (AnswerHead("vqa"), AnswerHead("gqa"), CandidatesHead(), *PAPER_HEADS)}


def inputs_of(parity, rows=slice(None), **options) -> TaskInputs:
    x = {name: value[rows] for name, value in parity["inputs"].items()}
    return TaskInputs(
        x["input_ids"],
        x["text_mask"].bool(),
        x["features"],
        x["locations"],
        x["region_mask"].bool(),
        x["task_ids"][:, 0],
        **options,
    )


@pytest.fixture(scope="module")
def scores(parity, model):
    def of(head, rows=slice(None), **options):
        x = inputs_of(parity, rows, **options)
        segments = parity["inputs"]["segment_ids"][rows]  # the published inputs have two; the tasks use the first alone
        with torch.no_grad():
            encoded = model.encoder(
                x.input_ids, x.text_mask, x.features, x.locations, x.image_mask, segments, x.task_ids
            )
            return model.logits(encoded, x, HEADS[head])

    return of


def test_every_head(parity, scores):
    theirs = parity["outputs"]
    assert_close(scores("vqa"), theirs["task_vil_prediction"])
    assert_close(scores("gqa"), theirs["task_vil_prediction_gqa"])
    assert_close(scores("retrieval"), theirs["task_vil_logit"][:, 0])
    assert_close(scores("nlvr2", slice(4)), theirs["task_vil_binary_prediction_first4"])
    assert_close(scores("entailment"), theirs["task_vil_tri_prediction"])
    valid = parity["inputs"]["region_mask"].bool()
    assert_close(scores("regions")[valid], theirs["task_vision_logit"][..., 0][valid])
    assert (scores("regions")[~valid] == PADDING).all() and not valid.all()
    assert_close(scores("candidates", candidates=3), scores("regions")[:, -3:])


def test_bf16_stays_within_its_bounds(parity, scores):
    """The bounds that docs/published.md states, as shares of an output's largest value."""
    theirs = parity["outputs"]
    with torch.autocast("cpu", torch.bfloat16):
        for head, name in (("vqa", "prediction"), ("gqa", "prediction_gqa"), ("entailment", "tri_prediction")):
            published = theirs[f"task_vil_{name}"]
            error = (scores(head).float() - published).abs() / published.abs().max()
            assert 0 < error.mean() < 3e-3 and error.max() < 1.5e-2, (head, error.mean(), error.max())


def test_every_loss(parity, scores):
    theirs = parity["outputs"]
    assert_close(HEADS["vqa"].losses(scores("vqa"), theirs["target_vqa"]).mean(), theirs["loss_vqa"], 1e-3)
    assert_close(
        HEADS["regions"].losses(scores("regions"), theirs["target_regions"][..., 0]).mean(), theirs["loss_regions"]
    )
    labels = theirs["target_tri"].argmax(1)
    assert_close(HEADS["entailment"].losses(scores("entailment"), labels).mean(), theirs["loss_tri"])
    labels = theirs["target_binary"].argmax(1)
    assert_close(HEADS["nlvr2"].losses(scores("nlvr2", slice(4)), labels).mean(), theirs["loss_binary_first4"])
    first = scores("retrieval", slice(OPTIONS))
    assert_close(HEADS["retrieval"].losses(first, None).mean(), theirs["loss_retrieval_first4"])


def test_the_loss_of_an_example_is_its_own(scores):
    """A batch's losses are those of its examples one by one."""
    torch.manual_seed(0)
    target = torch.rand(5, 11).where(torch.rand(5, 11) > 0.7, torch.zeros(()))
    whole = HEADS["regions"].losses(scores("regions"), target)
    alone = [HEADS["regions"].losses(scores("regions", slice(n, n + 1)), target[n : n + 1]) for n in range(5)]
    assert_close(whole, torch.cat(alone))


def test_scores_in_training_are_how_right_the_likeliest_choice_is():
    scores = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    soft = torch.tensor([[1.0, 0.6, 0.0], [0.0, 1.0, 0.0]])
    assert HEADS["vqa"].training_scores(scores, soft).tolist() == pytest.approx([0.6, 0])
    assert HEADS["regions"].training_scores(scores, soft).tolist() == [1, 0]  # an IoU of 0.5 or more is right
    assert HEADS["entailment"].training_scores(scores, torch.tensor([1, 1])).tolist() == [1, 0]
    pairs = torch.tensor([2.0, 1.0, 0.0, 1.0, 1.0, 0.0, 3.0, 2.0])  # the first of every four belongs
    assert HEADS["retrieval"].training_scores(pairs, None).tolist() == [1, 0]


def test_padding_adds_nothing_to_a_loss_and_is_never_chosen(parity, model):
    inputs = inputs_of(parity)
    narrow = model(inputs, HEADS["regions"])
    pad = torch.nn.functional.pad
    wide = TaskInputs(
        inputs.input_ids,
        inputs.text_mask,
        pad(inputs.features, (0, 0, 0, 4), value=7.0),
        pad(inputs.locations, (0, 0, 0, 4), value=1.0),
        pad(inputs.image_mask, (0, 4)),
        inputs.task_ids,
    )
    padded = model(wide, HEADS["regions"])
    assert_close(padded[:, :11], narrow)
    target = torch.zeros(5, 11)
    assert_close(HEADS["regions"].losses(padded, pad(target, (0, 4))), HEADS["regions"].losses(narrow, target))
    assert (padded.argmax(1) < 11).all()


def test_published_names():
    assert our_name("vil_prediction.logit_fc.3.bias") == ("heads.vqa.decoder.bias", None)
    assert our_name("vil_prediction_gqa.logit_fc.0.weight") == ("heads.gqa.dense.weight", None)
    assert our_name("bert.encoder.c_layer.12.biattention.value2.bias") == (
        "encoder.connections.12.text_query_key_value.bias",
        2,
    )
    assert our_name("linguisic_logit.weight") is None and our_name("bert.x") is None


def test_heads_of_one_name_have_the_same_labels():
    sizes = TINY.replace(vocab_size=30, v_feature_size=4)
    TaskModel(sizes, {}, [GroundingHead(ranked=True), ClassificationHead("mood", ("good", "bad"))])
    with pytest.raises(UserError, match=r"two tasks have the head entailment with different labels \(no, yes, and"):
        TaskModel(sizes, {}, [ClassificationHead("entailment", ("no", "yes"))])
    moods = [ClassificationHead("mood", labels) for labels in (("good", "bad"), ("bad", "good"))]
    with pytest.raises(UserError, match="two tasks have the head mood"):
        TaskModel(sizes, {}, moods)
