"""The pretraining step: agreement with the CPU, resuming, loss scaling, memory, and one rank over NCCL."""

import gc
import tempfile
import time

import torch

from benchmarks.gpu_stages.measuring import BATCH_SIZE, DEVICE, ON_GPU, Record, timed, wait
from benchmarks.gpu_stages.pretraining_step import EAGER, FASTEST, WAYS, make_engine, pretraining_batches, take


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
        counts, scale = [moved.predicted_tokens, moved.predicted_regions, len(moved)], 1.0
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
    from pretrain.engine.step import MetricSums
    from shards.common.dist_info import ALONE

    batches = [batch.to(DEVICE) for batch in pretraining_batches(8 if ON_GPU else 2, max(2, BATCH_SIZE // 4))]
    for precision, ways in (("fp16", {}), ("bf16", {}), ("bf16", {"residual": "precision"}), ("float32", {})):
        engine, losses, sums = make_engine(precision, **ways), [], MetricSums()
        for number in range(100 if ON_GPU else 8):
            take(engine, batches[number % len(batches)], number, sums)
            if number % (20 if ON_GPU else 4) == 0:
                losses.append(engine.replica.metrics(sums.pop_totals(ALONE))["loss"])
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
    from pretrain.engine.step import MetricSums

    for flags, precision, recompute, accumulate in ways:
        engine = make_engine(
            precision, prepare=lambda m, r=recompute: setattr(m.encoder, "activation_checkpointing", r)
        )
        batch = pretraining_batches(1, max(1, BATCH_SIZE // accumulate))[0].to(DEVICE)
        counts = [accumulate * n for n in (batch.predicted_tokens, batch.predicted_regions, len(batch))]

        def step(number, engine=engine, batch=batch, counts=counts, accumulate=accumulate):
            engine.step(number, [batch] * accumulate, MetricSums(), counts)

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
