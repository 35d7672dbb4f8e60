"""The time of a pretraining step of the base model, and its share of the matrix rate of the machine.

    python benchmarks/train_step.py [--device cuda] [--config base] [--batch_size 16] [--repeats 3]

First, forward and backward like the reference implementation, then with each of our changes: every line adds one to the
previous line, and the ratio is relative to the first line. Captions have the length distribution of Conceptual Captions
(12 tokens on average); the effect of trimming depends on the batch size, because larger batches have longer maxima.

Then the whole step of pretrain.run (masking, forward, backward, clipping, AdamW) in bf16: pairs per second, and the
FLOP/s of its matrix products, counted per operation, relative to those of one large bf16 product in the same run.
"""

import contextlib
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import ops
from benchmarks.pairs import SPECIAL, WORDS, random_batch
from benchmarks.timing import print_table, time_in_turn
from pretrain.data.batch import Batch
from pretrain.engine.optimizer import make_optimizer
from pretrain.engine.step import Engine, MetricSums
from pretrain.models.model_config import read_model_config
from pretrain.models.precision import Precision
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.objective.pretraining_loss import Objective
from pretrain.objective.pretraining_pass import PretrainingPass
from pretrain.objective.region_term import class_distribution
from shards.common.cli import command, flag
from shards.common.dist_info import ALONE

PUBLISHED_PAIRS = 3_100_000 * 10  # Conceptual Captions, ten epochs


@dataclass
class Config:
    """Flags of this benchmark."""

    config: str = flag("base", "model configuration")
    batch_size: int | None = flag(None, "pairs per step", unset="512 on a GPU, 16 on a CPU", low=1)
    device: str = flag("cuda" if torch.cuda.is_available() else "cpu", "device", choices=("cpu", "cuda"))
    repeats: int = flag(3, "timed steps of each variant", low=1)


def all_positions_loss(objective: Objective, model: PretrainingModel, batch: Batch) -> torch.Tensor:
    """As in the reference implementation, with the heads applied to every position and the loss to masked ones."""
    inputs = objective.mask(batch)
    encoded = model.encoder(inputs.input_ids, inputs.text_mask, inputs.features, inputs.locations, inputs.image_mask)
    labels = torch.full_like(batch.input_ids, -1).flatten()
    labels[inputs.token_positions] = inputs.token_labels
    words = F.cross_entropy(model.word_scores(encoded.text).flatten(0, 1).float(), labels, ignore_index=-1)
    scores = model.regions(encoded.image[:, 1:]).float()
    target = class_distribution(batch.class_ids.flatten(0, 1), batch.class_probs.flatten(0, 1), scores.shape[-1])
    per_region = F.kl_div(scores.log_softmax(-1).flatten(0, 1), target, reduction="none").sum(-1)
    chosen = torch.zeros_like(per_region)
    chosen[inputs.region_positions] = 1
    alignment = F.cross_entropy(model.alignment(model.encoder.fuse(encoded)).float(), batch.misaligned.long())
    return words + (per_region * chosen).sum() / chosen.sum() + alignment


def masked_positions_loss(objective: Objective, model: PretrainingModel, batch: Batch) -> torch.Tensor:
    losses = objective.forward_losses(model, batch, objective.mask(batch))
    return losses.loss(losses.local_counts.values())


@contextlib.contextmanager
def plain_operators():
    """Dropout, residual and LayerNorm as separate operations of torch, and dropout by torch's generator."""
    own = {name: getattr(ops, name) for name in ("dropout", "attention_dropout", "dropout_add_layer_norm")}

    def layer_norm(x, residual, weight, bias, keys, site, p, eps, dtype):
        return F.layer_norm((F.dropout(x, p) + residual).to(dtype), x.shape[-1:], weight, bias, eps)

    ops.dropout = lambda x, keys, site, p: F.dropout(x, p)
    ops.attention_dropout = lambda probs, query_keys, key_keys, site, p: F.dropout(probs, p)
    ops.dropout_add_layer_norm = layer_norm
    try:
        yield
    finally:
        for name, operator in own.items():
            setattr(ops, name, operator)


def waiting_for(device: torch.device, function):
    """Calls the function and synchronises with the device."""

    def call():
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return call


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of one large dense bf16 matrix product, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = waiting_for(device, lambda: a @ b)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def matrix_flops(pretraining_pass: PretrainingPass, batch: Batch) -> int:
    """FLOPs of the matrix products of one forward and backward pass; on a GPU without attention (about 1%)."""
    with FlopCounterMode(display=False) as counter:
        masked_positions_loss(pretraining_pass.objective, pretraining_pass.model, batch).backward()
    pretraining_pass.model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def whole_step(config: Config, batch: Batch, model: PretrainingModel, objective: Objective) -> None:
    """Times Engine.step, and prints its utilisation of the machine and a profile."""
    device = torch.device(config.device)
    optimizer = make_optimizer(model, 1e-4, (0.9, 0.98), 1e-8, 0.01)
    precision = Precision("bf16", device)
    pretraining_pass = PretrainingPass(model, objective, precision)
    engine = Engine(pretraining_pass, model, optimizer, precision, precision.scaler(), ALONE, 1.0)
    counts, number = (batch.predicted_tokens, batch.predicted_regions, len(batch)), iter(range(10**6))
    step = waiting_for(device, lambda: engine.step(next(number), [batch], MetricSums(), counts))
    seconds = time_in_turn({"step": step}, config.repeats)["step"]
    flops, rate = matrix_flops(pretraining_pass, batch), matrix_rate(device)
    print(
        f"\nwhole step, bf16: {len(batch) / seconds:.4g} pairs/s, {flops / len(batch) / 1e9:.1f} GFLOP a pair, "
        f"{flops / seconds / 1e12:.3g} of {rate / 1e12:.3g} TFLOP/s: {flops / seconds / rate:.0%} of the matrix rate"
    )
    hours = PUBLISHED_PAIRS / (len(batch) / seconds) / 3600
    print(f"at that pace, ten epochs of 3.1 million pairs take {hours:.4g} hours\n")
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step()
    times = {x.key: x.self_device_time_total if on_gpu else x.self_cpu_time_total for x in profiler.key_averages()}
    total = sum(times.values())
    for name, value in sorted(times.items(), key=lambda item: -item[1])[:12]:
        print(f"{value / total:6.1%}  {name[:100]}")


def run(config: Config) -> None:
    torch.manual_seed(0)
    device = torch.device(config.device)
    size = config.batch_size or (512 if device.type == "cuda" else 16)
    sizes = read_model_config(config.config)
    model = PretrainingModel(sizes).train().to(device)
    objective = Objective(mask_id=SPECIAL - 1, ordinary_ids=torch.arange(SPECIAL, sizes.vocab_size))
    padded = random_batch(size, sizes)
    packed = replace(padded, input_ids=padded.input_ids[:, : int(padded.lengths.max())])
    for batch in (padded, packed):
        batch.predicted_tokens, batch.predicted_regions = objective.count_predictions(batch)
    lengths = padded.lengths.float()
    where = torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(
        f"{config.config}, batch {size}, captions of {lengths.mean():.1f} tokens, the longest {int(lengths.max())} "
        f"(padded to {WORDS}); {device}, {where}, {torch.get_num_threads()} threads"
    )
    padded, packed, objective = padded.to(device), packed.to(device), objective.to(device)
    trimmed = replace(packed, total_tokens=None, total_regions=None)  # without counts, padding is not removed

    def step(loss, batch, operators=contextlib.nullcontext, precision=contextlib.nullcontext):
        with operators(), precision():
            value = loss(objective, model, batch)
        value.backward()
        model.zero_grad(set_to_none=True)

    def compiled():
        model.encoder._compiled_call_impl = compiled_call
        step(masked_positions_loss, packed, precision=bf16)
        model.encoder._compiled_call_impl = None

    bf16 = Precision("bf16", device).autocast
    model.encoder.compile(dynamic=True)
    compiled_call, model.encoder._compiled_call_impl = model.encoder._compiled_call_impl, None
    variants = {
        "as published": lambda: step(all_positions_loss, padded, plain_operators),
        "+ text trimmed": lambda: step(all_positions_loss, trimmed, plain_operators),
        "+ heads at masked positions only": lambda: step(masked_positions_loss, trimmed, plain_operators),
        "+ padding removed": lambda: step(masked_positions_loss, packed, plain_operators),
        "+ bf16": lambda: step(masked_positions_loss, packed, plain_operators, bf16),
        "+ dropout, residual and LayerNorm as one": lambda: step(masked_positions_loss, packed, precision=bf16),
        "+ compiled": compiled,
    }
    timed = {name: waiting_for(device, function) for name, function in variants.items()}
    print_table(time_in_turn(timed, config.repeats), "as published", unit="s/step")
    whole_step(config, packed, model, objective)


if __name__ == "__main__":
    command(Config, run, "benchmarks/train_step.py", __doc__.splitlines()[0], sys.argv[1:])
