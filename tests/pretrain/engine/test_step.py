"""One optimizer step: precision, steps that are skipped, memory saved, compiled, and apex's optimizers."""

import functools
import json
import math
import sys
import types
from dataclasses import replace

import fake_apex
import numpy as np
import pytest
import torch
from torch import nn
from training_step import BETAS, EPSILON, OBJECTIVE, SIZES, make_batch, make_engine, part_of
from without_content import nothing_is_asked, without_content

from pretrain.engine.optimizer import OPTIMIZERS, optimizer_state, restore_optimizer
from pretrain.engine.step import IN_A_ROW, MetricSums, SkippedSteps
from pretrain.models.layers import FeedForward
from pretrain.models.precision import Precision
from pretrain.objective.pretraining_pass import PretrainingPass
from shards.common.dist_info import ALONE, Ranks
from shards.common.errors import UserError


def take(engine, batch, steps):
    """The mean loss of each of some steps on the same batch."""
    losses, counts = [], (batch.predicted_tokens, batch.predicted_regions, len(batch))
    for step in range(steps):
        sums = MetricSums()
        engine.step(step, [batch], sums, counts)
        engine.skipped.check()
        losses.append(engine.replica.metrics(sums.pop_totals(ALONE))["loss"])
    return losses


def copied(tensors):
    return {name: value.clone() for name, value in tensors.items()}


def weights(engine):
    return copied(engine.model.state_dict())


@functools.cache
def in_float32(seed: int) -> list[float]:
    """The losses of 25 steps without dropout on a batch with masks of this seed."""
    return take(make_engine(dropout=0), masked_by(seed), 25)


def masked_by(seed: int):
    batch = make_batch()
    batch.keys += seed
    batch.predicted_tokens, batch.predicted_regions = OBJECTIVE.count_predictions(batch)
    return batch


@pytest.mark.parametrize(("precision", "near"), [("float64", 1e-5), ("bf16", 0.03), ("fp16", 0.01)])
def test_every_precision_follows_float32(precision, near):
    """By the median over three masks: at some, 25 steps blow up the rounding of either to several times as much."""
    furthest = []
    for seed in range(3):
        losses = take(make_engine(precision, dropout=0), masked_by(seed), 25)
        furthest.append(max(abs(a - b) / max(b, 1) for a, b in zip(losses, in_float32(seed), strict=True)))
        assert losses[-1] < 0.1 * losses[0]
    assert np.median(furthest) < near


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_and_layer_norm_are_float32_in_a_narrow_precision(precision):
    engine, seen = make_engine(precision), []
    for module in engine.model.modules():
        module.register_forward_hook(lambda module, _, out: seen.append((type(module), out)))
    batch = make_batch()
    _, losses = engine.replica.losses(batch)
    assert {losses.sums[name].dtype for name in ("words", "regions", "alignment")} == {torch.float32}
    norms = [out.dtype for kind, out in seen if issubclass(kind, (nn.LayerNorm, FeedForward))]
    linears = [out.dtype for kind, out in seen if issubclass(kind, nn.Linear)]
    assert len(norms) > 8 and set(norms) == {torch.float32}
    assert len(linears) > 10 and set(linears) == {engine.precision.dtype}
    assert {p.dtype for p in engine.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_step_whose_gradients_are_not_finite_changes_nothing_and_is_counted(precision):
    engine, batch = make_engine(precision), make_batch()
    take(engine, batch, 3)
    before, moments = weights(engine), copied(optimizer_state(engine.model, engine.optimizer))
    bad = make_batch()
    bad.features[2, 0] = math.inf
    take(engine, bad, 1)
    after = weights(engine)
    assert engine.skipped.count == 1
    assert all(torch.equal(before[name], after[name]) for name in before)
    kept = optimizer_state(engine.model, engine.optimizer)
    assert all(torch.equal(moments[name], kept[name]) for name in moments)
    take(engine, batch, 1)
    assert engine.skipped.count == 1 and engine.skipped.streak == 0
    assert any(not torch.equal(before[name], value) for name, value in weights(engine).items())


@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize("clip", [0.0, 0.25, 1e6])
def test_gradients_are_cut_to_the_largest_norm_and_the_log_has_the_whole(precision, clip):
    """With plain gradient descent at a rate of one, a step is as long as its gradient."""
    engine, batch, sums = make_engine(precision), make_batch(), MetricSums()
    engine.optimizer, engine.clip = torch.optim.SGD(engine.model.parameters(), lr=1.0), clip
    before = weights(engine)
    engine.step(0, [batch], sums, (batch.predicted_tokens, batch.predicted_regions, len(batch)))
    length = math.sqrt(sum(float((value - before[name]).square().sum()) for name, value in weights(engine).items()))
    whole = sums.pop_totals(ALONE)["gradient_norm"]
    assert whole > 1 and length == pytest.approx(min(whole, clip or math.inf), rel=1e-3)


@pytest.mark.parametrize("clip", [0.0, 0.25, 1e6])
def test_the_fused_optimizer_clips_as_a_plain_one_whose_gradients_were_cut(clip):
    fused, plain, batch = make_engine(dropout=0), make_engine(dropout=0), make_batch()
    plain.optimizer = torch.optim.AdamW(plain.optimizer.param_groups, lr=1e-3, betas=BETAS, eps=EPSILON, fused=False)
    for engine in (fused, plain):
        engine.clip = clip
        take(engine, batch, 3)
    for (name, mine), (_, other) in zip(weights(fused).items(), weights(plain).items(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6, msg=name)


def test_dropout_follows_from_the_sample_and_not_from_the_step_the_rank_or_the_part():
    whole = make_batch()
    halves = [part_of(whole, slice(6)), part_of(whole, slice(6, 12))]
    counts = (whole.predicted_tokens, whole.predicted_regions, len(whole))

    def loss(step=5, rank=0, parts=(whole,)):
        engine, sums = make_engine("float64", dropout=0.3), MetricSums()
        engine.ranks = replace(ALONE, rank=rank)
        engine.step(step, list(parts), sums, counts)
        return sums.values["words"].item()

    assert loss() == loss(step=6) == loss(rank=1)
    assert loss(parts=halves) == pytest.approx(loss(), rel=1e-12)
    other = replace(whole, keys=whole.keys + 1)
    other.predicted_tokens, other.predicted_regions = OBJECTIVE.count_predictions(other)
    assert loss(parts=(other,)) != loss()


def test_a_skipped_step_adds_nothing_to_the_log():
    engine, sums = make_engine(), MetricSums()
    good, bad = make_batch(), make_batch()
    bad.features[:, 0] = math.nan
    for step, batch in enumerate((good, bad)):
        engine.step(step, [batch], sums, (batch.predicted_tokens, batch.predicted_regions, len(batch)))
    reading, alone = engine.replica.metrics(sums.pop_totals(ALONE)), take(make_engine(), good, 1)
    assert reading["loss"] == alone[0] and math.isfinite(reading["gradient_norm"])


def test_ten_in_a_row_end_the_run():
    skipped = SkippedSteps()
    for number in range(30):
        skipped.note(number, torch.tensor(number % IN_A_ROW == 0))
        skipped.check()
    assert skipped.count == 27 and skipped.streak == IN_A_ROW - 1
    skipped.note(30, torch.tensor(True))
    with pytest.raises(UserError, match=r"10 consecutive steps, up to step 41, were not finite"):
        for number in range(31, 42):
            skipped.note(number, torch.tensor(False))
            skipped.check()


def test_a_run_whose_gradients_burst_stops_with_its_last_checkpoint(dataset_folder, tmp_path, run_command):
    """A learning rate that no model survives: the run says so and can be told from a good one by its status."""
    flags = ("--data", dataset_folder, "--batch_size", 8, "--save_every", 3, "--workers", 0, "--epochs", 20)
    status, _, err = run_command("pretrain.run", *flags, "--lr", 1e30, "--warmup", 0, "--out", tmp_path / "run")
    assert status == 2 and "10 consecutive steps, up to step" in err and "lower --lr" in err
    assert "Traceback" not in err


def gradients(engine, batch):
    torch.manual_seed(5)
    _, losses = engine.replica.losses(batch)
    losses.loss((batch.predicted_tokens, batch.predicted_regions, len(batch))).backward()
    return losses, {name: p.grad for name, p in engine.model.named_parameters()}


def test_activation_checkpointing_changes_no_gradient():
    """With dropout, which must be the same when activations are worked out again."""
    batch, calls = make_batch(), []
    plain, expected = gradients(make_engine(), batch)
    engine = make_engine(prepare=lambda model: setattr(model.encoder, "activation_checkpointing", True))
    layer = engine.model.encoder.text_layers[0]
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    losses, found = gradients(engine, batch)
    assert len(calls) == 2
    assert torch.equal(plain.sums["words"], losses.sums["words"]) and torch.equal(
        plain.sums["alignment"], losses.sums["alignment"]
    )
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_compiled_streams_give_the_same_loss_and_gradients():
    """With one layer of each kind: compiling more of them takes as many times as long."""
    sizes = SIZES.replace(num_hidden_layers=2, v_num_hidden_layers=1, v_biattention_id=(0,), t_biattention_id=(1,))
    batch = make_batch()
    plain, expected = gradients(make_engine(dropout=0, sizes=sizes), batch)
    compiled = make_engine(dropout=0, sizes=sizes, prepare=lambda model: model.encoder.compile(dynamic=True))
    losses, found = gradients(compiled, batch)
    torch.testing.assert_close(plain.sums["words"], losses.sums["words"], rtol=1e-5, atol=1e-5)
    for name in expected:
        torch.testing.assert_close(expected[name], found[name], rtol=1e-3, atol=2e-5, msg=name)


def test_an_empty_part_gives_no_gradient():
    """What a rank works through that has no pair of a step: finite, and nothing."""
    engine, whole = make_engine(), make_batch()
    batch = whole._map(lambda x: x[:0])
    batch.predicted_tokens = batch.predicted_regions = 0
    _, losses = engine.replica.losses(batch)
    losses.loss((5, 5, 5)).backward()
    grads = [p.grad for p in engine.model.parameters() if p.grad is not None]
    assert len(grads) > 50 and all((grad == 0).all() for grad in grads)


@pytest.fixture
def apex(monkeypatch):
    fake_apex.install(monkeypatch)


def test_apex_is_used_as_torchs_own_optimizer_is(apex):
    batch = make_batch()
    reference, fused = make_engine(dropout=0), make_engine(dropout=0, kind="apex")
    assert list(reference.model.state_dict()) == list(fused.model.state_dict())
    decays = [[group["weight_decay"] for group in e.optimizer.param_groups] for e in (reference, fused)]
    sizes = [[len(group["params"]) for group in e.optimizer.param_groups] for e in (reference, fused)]
    assert decays[0] == decays[1] and sizes[0] == sizes[1]
    assert take(fused, batch, 8) == pytest.approx(take(reference, batch, 8), rel=1e-4)


def test_apexs_lamb_has_the_whole_gradient(apex):
    """Each weight that decays moves by the share `lr` of its length, down the loss."""
    engine, batch = make_engine(dropout=0, kind="apex_lamb"), make_batch()
    before = weights(engine)["encoder.text_layers.0.feed_forward.up.weight"]
    losses = take(engine, batch, 1)
    after = weights(engine)["encoder.text_layers.0.feed_forward.up.weight"]
    assert (after - before).norm() == pytest.approx(1e-3 * before.norm().item(), rel=1e-3)
    assert take(engine, batch, 7)[-1] < losses[0] - 1


@pytest.mark.parametrize("kind", ["adamw", "apex", "apex_lamb"])
def test_an_optimizer_goes_on_where_it_was(apex, kind):
    batch = make_batch()
    whole = make_engine(kind=kind)
    first = take(whole, batch, 4)
    state, kept = copied(optimizer_state(whole.model, whole.optimizer)), weights(whole)
    rest = take(whole, batch, 4)
    other = make_engine(kind=kind)
    other.model.load_state_dict(kept)
    restore_optimizer(other.model, other.optimizer, state)
    assert take(other, batch, 4) == rest and rest[0] != first[0]


@pytest.mark.parametrize("kind", ["NAdam", "Adagrad", "RMSprop", "Adamax", "SGD"])
def test_any_optimizer_of_torch_goes_on_where_it_was(monkeypatch, kind):
    """Nothing that it keeps is lost, whatever its name."""
    options = {"momentum": 0.9} if kind in ("RMSprop", "SGD") else {}

    def make(groups, lr, betas, eps, bias_correction):
        return getattr(torch.optim, kind)(groups, lr=lr, **options)

    monkeypatch.setitem(OPTIMIZERS, kind, make)
    batch = make_batch()
    whole = make_engine(kind=kind)
    take(whole, batch, 3)
    state, kept = copied(optimizer_state(whole.model, whole.optimizer)), weights(whole)
    rest = take(whole, batch, 3)
    other = make_engine(kind=kind)
    other.model.load_state_dict(kept)
    restore_optimizer(other.model, other.optimizer, state)
    assert take(other, batch, 3) == rest


@pytest.mark.parametrize("kind", ["adamw", "apex"])
def test_the_state_of_a_checkpoint_of_version_0_1_is_restored(apex, kind):
    batch = make_batch()
    whole = make_engine(kind=kind)
    take(whole, batch, 4)
    state, kept = copied(optimizer_state(whole.model, whole.optimizer)), weights(whole)
    rest = take(whole, batch, 3)
    earlier = {name.replace("exp_avg_sq/", "moment2.").replace("exp_avg/", "moment1."): v for name, v in state.items()}
    earlier = {name: value for name, value in earlier.items() if name.startswith("moment")}
    other = make_engine(kind=kind)
    other.model.load_state_dict(kept)
    restore_optimizer(other.model, other.optimizer, earlier | {"updates": torch.tensor(4.0)})
    assert take(other, batch, 3) == rest


def test_an_optimizer_whose_state_is_no_tensor_is_not_stored_in_part():
    engine = make_engine()
    parameter = next(engine.model.parameters())
    engine.optimizer.state[parameter]["history"] = [1, 2]
    with pytest.raises(TypeError, match="keeps history, a list; only tensors can be stored"):
        optimizer_state(engine.model, engine.optimizer)


def test_without_apex_and_with_the_package_of_that_name_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(UserError, match="apex is not installed; build NVIDIA apex from source"):
        make_engine(kind="apex")
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    with pytest.raises(UserError, match="the PyPI package apex is a different project"):
        make_engine(kind="apex_lamb")


def test_an_apex_without_its_extensions_is_a_plain_error(monkeypatch):
    """They are asked for when an optimizer is made, and not before."""

    def unbuilt(*_, **__):
        raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")

    fake_apex.install(monkeypatch, FusedAdam=unbuilt)
    with pytest.raises(UserError, match=r"--optimizer apex: .*requires cuda extensions.* needs a GPU and its CUDA ext"):
        make_engine(kind="apex")


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_step_asks_for_no_number(precision):
    engine, batch = make_engine(precision), make_batch()
    take(engine, batch, 1)  # the optimizer's state is made
    with nothing_is_asked() as mode:
        sums, counts = MetricSums(), (batch.predicted_tokens, batch.predicted_regions, len(batch))
        engine.step(1, [without_content(batch, mode)], sums, counts)
    assert set(sums.values) > {"words", "regions", "alignment", "gradient_norm", "steps"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_a_gpu_masks_what_the_cpu_masks():
    batch = make_batch(200)
    on_cpu, on_gpu = OBJECTIVE.mask(batch), OBJECTIVE.to("cuda").mask(batch.to("cuda"))
    for name in ("input_ids", "text_mask", "image_mask", "token_positions", "token_labels", "region_positions"):
        assert torch.equal(getattr(on_cpu, name), getattr(on_gpu, name).cpu()), name
    for name in vars(on_cpu.masked_regions):
        assert torch.equal(getattr(on_cpu.masked_regions, name), getattr(on_gpu.masked_regions, name).cpu()), name
    torch.testing.assert_close(on_cpu.features, on_gpu.features.cpu())
    torch.testing.assert_close(on_cpu.locations, on_gpu.locations.cpu())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_a_step_never_waits_for_the_gpu():
    engine, batch = make_engine(), make_batch().to("cuda")
    engine.model.to("cuda")
    engine.precision = Precision("bf16", torch.device("cuda"))
    engine.scaler = engine.precision.scaler()
    engine.replica = PretrainingPass(engine.model, OBJECTIVE.to("cuda"), engine.precision)
    counts, sums = (batch.predicted_tokens, batch.predicted_regions, len(batch)), MetricSums()
    engine.step(0, [batch], sums, counts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            engine.step(step, [batch], sums, counts)
            engine.skipped.check()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(engine.replica.metrics(sums.pop_totals(ALONE))["loss"])


def test_sums_go_on_after_a_checkpoint_on_any_number_of_ranks():
    sums, counted = MetricSums(), torch.tensor(True)
    for value in (0.1, 0.7):
        sums.add({"loss": torch.tensor(value), "steps": 1}, counted)
    (state,) = json.loads(json.dumps(sums.state(ALONE)))
    cpu = torch.device("cpu")
    assert MetricSums.restored([state], ALONE, cpu).pop_totals(ALONE) == sums.pop_totals(ALONE) == state
    assert MetricSums.restored([], ALONE, cpu).values == {}
    of_two = [{"loss": 0.25, "steps": 2.0}, {"loss": 0.5, "steps": 2.0}]
    assert MetricSums.restored(of_two, ALONE, cpu).pop_totals(ALONE) == {"loss": 0.75, "steps": 4.0}
    on_three = [MetricSums.restored(of_two, Ranks(rank, 3), cpu).pop_totals(ALONE) for rank in range(3)]
    assert on_three == [{"loss": 0.75, "steps": 4.0}] + [{"loss": 0.0, "steps": 0.0}] * 2
    on_two = [MetricSums.restored(of_two, Ranks(rank, 2), cpu).pop_totals(ALONE) for rank in range(2)]
    assert on_two == of_two
