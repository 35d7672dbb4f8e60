"""A step of each of the twelve tasks."""

import torch

from benchmarks.gpu_stages.measuring import DEVICE, ON_GPU, Record, matrix_rate, timed
from benchmarks.gpu_stages.pretraining_step import model_config, useful_flops


def task_batch(task, size: int, seed: int):
    """A random batch of a task with the sizes of table 8 of the paper; texts have half of the maximum length."""
    from benchmarks.pairs import random_batch
    from finetune.data.task_collate import TaskBatch
    from finetune.heads.retrieval_head import OPTIONS

    head = task.head
    rows_per_example = OPTIONS if head.ranks_images else head.images_per_example
    regions, config = 100 if ON_GPU else 10, model_config()
    rows = random_batch(size * rows_per_example, config, task.max_tokens, regions, task.max_tokens / 2, seed)
    rows.input_ids = rows.input_ids[:, : int(rows.lengths.max())]
    generator, candidates, others = torch.Generator().manual_seed(seed), None, None
    if head.has_candidates:
        candidates = _regions(random_batch(size, config, 5, 4 if task.name == "visual7w" else 8, 5, seed))
    if task.name == "visual7w":  # an image has about 22 boxes
        others = _regions(random_batch(size, config, 5, 18, 5, seed))
    shapes = {"vqa": 3129, "gqa": 1533, "regions": regions + 1}
    if head.has_candidates:
        target = torch.rand(candidates.valid.shape, generator=generator)
    elif head.name in shapes:
        target = torch.rand(size, shapes[head.name], generator=generator)
    else:
        target = torch.randint(2, (size,), generator=generator)
    return TaskBatch(rows, candidates, None if head.ranks_images else target, size, other_boxes=others)


def _regions(batch):
    """The regions of a random batch, as given boxes."""
    from pretrain.data.batch import PaddedRegions

    return PaddedRegions(batch.features, batch.boxes, batch.valid, batch.total_regions)


def tasks(record: Record) -> None:
    """An iteration of twelve-task training: a step of each task at its batch size, from batches on the device."""
    from finetune.config import BETAS, EPSILON
    from finetune.data.task_batches import MicroBatch
    from finetune.models.task_model import TaskModel
    from finetune.objective.task_pass import MultiTaskPass, TaskPass
    from finetune.tasks import choose_tasks
    from pretrain.engine.optimizer import make_optimizer, without_bias_correction
    from pretrain.models.precision import Precision
    from pretrain.engine.step import Engine, MetricSums
    from shards.common.dist_info import ALONE

    chosen = choose_tasks("all")
    config, precision = model_config().replace(task_tokens=20), Precision("bf16", DEVICE)
    torch.manual_seed(0)
    model = TaskModel(config, {"vqa": 3129, "gqa": 1533}).train().to(DEVICE)
    multi_task_pass = MultiTaskPass(
        [TaskPass(model, task, precision, task.token) for task in chosen], [1.0] * len(chosen)
    )
    optimizer = make_optimizer(model, 2e-5, BETAS, EPSILON, 0.01)
    without_bias_correction(optimizer)
    engine = Engine(multi_task_pass, model, optimizer, precision, precision.scaler(), ALONE, 0.0)
    turns = [
        MicroBatch(number, 0, task_batch(task, task.batch_size if ON_GPU else 2, number).to(DEVICE))
        for number, task in enumerate(chosen)
    ]

    def step(number: int) -> None:
        engine.step(number, [turns[number]], MetricSums(), [len(turns[number])])

    def iteration() -> None:
        for number in range(len(turns)):
            step(number)

    iteration()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    rate, total = matrix_rate(), 0
    for number, (task, turn) in enumerate(zip(chosen, turns, strict=True)):
        seconds, host = timed(lambda n=number: step(n), repeats=5, warmup=1)
        rows, boxes = turn.batch.pairs, (turn.batch.candidates, turn.batch.other_boxes)
        image_rows = rows.image_row_count + sum(of.total for of in boxes if of is not None)
        work_done = useful_flops(config, rows.total_tokens + len(rows), image_rows)
        total += work_done
        record.add(
            task=task.name,
            examples=len(turn),
            text_rows=rows.total_tokens + len(rows),
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
