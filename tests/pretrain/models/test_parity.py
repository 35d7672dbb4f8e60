"""The model against the published implementation's outputs on small random models."""

import functools
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import PARITY

from pretrain.data.batch import Batch
from pretrain.models.model_config import ModelConfig, model_config_from
from pretrain.models.packing import lay_out
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.models.vilbert import AttentionMaps, TwoStream, block_order
from pretrain.objective.masking import MaskedInputs, MaskedRegions
from pretrain.objective.pretraining_loss import Objective
from pretrain.pretrained.state_dict_mapping import from_published


def assert_close(ours, theirs, tolerance=1e-5):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max().item() <= tolerance


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU, id="gpu")])
def parity(parity, request):
    """The reference implementation's files on each device."""
    return {file: {name: value.to(request.param) for name, value in x.items()} for file, x in parity.items()}


@pytest.fixture(scope="module")
def config():
    return model_config_from(json.loads((PARITY / "config.json").read_text()), "parity")


def device_of(parity):
    return parity["inputs"]["input_ids"].device


@pytest.fixture
def pretraining(parity, config):
    model = PretrainingModel(config).eval().to(device_of(parity))
    weights, unknown = from_published(parity["pretrain_weights"])
    assert all(".q_dense" in name for name in unknown)
    model.load_state_dict(weights)
    return model


@pytest.fixture
def tasks(parity, config):
    weights, unknown = from_published(parity["tasks_weights"])
    assert all(".q_dense" in name or name.startswith("linguisic_logit") for name in unknown)
    model = TwoStream(config.replace(task_tokens=20)).eval().to(device_of(parity))
    model.load_state_dict({name[8:]: value for name, value in weights.items() if name.startswith("encoder.")})
    return model


def encode(model, x, **options):
    return model(
        x["input_ids"],
        x["text_mask"].bool(),
        x["features"],
        x["locations"],
        x["region_mask"].bool(),
        x["segment_ids"],
        **options,
    )


def test_pretraining_scores(parity, pretraining):
    theirs = parity["outputs"]
    encoded = encode(pretraining.encoder, parity["inputs"])
    assert_close(pretraining.word_scores(encoded.text), theirs["pre_scores_t"])
    assert_close(pretraining.regions(encoded.image), theirs["pre_scores_v"])
    assert_close(pretraining.alignment(pretraining.encoder.fuse(encoded)), theirs["pre_rel"])


@pytest.mark.parametrize("maps", [None, AttentionMaps()], ids=["fused", "exact maps"])
def test_hidden_states_and_poolers_with_task_tokens(parity, tasks, maps):
    theirs = parity["outputs"]
    encoded = encode(tasks, parity["inputs"], task_ids=parity["inputs"]["task_ids"][:, 0], maps=maps)
    assert_close(encoded.text, theirs["task_seq_t"])
    assert_close(encoded.image, theirs["task_seq_v"])
    assert_close(encoded.pooled_text, theirs["task_pool_t"])
    assert_close(encoded.pooled_image, theirs["task_pool_v"])


def test_every_attention_map(parity, tasks):
    maps = AttentionMaps()
    encode(tasks, parity["inputs"], task_ids=parity["inputs"]["task_ids"][:, 0], maps=maps)
    seen = 0
    for name, layers in vars(maps).items():
        for number, layer in enumerate(layers):
            assert_close(layer, parity["outputs"][f"attention_{name}.{number}"])
            seen += 1
    assert seen == sum(name.startswith("attention_") for name in parity["outputs"])


def test_states_and_maps_without_padding(parity, tasks):
    """Where a word or a region is, when the model is told how many there are and leaves the rest out."""
    x, theirs, maps = parity["inputs"], parity["outputs"], AttentionMaps()
    text_mask, image_mask = x["text_mask"].bool(), x["region_mask"].bool()
    counts = {"text_count": int(text_mask.sum()), "image_count": int(image_mask.sum())}
    assert lay_out(text_mask, counts["text_count"]).index is not None
    encoded = encode(tasks, x, task_ids=x["task_ids"][:, 0], maps=maps, **counts)
    text_mask = torch.cat([text_mask[:, :1], text_mask], 1)
    assert_close(encoded.text[text_mask], theirs["task_seq_t"][text_mask])
    assert_close(encoded.image[image_mask], theirs["task_seq_v"][image_mask])
    assert_close(encoded.pooled_text, theirs["task_pool_t"])
    assert_close(encoded.pooled_image, theirs["task_pool_v"])
    for number, layer in enumerate(maps.text):
        published = theirs[f"attention_text.{number}"]
        assert_close(layer.transpose(1, 2)[text_mask], published.transpose(1, 2)[text_mask])


def published_losses(parity, model):
    """The three losses through our objective, on the masks that the published run used."""
    x = parity["inputs"]
    aligned = (x["misaligned"] == 0)[:, None]
    token_positions = (aligned & (x["lm_labels"] >= 0)).flatten().nonzero()[:, 0]
    region_positions = (aligned & (x["region_labels"] == 1)).flatten().nonzero()[:, 0]
    size, regions, classes = x["region_targets"].shape
    batch = Batch(
        keys=torch.zeros(size, dtype=torch.int64, device=device_of(parity)),
        input_ids=x["input_ids"],
        lengths=x["text_mask"].sum(1),
        features=x["features"][:, 1:],
        boxes=x["locations"][:, 1:, :4],
        valid=x["region_mask"][:, 1:].bool(),
        class_ids=torch.arange(classes, device=device_of(parity)).expand(size, regions, classes),
        class_probs=x["region_targets"],
        misaligned=x["misaligned"].bool(),
        predicted_tokens=len(token_positions),
        predicted_regions=len(region_positions),
    )
    none = torch.zeros_like(batch.valid)
    inputs = MaskedInputs(
        input_ids=x["input_ids"],
        text_mask=x["text_mask"].bool(),
        features=x["features"],
        locations=x["locations"],
        image_mask=x["region_mask"].bool(),
        token_positions=token_positions,
        token_labels=x["lm_labels"].flatten()[token_positions],
        token_weights=torch.ones_like(token_positions, dtype=torch.bool),
        region_positions=region_positions,
        region_weights=torch.ones_like(region_positions, dtype=torch.bool),
        masked_regions=MaskedRegions(none, none, none),
    )
    objective = Objective(mask_id=4, ordinary_ids=torch.arange(5, 200)).to(device_of(parity))
    encoder = model.encoder
    encoder.forward = functools.partial(encoder.forward, segment_ids=x["segment_ids"])
    return objective.forward_losses(model, batch, inputs)


def test_losses(parity, pretraining):
    losses = published_losses(parity, pretraining)
    theirs = parity["outputs"]
    assert_close(losses.sums["words"] / losses.local_counts["word_count"], theirs["pre_loss_lm"][0])
    assert_close(losses.sums["regions"] / losses.local_counts["region_count"], theirs["pre_loss_region"][0])
    assert_close(losses.sums["alignment"] / losses.local_counts["pair_count"], theirs["pre_loss_align"][0])


def test_gradients(parity, pretraining):
    losses = published_losses(parity, pretraining)
    losses.loss(losses.local_counts.values()).backward()
    third = pretraining.encoder.config.bi_hidden_size
    encoder = pretraining.encoder
    ours = {
        "bert.embeddings.word_embeddings.weight": encoder.text_embedding.word.weight.grad,
        "bert.encoder.c_layer.0.biattention.query1.weight": encoder.connections[0].image_query_key_value.weight.grad[
            :third
        ],
        "bert.t_pooler.dense.weight": encoder.text_pooler.dense.weight.grad,
        "bert.v_embeddings.image_embeddings.weight": encoder.image_embedding.feature.weight.grad,
    }
    assert {f"grad.{name}" for name in ours} == {name for name in parity["outputs"] if name.startswith("grad.")}
    for name, gradient in ours.items():
        theirs = parity["outputs"][f"grad.{name}"]
        assert (gradient - theirs).norm() <= 2e-5 * theirs.norm(), name


def test_padding_changes_no_valid_output(parity, pretraining):
    """In float64, where a different shape of the same multiplication does not show."""
    pretraining = pretraining.double()
    x = {name: value.double() if value.is_floating_point() else value for name, value in parity["inputs"].items()}
    plain = encode(pretraining.encoder, x)
    text_mask, image_mask = x["text_mask"].bool(), x["region_mask"].bool()
    wild = x | {
        "input_ids": torch.where(text_mask, x["input_ids"], 77),
        "segment_ids": torch.where(text_mask, x["segment_ids"], 1),
        "features": torch.where(image_mask[..., None], x["features"], 50.0),
        "locations": torch.where(image_mask[..., None], x["locations"], -3.0),
    }
    padded = encode(pretraining.encoder, {name: widen(name, value) for name, value in wild.items()})
    assert_close(padded.text[:, : text_mask.shape[1]][text_mask], plain.text[text_mask], 1e-12)
    assert_close(padded.image[:, : image_mask.shape[1]][image_mask], plain.image[image_mask], 1e-12)
    assert_close(padded.pooled_text, plain.pooled_text, 1e-12)
    assert_close(padded.pooled_image, plain.pooled_image, 1e-12)


def widen(name: str, value):
    """Three more padded columns in whatever has columns."""
    if name in ("input_ids", "segment_ids", "text_mask", "region_mask"):
        return F.pad(value, (0, 3))
    return F.pad(value, (0, 0, 0, 3), value=9.0) if name in ("features", "locations") else value


def test_first_connection_sees_the_raw_image_and_the_lower_text_layers_no_image():
    order = block_order(ModelConfig())
    first = order.index(("co-attention", 0))
    assert order[:first] == [("text", layer) for layer in range(6)]
    assert order[first + 1 :] == [
        block
        for number in range(1, 6)
        for block in (("text", number + 5), ("image", number - 1), ("co-attention", number))
    ] + [("text", 11), ("image", 5)]


def test_the_published_configuration_has_the_published_number_of_parameters():
    """250.0 M, less the two unused matrices of each of the six connections."""
    with torch.device("meta"):
        model = PretrainingModel(ModelConfig())
    count = sum(parameter.numel() for parameter in model.parameters())
    unused = 6 * ((1024 * 1024 + 1024) + (1024 * 768 + 768))
    assert round((count + unused) / 1e6, 1) == 250.0
