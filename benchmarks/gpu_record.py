"""The GPU record: checks and measurements on one GPU, written as one JSON line per result.

    python benchmarks/gpu_record.py step resume [--record gpu-record/record.jsonl]    # some stages, in their order
    python benchmarks/gpu_record.py --table docs/gpu.md                               # the records as a page

`benchmarks/gpu_record.sh` runs all stages in an order in which a run that is cut off still leaves the most. On a CPU
everything runs with a small model, as a dry run; its figures mean nothing, and a record of it is marked as such.
"""

import contextlib
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
import torch
import torch.nn.functional as F

from shards.common.cli import command, flag
from shards.common.errors import UserError

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if ON_GPU else "cpu")
BATCH_SIZE = 512 if ON_GPU else 6
RECORDS = Path(__file__).parent / "records"


def wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def timed(function: Callable, repeats: int = 10, warmup: int = 3) -> tuple[float, float]:
    """Seconds per call, and the host's part of them: the median of three rounds of `repeats` calls.

    The device is waited for at the end of a round only, so that calls overlap as they do in training.
    """
    repeats, warmup = (repeats, warmup) if ON_GPU else (1, 1)
    for _ in range(warmup):
        function()
    wait()
    rounds = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        host = time.perf_counter() - began
        wait()
        rounds.append(((time.perf_counter() - began) / repeats, host / repeats))
    return sorted(rounds)[1]


def matrix_rate() -> float:
    """FLOP/s of one large dense bf16 matrix product on random numbers."""
    size = 8192 if ON_GPU else 256
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b)[0]


def copy_rate() -> float:
    """Bytes per second, read and written, of a copy on the device that exceeds the caches."""
    source = torch.empty(1 << (30 if ON_GPU else 20), device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / timed(lambda: target.copy_(source))[0]


@dataclass
class Record:
    """Appends results to a file of JSON lines, each with the device, torch and the commit."""

    path: Path
    stage: str = ""

    def add(self, **values) -> None:
        device = torch.cuda.get_device_name() if ON_GPU else "cpu (dry run)"
        told = {"stage": self.stage, "device": device, "torch": torch.__version__, "commit": commit()}
        line = json.dumps(told | values)
        print(line, flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def commit() -> str:
    """The commit of the tree; from the file COMMIT if the tree is a copy without git."""
    named = os.environ.get("COMMIT")
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return named or subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"


# ---- the machine -----------------------------------------------------------------------------------------------------


def machine(record: Record) -> None:
    """Matrix rate and copy bandwidth of the GPU, and the rates of the matrix products of the model."""
    record.add(
        matrix_tflops=matrix_rate() / 1e12,
        copy_gb_s=copy_rate() / 1e9,
        memory_gb=torch.cuda.get_device_properties(0).total_memory / 1e9 if ON_GPU else 0,
        cuda=torch.version.cuda,
        cpus=os.cpu_count(),
    )
    image, text = BATCH_SIZE * 37, BATCH_SIZE * 12
    products = {
        "image query key value": (image, 1024, 3072),
        "image output, up and down": (image, 1024, 1024),
        "text query key value": (text, 768, 2304),
        "text up": (text, 768, 3072),
        "text down": (text, 3072, 768),
    }
    for name, (rows, inner, outer) in products.items():
        a, w, g = (
            torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)
            for shape in ((rows, inner), (outer, inner), (rows, outer))
        )
        work = 2 * rows * inner * outer / 1e12
        record.add(
            product=name,
            shape=[rows, inner, outer],
            forward_tflops=work / timed(lambda a=a, w=w: F.linear(a, w))[0],
            input_gradient_tflops=work / timed(lambda g=g, w=w: g @ w)[0],
            weight_gradient_tflops=work / timed(lambda g=g, a=a: g.T @ a)[0],
        )


def operators(record: Record) -> None:
    """The implementation of each operator, and the time of its kernel compared with a copy of its input."""
    from benchmarks.ops import boxes_case, features_case
    from benchmarks.timing import kernel_time
    from ops import column_sum, dropout_add_layer_norm, mask_overlapping, mask_regions
    from ops.__main__ import self_check
    from ops.registration import backends

    where = "CUDA" if ON_GPU else "CPU"
    record.add(backends=backends, self_check=self_check(DEVICE.type))
    if ON_GPU and backends[where] != "compiled":
        raise RuntimeError("the operators were not compiled for CUDA")
    measure = kernel_time if ON_GPU else (lambda function: timed(function)[0])
    boxes = boxes_case(BATCH_SIZE, 36, DEVICE.type)
    record.add(operator="mask_overlapping", shape=[BATCH_SIZE, 36], us=measure(lambda: mask_overlapping(*boxes)) * 1e6)
    features, visible = (x[:BATCH_SIZE] for x in features_case(BATCH_SIZE, torch.float16, DEVICE.type))
    target = torch.empty_like(features)
    rows = BATCH_SIZE * 37
    x, residual = (torch.randn(rows, 1024, device=DEVICE).bfloat16().requires_grad_() for _ in range(2))
    weight, bias = (torch.ones(1024, device=DEVICE, requires_grad=True) for _ in range(2))
    keys = torch.arange(rows, device=DEVICE)

    def layer_norm():
        return dropout_add_layer_norm(x, residual, weight, bias, keys, 0, 0.1, 1e-12, torch.bfloat16)

    gradient = torch.randn(rows, 1024, device=DEVICE).bfloat16()
    seconds = measure(layer_norm)
    both = measure(lambda: torch.autograd.grad(layer_norm(), (x, residual, weight, bias), gradient))
    for name, took, passes in (("forward", seconds, 3), ("backward", both - seconds, 5)):
        record.add(
            operator=f"dropout_add_layer_norm, {name}",
            shape=[rows, 1024],
            us=took * 1e6,
            gb_s=passes * x.nbytes / took / 1e9,
        )
    for width in (1024, 3072):
        tall = torch.randn(rows, width, device=DEVICE).bfloat16()
        seconds = measure(lambda tall=tall: column_sum(tall))
        record.add(
            operator="column_sum",
            shape=[rows, width],
            us=seconds * 1e6,
            gb_s=tall.nbytes / seconds / 1e9,
            torch_us=measure(lambda tall=tall: tall.sum(0)) * 1e6,
        )
    seconds, copy = (
        measure(lambda: mask_regions(features, visible, torch.bfloat16)),
        measure(lambda: target.copy_(features)),
    )
    moved = (int(visible.sum()) + visible.numel() + len(visible)) * features[0, 0].nbytes
    record.add(
        operator="mask_regions",
        shape=list(features.shape),
        us=seconds * 1e6,
        gb_s=moved / seconds / 1e9,
        copy_gb_s=2 * features.nbytes / copy / 1e9,
    )


def attention(record: Record) -> None:
    """Scaled dot-product attention with dropout, forward and backward, for torch's backends and kinds of masks."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "default": None,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    shapes = ((8, 37, 37, 128), (12, 26, 26, 64), (8, 26, 37, 128), (8, 37, 26, 128), (8, 101, 101, 128))
    for heads, queries, keys, width in shapes if ON_GPU else shapes[:1]:
        q, k, v = (
            torch.randn(BATCH_SIZE, length, heads, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
            for length in (queries, keys, keys)
        )
        mask = torch.rand(BATCH_SIZE, 1, 1, keys, device=DEVICE) < 0.7
        mask[..., 0] = True
        bias = torch.zeros(mask.shape, device=DEVICE, dtype=torch.bfloat16).masked_fill(~mask, -torch.inf)
        padded = F.pad(bias, (0, -keys % 8))[..., :keys]  # rows that begin at multiples of 16 bytes
        masks = {"bool": mask, "bias": padded.expand(-1, heads, queries, -1)}
        gradient = torch.randn(BATCH_SIZE, heads, queries, width, device=DEVICE, dtype=torch.bfloat16)
        for (name, backend), (kind, allowed) in ((b, m) for b in backends.items() for m in masks.items()):

            def attend(allowed=allowed, backend=backend, q=q, k=k, v=v, gradient=gradient):
                with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
                    parts = (x.transpose(1, 2) for x in (q, k, v))
                    F.scaled_dot_product_attention(*parts, attn_mask=allowed, dropout_p=0.1).backward(gradient)

            result = {"shape": [BATCH_SIZE, heads, queries, keys, width], "backend": name, "mask": kind}
            try:
                began = time.perf_counter()
                attend()
                wait()
                first = time.perf_counter() - began
                record.add(**result, forward_backward_us=timed(attend)[0] * 1e6, first_call_s=first)
            except RuntimeError as error:
                record.add(**result, failed=str(error).splitlines()[0][:120])


def packed_attention(record: Record) -> None:
    """Our attention on packed rows compared with torch's on padded ones, forward and backward with dropout."""
    if ON_GPU:
        from benchmarks.attention import measured

        for name, heads, size, padded, packed, rate in measured(30):
            record.add(case=name, heads=heads, size=size, padded_ms=padded, packed_ms=packed, gb_s=rate)


# ---- a pretraining step ----------------------------------------------------------------------------------------------


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
        batch.word_count, batch.region_count = objective.count(batch)
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
    from pretrain.objective.pretraining_pass import Pass
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
    engine = Engine(Pass(model, objective.to(device), how), model, optimizer, how, how.scaler(), ALONE, 1.0)
    if graph:
        if not ON_GPU:
            cuda_graph.capture = lambda function: function
        engine.graph = cuda_graph.GraphedPass(engine.replica, 1, WORDS, engine.scaler.scale)
    return engine


def take(engine, batch, step: int, sums=None) -> None:
    from pretrain.engine.step import Sums

    counts = batch.word_count, batch.region_count, len(batch)
    engine.step(step, [batch], Sums() if sums is None else sums, counts)


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
    rows = batch.image_rows
    return useful_flops(model_config(), batch.token_count, rows, batch.word_count, batch.region_count)


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


EAGER, GRAPH, FASTEST = "eager", "--cuda_graph true", "--residual precision --cuda_graph true"
WAYS = {
    EAGER: {},
    "--residual precision": {"residual": "precision"},
    GRAPH: {"graph": True},
    FASTEST: {"residual": "precision", "graph": True},
}


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


def agree(record: Record) -> None:
    """Loss and gradients, with dropout, from the same weights: float32 on the CPU compared with each GPU variant."""
    batch, found = pretraining_batches(1, 4)[0], {}
    for name, precision, device, ways in (
        ("cpu float32", "float32", torch.device("cpu"), {}),
        ("float32", "float32", DEVICE, {}),
        ("float32 --cuda_graph true", "float32", DEVICE, {"graph": True}),
        ("bf16", "bf16", DEVICE, {}),
        ("bf16 --residual precision", "bf16", DEVICE, {"residual": "precision"}),
        (f"bf16 {FASTEST}", "bf16", DEVICE, WAYS[FASTEST]),
        ("fp16", "fp16", DEVICE, {}),
    ):
        engine, moved = make_engine(precision, 0.1, device, **ways), batch.to(device)
        counts, scale = [moved.word_count, moved.region_count, len(moved)], 1.0
        if engine.graph is not None:
            numbers = engine.graph(moved, counts)
        else:
            scale = 1024.0 if precision == "fp16" else 1.0
            loss, numbers = engine.replica(moved, counts)
            (loss * scale).backward()
        names = zip(("words", "regions", "alignment"), counts, strict=True)
        loss = sum(numbers[name].item() / count for name, count in names)
        gradients = [p.grad.flatten().float().cpu() / scale for p in engine.model.parameters() if p.grad is not None]
        found[name] = loss, torch.cat(gradients)
        del engine
        gc.collect()
    expected, reference = found.pop("cpu float32")
    for name, (loss, gradient) in found.items():
        record.add(
            way=name,
            batch_size=len(batch),
            dropout=0.1,
            loss_error=abs(loss - expected) / abs(expected),
            gradient_error=((gradient - reference).norm() / reference.norm()).item(),
        )


def resume(record: Record) -> None:
    """Six steps twice, and three, a checkpoint and three more: all weights should be equal bit for bit."""
    from pretrain.engine.checkpoint import CheckpointWriter, newest_checkpoint, restore

    batches = [batch.to(DEVICE) for batch in pretraining_batches(6, max(1, BATCH_SIZE // 4))]

    def weights(engine) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in engine.model.parameters()]).cpu()

    for way in (EAGER, FASTEST):
        with tempfile.TemporaryDirectory() as folder:
            ends, writer = [], CheckpointWriter(folder)
            for attempt in range(2):
                engine = make_engine(**WAYS[way])
                for number, batch in enumerate(batches):
                    take(engine, batch, number)
                    if attempt == 0 and number == 2:
                        blocked = []
                        for _ in range(2):  # pinned memory is allocated in the first one
                            wait()
                            began = time.perf_counter()
                            writer.save(3, engine.model, engine.optimizer, {}, None)
                            blocked.append(time.perf_counter() - began)
                            writer.wait()
                            saving = time.perf_counter() - began
                ends.append(weights(engine))
                del engine
                gc.collect()
            engine, began = make_engine(**WAYS[way]), time.perf_counter()
            restore(newest_checkpoint(folder), engine.model, engine.optimizer)
            wait()
            restoring = time.perf_counter() - began
            for number, batch in list(enumerate(batches))[3:]:
                take(engine, batch, number)
            record.add(
                way=way,
                repeated_equal=torch.equal(*ends),
                resumed_equal=torch.equal(ends[0], weights(engine)),
                save_blocks_s=blocked[-1],
                first_save_blocks_s=blocked[0],
                save_s=saving,
                restore_s=restoring,
            )
            del engine
            gc.collect()


def fp16(record: Record) -> None:
    """A hundred steps with loss scaling on eight batches, next to the same in bf16.

    losses: means since the one before; a step that is skipped counts as zero in them.
    """
    from pretrain.engine.step import Sums
    from shards.common.dist_info import ALONE

    batches = [batch.to(DEVICE) for batch in pretraining_batches(8 if ON_GPU else 2, max(2, BATCH_SIZE // 4))]
    for precision, ways in (("fp16", {}), ("bf16", {}), ("bf16", {"residual": "precision"}), ("float32", {})):
        engine, losses, sums = make_engine(precision, **ways), [], Sums()
        for number in range(100 if ON_GPU else 8):
            take(engine, batches[number % len(batches)], number, sums)
            if number % (20 if ON_GPU else 4) == 0:
                losses.append(engine.replica.metrics(sums.reading(ALONE))["loss"])
        engine.skipped.check(wait=True)
        record.add(
            precision=precision,
            **ways,
            every=20 if ON_GPU else 4,
            losses=losses,
            skipped=engine.skipped.count,
            scale=float(engine.scaler.get_scale()),
        )
        del engine
        gc.collect()


def memory(record: Record) -> None:
    """Peak memory of a step at the batch size of the paper, for the flags of pretrain.run that reduce memory."""
    ways = (
        ("--precision float32 --accumulate 8", "float32", False, 8),
        ("--precision bf16", "bf16", False, 1),
        ("--precision bf16 --accumulate 2", "bf16", False, 2),
        ("--precision bf16 --accumulate 8", "bf16", False, 8),
        ("--precision bf16 --activation_checkpointing", "bf16", True, 1),
        ("--precision bf16 --activation_checkpointing --accumulate 4", "bf16", True, 4),
    )
    from pretrain.engine.step import Sums

    for flags, precision, recompute, accumulate in ways:
        engine = make_engine(
            precision, prepare=lambda m, r=recompute: setattr(m.encoder, "activation_checkpointing", r)
        )
        batch = pretraining_batches(1, max(1, BATCH_SIZE // accumulate))[0].to(DEVICE)
        counts = [accumulate * n for n in (batch.word_count, batch.region_count, len(batch))]

        def step(number, engine=engine, batch=batch, counts=counts, accumulate=accumulate):
            engine.step(number, [batch] * accumulate, Sums(), counts)

        step(0)  # allocates the optimizer state
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        number = iter(range(1, 1000))
        seconds, _ = timed(lambda step=step, number=number: step(next(number)), repeats=2, warmup=1)
        peak = torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0
        record.add(flags=flags, peak_gb=peak, ms=seconds * 1e3)
        del engine, batch, step
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()


def nccl(record: Record) -> None:
    """The step of one rank inside DistributedDataParallel, connected over NCCL (gloo in a dry run)."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    batch, number = pretraining_batches(1, max(1, BATCH_SIZE // 8))[0].to(DEVICE), 0
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(f"{folder}/store", 1)
        began = time.perf_counter()
        kind = "cpu:gloo,cuda:nccl" if ON_GPU else "gloo"
        dist.init_process_group(kind, store=store, rank=0, world_size=1, device_id=DEVICE if ON_GPU else None)
        starting = time.perf_counter() - began
        try:
            for replicated in (False, True):
                engine = make_engine()
                if replicated:
                    engine.replica = DistributedDataParallel(engine.replica, gradient_as_bucket_view=True)

                def step(engine=engine):
                    nonlocal number
                    take(engine, batch, number)
                    number += 1

                seconds, host = timed(step, warmup=5)
                record.add(
                    replicated=replicated, ms=seconds * 1e3, host_ms=host * 1e3, batch_size=len(batch), start_s=starting
                )
                del engine, step
                gc.collect()
        finally:
            dist.destroy_process_group()


# ---- the twelve tasks ------------------------------------------------------------------------------------------------


def task_batch(task, size: int, seed: int):
    """A random batch of a task with the sizes of table 8 of the paper; texts have half of the maximum length."""
    from benchmarks.pairs import random_batch
    from finetune.data.task_collate import TaskBatch
    from finetune.heads.retrieval_head import OPTIONS

    head = task.head
    rows_per_example = OPTIONS if head.ranks_images else head.images
    regions, config = 100 if ON_GPU else 10, model_config()
    rows = random_batch(size * rows_per_example, config, task.max_tokens, regions, task.max_tokens / 2, seed)
    rows.input_ids = rows.input_ids[:, : int(rows.lengths.max())]
    generator, candidates, others = torch.Generator().manual_seed(seed), None, None
    if head.has_candidates:
        candidates = random_batch(size, config, 5, 4 if task.name == "visual7w" else 8, 5, seed)
    if task.name == "visual7w":  # an image has about 22 boxes
        others = random_batch(size, config, 5, 18, 5, seed)
    shapes = {"vqa": 3129, "gqa": 1533, "regions": regions + 1}
    if head.has_candidates:
        target = torch.rand(candidates.valid.shape, generator=generator)
    elif head.name in shapes:
        target = torch.rand(size, shapes[head.name], generator=generator)
    else:
        target = torch.randint(2, (size,), generator=generator)
    return TaskBatch(rows, candidates, None if head.ranks_images else target, size, other_boxes=others)


def tasks(record: Record) -> None:
    """An iteration of twelve-task training: a step of each task at its batch size, from batches on the device."""
    from finetune.config import BETAS, EPSILON
    from finetune.data.task_batches import MicroBatch
    from finetune.models.task_model import TaskModel
    from finetune.objective.task_pass import MultiTaskPass, TaskPass
    from finetune.tasks import choose_tasks
    from pretrain.engine.optimizer import make_optimizer, without_bias_correction
    from pretrain.models.precision import Precision
    from pretrain.engine.step import Engine, Sums
    from shards.common.dist_info import ALONE

    chosen = choose_tasks("all")
    config, precision = model_config().replace(task_tokens=20), Precision("bf16", DEVICE)
    torch.manual_seed(0)
    model = TaskModel(config, {"vqa": 3129, "gqa": 1533}).train().to(DEVICE)
    work = MultiTaskPass([TaskPass(model, task, precision, task.token) for task in chosen], [1.0] * len(chosen))
    optimizer = make_optimizer(model, 2e-5, BETAS, EPSILON, 0.01)
    without_bias_correction(optimizer)
    engine = Engine(work, model, optimizer, precision, precision.scaler(), ALONE, 0.0)
    turns = [
        MicroBatch(number, 0, task_batch(task, task.batch_size if ON_GPU else 2, number).to(DEVICE))
        for number, task in enumerate(chosen)
    ]

    def step(number: int) -> None:
        engine.step(number, [turns[number]], Sums(), [len(turns[number])])

    def iteration() -> None:
        for number in range(len(turns)):
            step(number)

    iteration()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    rate, total = matrix_rate(), 0
    for number, (task, turn) in enumerate(zip(chosen, turns, strict=True)):
        seconds, host = timed(lambda n=number: step(n), repeats=5, warmup=1)
        rows, boxes = turn.batch.rows, (turn.batch.candidates, turn.batch.other_boxes)
        image_rows = rows.image_rows + sum(of.total_regions for of in boxes if of is not None)
        work_done = useful_flops(config, rows.token_count + len(rows), image_rows)
        total += work_done
        record.add(
            task=task.name,
            examples=len(turn),
            text_rows=rows.token_count + len(rows),
            image_rows=image_rows,
            ms=seconds * 1e3,
            host_ms=host * 1e3,
            mfu=work_done / seconds / rate,
        )
    seconds, host = timed(iteration, repeats=2, warmup=1)
    record.add(
        task="all twelve",
        examples=sum(map(len, turns)),
        ms=seconds * 1e3,
        host_ms=host * 1e3,
        mfu=total / seconds / rate,
        peak_gb=torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0,
    )


# ---- images to regions -----------------------------------------------------------------------------------------------


def detector(record: Record) -> None:
    """The detector of the paper, random weights, 800 x 1333 pixels: images per second, and shares of its parts."""
    from shards.detection.x152.detector import RegionDetector
    from shards.detection.x152.network import DetectorConfig, Network

    small = DetectorConfig(
        **{"stem_channels": 4, "res2_channels": 8, "groups": 2, "width_per_group": 2, "fpn_channels": 8},
        **{"head_dim": 16, "classes": 9, "min_size": 96, "max_size": 128, "regions": 5},
    )
    config = DetectorConfig() if ON_GPU else small
    height, width, size = (800, 1333, 4) if ON_GPU else (96, 128, 1)
    torch.manual_seed(0)
    network = Network(config).eval().requires_grad_(False)
    images = [np.random.default_rng(n).integers(0, 255, (height, width, 3), dtype=np.uint8) for n in range(size)]
    found = RegionDetector(network, config, DEVICE)
    for precision, layout in (
        ("float32", torch.contiguous_format),
        ("fp16", torch.contiguous_format),
        ("fp16", torch.channels_last),
        ("bf16", torch.channels_last),
    ):
        network.to(memory_format=layout)
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        narrow = torch.autocast(DEVICE.type, dtype) if dtype and ON_GPU else contextlib.nullcontext()
        with narrow, torch.no_grad():
            prepared = found.batch([found.prepared(image)[0] for image in images]).to(memory_format=layout)
            backbone, _ = timed(lambda x=prepared: network.backbone(x), repeats=3, warmup=2)
            seconds, host = timed(lambda: found.detect(images), repeats=3, warmup=1)
        name = "channels last" if layout is torch.channels_last else "contiguous"
        record.add(
            precision=precision,
            layout=name,
            images_per_second=size / seconds,
            batch=size,
            host_ms=host * 1e3 / size,
            outside_backbone=1 - backbone / seconds,
        )


# ---- the whole program -----------------------------------------------------------------------------------------------


def scratch() -> Path:
    return Path(os.environ.get("SCRATCH", tempfile.gettempdir()))


def shards(record: Record) -> None:
    """Region shards of random pairs for the stage `program`, written by several processes."""
    from shards.storage.dataset import finish_dataset

    folder, count, parts = scratch() / "pairs", *((8192, 16) if ON_GPU else (24, 2))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    with ProcessPoolExecutor(min(parts, os.cpu_count() or 1)) as pool:
        paths = list(pool.map(write_part, [(folder, part, count // parts) for part in range(parts)]))
    finish_dataset(folder, paths, detector="random", num_classes=1601, extra={})
    record.add(pairs=count, seconds=time.perf_counter() - began)


def write_part(job: tuple[Path, int, int]) -> Path:
    from shards.storage.sample import Sample
    from shards.storage.writer import write_shard

    folder, part, count = job
    rng, words = np.random.default_rng(part), [f"word{number}" for number in range(400)]

    def samples():
        for number in range(count):
            corner = rng.random((36, 2)) * 0.7
            length = int(np.clip(round(rng.normal(10, 4.5)), 3, 34))
            yield Sample(
                key=f"{part:03d}{number:06d}",
                features=rng.random((36, 2048), np.float32).astype(np.float16),
                boxes=np.concatenate([corner, corner + 0.2], 1).astype(np.float32),
                class_ids=np.tile(np.arange(20, dtype=np.int16), (36, 1)),
                class_probs=np.full((36, 20), 0.99 / 20, np.float16),
                info={"id": f"{part}-{number}", "width": 640, "height": 480, "source": ""},
                captions=(" ".join(rng.choice(words, length)),),
            )

    path = folder / f"regions-{part:05d}.tar"
    write_shard(path, samples())
    return path


def program(record: Record) -> None:
    """pretrain.run on the shards of the stage `shards`: pairs per second of a whole run, and the share of data wait."""
    for graph in (True, False) if ON_GPU else (False,):
        run_program(record, graph)


def run_program(record: Record, graph: bool) -> None:
    config, out = scratch() / "base.json", scratch() / "run"
    config.write_text(json.dumps(model_config().to_dict()))
    workers = min(8, os.cpu_count() or 1)
    flags = {
        "data": scratch() / "pairs",
        "config": config,
        "out": out,
        "precision": "bf16",
        "residual": "precision" if graph else "float32",
        "cuda_graph": graph,
        "batch_size": BATCH_SIZE,
        "epochs": 10 if ON_GPU else 1,
        "lr": 1e-4,
        "workers": workers,
        "validation_pairs": 0,
        "log_every": 20 if ON_GPU else 1,
        "seed": 1,
    }
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pretrain.run", *(f"--{name}={value}" for name, value in flags.items())],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    whole = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-300:])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    later = training[1:] or training  # the first line includes the start of the data workers
    record.add(
        way=FASTEST if graph else EAGER,
        pairs_per_second=statistics.median(line["samples_per_second"] for line in later),
        data_wait_share=statistics.median(line["data_wait_share"] for line in later),
        first_line_pairs_per_second=training[0]["samples_per_second"],
        workers=workers,
        steps=training[-1]["step"],
        whole_run_s=whole,
        last_loss=training[-1]["loss"],
        peak_gb=training[-1]["memory_gb"],
    )


# ---- the command -----------------------------------------------------------------------------------------------------

STAGES = {
    function.__name__: function
    for function in (
        *(machine, attention, shards, operators, step, agree, resume, program, fp16, memory, nccl, tasks),
        *(detector, packed_attention, compiled_blocks, compiled_encoder),
    )
}


@dataclass
class Config:
    """Flags of this benchmark."""

    stages: tuple[str, ...] = flag((), f"what to run, of {', '.join(STAGES)}", first=True)
    record: str = flag("gpu-record/record.jsonl", "the file to append to", written=True)
    table: str | None = flag(None, "write the records of benchmarks/records to this page instead", written=True)


def run(config: Config) -> int:
    if config.table:
        from benchmarks.gpu_table import page

        Path(config.table).write_text(page(sorted(RECORDS.glob("*.jsonl"))), encoding="utf-8")
        return 0
    for name in config.stages:
        if name not in STAGES:
            raise UserError(f"{name}: is not a stage; the stages are {', '.join(STAGES)}")
    failed = 0
    for name in config.stages:
        began, record = time.perf_counter(), Record(Path(config.record), name)
        try:
            STAGES[name](record)
        except Exception as error:  # continue with the other stages
            record.add(failed=f"{type(error).__name__}: {str(error)[:400]}")
            failed = 1
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    command(Config, run, "benchmarks/gpu_record.py", __doc__.splitlines()[0], sys.argv[1:])
