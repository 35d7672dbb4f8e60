"""Sets up single-task training from a run's flags: data, weights, model."""

import dataclasses
from functools import partial
from pathlib import Path

import torch

from finetune.config import StConfig, batch_and_lr, default_epochs
from finetune.data.task_data import TaskData, prepare_on_every_machine
from finetune.objective.task_pass import TaskPass
from finetune.prepared.prepare_data import EXAMPLES, Wanted
from finetune.run_dirs.answer_vocabularies import Vocabularies
from finetune.run_dirs.model_source import ModelSource, choose_vocabulary, random_weights_note
from finetune.task_types.base import Task
from finetune.tasks import add_task_file, all_tasks, find_task
from finetune.training.model_setup import choose_model
from finetune.training.run_setup import set_up_run
from finetune.training.single_task import SingleTask
from finetune.training.task_validation import validation_of
from finetune.training.training_data import TrainingData, open_training_data
from pretrain.data.batch_schedule import BatchSchedule
from pretrain.data.dataloader import WorkerStatus
from pretrain.engine.checkpoint import best_checkpoint, newest_checkpoint, read_metadata
from pretrain.engine.distributed import on_first
from pretrain.engine.run_dir import read_config
from pretrain.engine.trainer import Trainer
from shards.common.counted import counted
from shards.common.dist_info import Ranks
from shards.common.errors import UserError


def default_out(task: str | None, task_file: str | None = None) -> str:
    return f"runs/st-{task or Path(task_file or '').stem}"


def task_of_flags(config: StConfig) -> Task:
    """The task of the flags. Raises UserError for several tasks or a group, with the command that accepts them."""
    if config.task_file:
        task = add_task_file(config.task_file, config.out or default_out(None, config.task_file))
        if config.task not in (None, task.name):
            raise UserError(f"--task {config.task}: is not the task of --task_file {config.task_file}; remove one flag")
        return task
    name = config.task
    if not name:
        raise UserError(f"--task is missing; it should be one of {', '.join(all_tasks())}, or give a --task_file")
    several = {"all", *(task.group.lower() for task in all_tasks().values())}
    if "," in name or name.lower() in several:
        raise UserError(f"--task {name}: takes one task; python -m finetune.mt --tasks {name} trains several together")
    return find_task(name)


def build_single_task(
    config: StConfig, task: Task, ranks: Ranks, device: torch.device, newest: Path | None
) -> tuple[Trainer, str]:
    """Reads data and weights of a new or resumed run, and creates the run directory of a new one.

    Args:
        config: flags.
        task: the task.
        ranks: the processes of the run.
        device: of the model.
        newest: the checkpoint to resume from; None for a new run.

    Returns:
        The trainer, and the kind of the run: AT->ST, ST, BERT or scratch.
    """
    opened = _open_task(config, task, ranks)
    data, examples = opened.data, opened.training
    texts = (example.text for example in examples)
    source, sizes = choose_model(config, newest, texts, data.feature_size, ranks)
    kind = read_config(Path(config.out))["start"]["kind"] if newest else source.kind
    batch_size, lr, head_lr = batch_and_lr(config, task, sizes)
    config = dataclasses.replace(config, batch_size=batch_size, lr=lr, epochs=config.epochs or default_epochs(sizes))
    choose_vocabularies = partial(_vocabularies, config, data, source, ranks.log)
    setup = set_up_run(config, [opened], source, sizes, choose_vocabularies, ranks, device, newest)
    metadata, settings = setup.metadata, setup.collator_settings(task)
    task_pass = TaskPass(setup.model, task, setup.precision, source.task_token(task), config.contrastive)
    schedule = BatchSchedule(
        samples=len(examples),
        batch_size=batch_size,
        epochs=config.epochs,
        first_step=metadata.get("step", 0),
        ranks=ranks,
        workers=config.workers,
        accumulate=config.accumulate,
    )
    best = metadata.get("best_score")
    training = SingleTask(
        config=config,
        schedule=schedule,
        task_pass=task_pass,
        training=data.collator(examples, settings, config.seed),
        validation=validation_of(data, opened.validation, settings, config.validate_on, config.seed),
        worker_status=WorkerStatus(config.workers, data.regions.dataset),
        ranks=ranks,
        device=device,
        **({"best": best, "worse": metadata["epochs_without_better"]} if best is not None else {}),
    )
    engine = setup.engine(task_pass, lr, head_lr)
    setup.begin_run({task.name: task_pass.task_token})
    _describe(training, opened, kind, source)
    return Trainer(config, engine, training, metadata), kind


def _open_task(config: StConfig, task: Task, ranks: Ranks) -> TrainingData:
    """The data of the task, with the splits of the flags."""
    if config.annotated_boxes and not task.head.finds_regions:
        raise UserError(f"--annotated_boxes: applies to referring expressions only, not to {task.name}")
    splits = config.train_split or task.splits[0], config.validation_split or task.splits[1]
    prepare_on_every_machine(config.data, [Wanted(task, EXAMPLES, split) for split in splits], ranks)
    [opened] = open_training_data(config, [task], [splits], ranks)
    return opened


def result_of(trainer: Trainer, kind: str, seconds: float) -> dict:
    """The contents of result.json of a finished run.

    Args:
        trainer: of the finished run.
        kind: its kind, see build_single_task.
        seconds: wall time of the process that finished it.
    """
    out, training = Path(trainer.config.out), trainer.task
    best = on_first(trainer.ranks, lambda: best_checkpoint(out))
    metadata = read_metadata(best)
    return {
        "task": training.task_pass.task.name,
        "kind": kind,
        "steps": read_metadata(newest_checkpoint(out))["step"],
        "examples": len(training.training.examples),
        "validation": metadata["scores"],
        "best_step": metadata["step"],
        "best_checkpoint": best.name,
        "seconds": round(seconds, 1),
    }


def _vocabularies(
    config: StConfig, data: TaskData, source: ModelSource, log, min_answer_count: int | None
) -> Vocabularies:
    """The answer vocabulary of the task's head; empty for a head without one."""
    head = data.task.head
    if head.has_vocabulary:
        return {head.name: choose_vocabulary(source, data, config.answers, log, min_answer_count=min_answer_count)}
    for name in ("answers", "min_answer_count"):
        if value := getattr(config, name):
            raise UserError(f"--{name} {value}: {data.task.name} has no answer vocabulary")
    return {}


def _describe(training: SingleTask, opened: TrainingData, kind: str, source: ModelSource) -> None:
    log, schedule, config = training.ranks.log, training.schedule, training.config
    log(f"{opened.task.title} ({kind}{f', from {source.path}' if source.path and not schedule.first_step else ''})")
    if not schedule.first_step and (note := random_weights_note(source, config.init)):
        log(note)
    log(
        f"{len(opened.training)} training examples, {len(opened.validation)} validation examples, "
        f"{counted(schedule.steps_per_epoch, 'step')} per epoch"
    )
    log(f"batch size {schedule.batch_size}, peak learning rate {config.lr:g}, on {training.device}")
    if schedule.first_step:
        log(f"resuming after step {schedule.first_step}")
