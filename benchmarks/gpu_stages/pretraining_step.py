"""The pretraining step: its time, FLOPs, memory and kernels, in several ways."""

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.gpu_stages.measuring import BATCH_SIZE, DEVICE, ON_GPU, Record, matrix_rate, timed, wait

EAGER, GRAPH, FASTEST = "eager", "--cuda_graph true", "--residual precision --cuda_graph true"
WAYS = {
    EAGER: {},
    "--residual precision": {"residual": "precision"},
    GRAPH: {"graph": True},
    FASTEST: {"residual": "precision", "graph": True},
}


def model_config():
    """The configuration of the paper; in a dry run the tiny one, with dropout."""
    from pretrain.models.model_config import TINY, ModelConfig

    return ModelConfig() if ON_GPU else TINY.with_dropout(0.1)


def pretraining_batches(count: int, size: int) -> list:
    """Batches with different captions and different maximum lengths, counted as in collation."""
    from benchmarks.pairs import SPECIAL, random_batch
    from pretrain.objective.pretraining_loss import Objective

    sizes = model_config()
    objective = Objective(mask_id=SPECIAL - 1, ordinary_ids=torch.arange(SPECIAL, sizes.vocab_size))
    whole, batches = random_batch(size, sizes), []
    for number in range(count):
        batch = random_batch(size, sizes, words=24 + number % 13, seed=number)
        batch.features = whole.features  # irrelevant for the time, and slow to generate
        batch.input_ids = batch.input_ids[:, : int(batch.lengths.max())]
        batch.predicted_tokens, batch.predicted_regions = objective.count_predictions(batch)
        batches.append(batch)
    return batches


def make_engine(
    precision: str = "bf16",
    dropout: float | None = None,
    device=DEVICE,
    prepare=lambda model: None,
    residual: str = "float32",
    graph: bool = False,
):
    """The engine of pretrain.run. prepare: called with the model before it is used."""
    from benchmarks.pairs import SPECIAL, WORDS
    from pretrain.engine import cuda_graph
    from pretrain.engine.optimizer import make_optimizer
    from pretrain.models.precision import Precision
    from pretrain.engine.step import Engine
    from pretrain.models.layers import narrow_hidden_states
    from pretrain.models.pretraining_heads import PretrainingModel
    from pretrain.objective.pretraining_loss import Objective
    from pretrain.objective.pretraining_pass import PretrainingPass
    from shards.common.dist_info import ALONE

    sizes = model_config() if dropout is None else model_config().with_dropout(dropout)
    torch.manual_seed(0)
    model = PretrainingModel(sizes).train().to(device)
    if residual == "precision":
        narrow_hidden_states(model)
    prepare(model)
    how = Precision(precision, device)
    objective = Objective(mask_id=SPECIAL - 1, ordinary_ids=torch.arange(SPECIAL, sizes.vocab_size))
    optimizer = make_optimizer(model, 1e-4, (0.9, 0.98), 1e-8, 0.01)
    engine = Engine(PretrainingPass(model, objective.to(device), how), model, optimizer, how, how.scaler(), ALONE, 1.0)
    if graph:
        if not ON_GPU:
            cuda_graph.capture = lambda function: function
        engine.graph = cuda_graph.GraphedPass(engine.replica, 1, WORDS, engine.scaler.scale)
    return engine


def take(engine, batch, step: int, sums=None) -> None:
    from pretrain.engine.step import MetricSums

    counts = batch.predicted_tokens, batch.predicted_regions, len(batch)
    engine.step(step, [batch], MetricSums() if sums is None else sums, counts)


def useful_flops(config, text_rows: int, image_rows: int, words: int = 0, regions: int = 0) -> int:
    """FLOPs of forward and backward over rows that are not padding, without those of attention (about 1%).

    words, regions: how many are predicted.
    """
    h, i, b = config.hidden_size, config.v_hidden_size, config.bi_hidden_size
    connections = len(config.v_biattention_id)
    text = config.num_hidden_layers * (4 * h * h + 2 * h * config.intermediate_size)
    text += connections * (4 * h * b + 2 * h * config.intermediate_size)
    image = config.v_num_hidden_layers * (4 * i * i + 2 * i * config.v_intermediate_size)
    image += connections * (4 * i * b + 2 * i * config.v_intermediate_size)
    heads = words * (h * h + h * config.vocab_size) + regions * (i * i + i * config.v_target_size)
    embedding = 4 * image_rows * config.v_feature_size * i  # without the gradient of the features
    return 6 * (text_rows * text + image_rows * image + heads) + embedding


def flops_of(batch) -> int:
    rows = batch.image_row_count
    return useful_flops(model_config(), batch.total_tokens, rows, batch.predicted_tokens, batch.predicted_regions)


def record_step(record: Record, name: str, size: int, **ways) -> None:
    """One variant of the step (see make_engine) at one batch size: milliseconds, MFU, memory, kernels."""
    batches = [batch.to(DEVICE) for batch in pretraining_batches(8 if ON_GPU else 2, size)]
    engine, number = make_engine(**ways), 0

    def step():
        nonlocal number
        take(engine, batches[number % len(batches)], number)
        number += 1

    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step()
    wait()
    first = time.perf_counter() - began
    seconds, host = timed(step, warmup=8)
    work, rate = statistics.mean(map(flops_of, batches)), matrix_rate()
    record.add(
        way=name,
        batch_size=size,
        ms=seconds * 1e3,
        host_ms=host * 1e3,
        pairs_per_second=size / seconds,
        gflop_per_pair=work / size / 1e9,
        mfu=work / seconds / rate,
        matrix_tflops=rate / 1e12,
        first_step_s=first,
        peak_gb=torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0,
        **kernels(step),
    )


def kernels(function: Callable, most: int = 30) -> dict:
    """Number and total time of the kernels of a call, and the longest ones."""
    if not ON_GPU:
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        wait()
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]  # not the host's calls
    events.sort(key=lambda event: -event.self_device_time_total)
    return {
        "launches": sum(event.count for event in events),
        "busy_ms": sum(event.self_device_time_total for event in events) / 1e3,
        "longest": [[e.key[:80], e.count, round(e.self_device_time_total / 1e3, 2)] for e in events[:most]],
    }


def step(record: Record) -> None:
    """The step at the batch size of the paper, and at one eighth of it (one of eight GPUs)."""
    for name, ways in WAYS.items():
        record_step(record, name, BATCH_SIZE, **ways)
    for name in (EAGER, GRAPH, FASTEST):
        record_step(record, name, max(1, BATCH_SIZE // 8), **WAYS[name])


def compiled_blocks(record: Record) -> None:
    """The fastest step with every transformer block compiled separately."""

    def prepare(model):
        for block in (*model.encoder.text_layers, *model.encoder.image_layers, *model.encoder.connections):
            block.compile(dynamic=False)

    if ON_GPU:
        record_step(record, f"{FASTEST}, blocks compiled", BATCH_SIZE, prepare=prepare, **WAYS[FASTEST])


def compiled_encoder(record: Record) -> None:
    """The step with the two streams compiled as one."""
    if ON_GPU:
        record_step(record, "--compile true", BATCH_SIZE, prepare=lambda m: m.encoder.compile(dynamic=True))
