"""Sets up multi-task training from a run's flags: data, weights, model, schedule; and its result."""

import dataclasses
import math
from functools import partial
from pathlib import Path

import torch

from finetune.balancing import make_balance
from finetune.balancing.base import GradientCombination
from finetune.config import (
    HEAD_LR,
    PRETRAINING,
    MtConfig,
    answer_files,
    check_answer_files,
    default_batch_size,
    default_lr_scale,
    default_update_unused,
)
from finetune.data.task_collate import TaskBatch
from finetune.data.task_data import TaskData, prepare_on_every_machine
from finetune.evaluation.scores import mean_score
from finetune.gradients.fixed_batches import fixed_batches, fixed_size
from finetune.gradients.task_gradients import TaskGradients, shared_parameters
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import MultiTaskPass, TaskPass
from finetune.prepared.prepare_data import for_training
from finetune.run_dirs.answer_vocabularies import Vocabularies
from finetune.run_dirs.model_source import ModelSource, choose_vocabulary, random_weights_note
from finetune.task_types.base import TASK_TOKENS, Task
from finetune.training.balanced_step import BalancedStep
from finetune.training.gradient_tracker import TRACKED_BATCHES, TRACKED_EXAMPLES, GradientTracker, default_interval
from finetune.training.model_setup import choose_model
from finetune.training.multi_task import IterationSchedule, MultiTask, TaskState
from finetune.training.run_setup import RunSetup, set_up_run
from finetune.training.task_schedulers import Regime, find_regime
from finetune.training.task_validation import validation_of
from finetune.training.training_data import TrainingData, open_training_data
from pretrain.data.batch_schedule import BatchSchedule
from pretrain.data.dataloader import WorkerStatus
from pretrain.engine.checkpoint import METADATA
from pretrain.engine.distributed import on_every_rank
from pretrain.engine.trainer import Trainer
from shards.common.counted import counted
from shards.common.dist_info import Ranks
from shards.common.errors import UserError
from shards.common.untrusted_input import reading


def result_of(training: MultiTask) -> dict:
    """The contents of result.json of a finished run."""
    scores = training.scores()
    mean, interval = mean_score(scores)
    return {
        "regime": training.config.regime,
        "iterations": training.schedule.total_steps,
        "tasks": {
            state.task.name: state.score.summary | {"trained_on": state.schedule.samples, "steps": state.taken}
            for state in training.task_states
        },
        "groups": {g: mean_score(scores, g)[0] for g in sorted({score.group for score in scores.values()})},
        "mt_score": mean,
        "mt_interval": interval,
        "seconds": round(training.seconds, 1),
    }


def build_multi_task(
    config: MtConfig, tasks: list[Task], ranks: Ranks, device: torch.device, newest: Path | None
) -> Trainer:
    """Reads data and weights of a new or resumed run, and creates the run directory of a new one.

    Args:
        config: flags.
        tasks: those of --tasks.
        ranks: the processes of the run.
        device: of the model.
        newest: the checkpoint to resume from; None for a new run.
    """
    prepare_on_every_machine(config.data, [wanted for task in tasks for wanted in for_training(task)], ranks)
    opened = open_training_data(config, tasks, [task.splits[:2] for task in tasks], ranks)
    data = [one.data for one in opened]
    texts = (example.text for one in opened for example in one.training)
    source, sizes = choose_model(config, newest, texts, data[0].feature_size, ranks, runs=(PRETRAINING,))
    sizes = sizes.replace(task_tokens=0 if config.task_token == "none" else TASK_TOKENS)
    config = dataclasses.replace(config, lr_scale=config.lr_scale or default_lr_scale(sizes))
    choose_vocabularies = partial(_vocabularies, config, data, source, ranks.log)
    setup = set_up_run(config, opened, source, sizes, choose_vocabularies, ranks, device, newest)
    metadata, tokens = setup.metadata, task_tokens(tasks, config.task_token)
    states = [_task_state(setup, one, tokens.get(one.task.name)) for one in opened]
    longest = max(state.schedule.steps_per_epoch for state in states)
    schedule = IterationSchedule(
        first_step=metadata.get("step", 0),
        total_steps=config.iterations or config.epochs * longest,
        steps_per_epoch=longest,
    )
    regime = _regime(config, states, schedule.total_steps)
    balanced = balanced_step(config, setup.model, len(tasks), ranks)
    if newest:
        with reading(newest / METADATA):
            regime.restore(metadata["regime"])
            if balanced:
                balanced.method.restore(metadata["balance"])
    lr = min(task.lr for task in tasks) * config.lr_scale
    training = MultiTask(
        config=config,
        schedule=schedule,
        task_states=states,
        regime=regime,
        peak_lr=lr,
        worker_status=WorkerStatus(config.workers, *(of_task.regions.dataset for of_task in data)),
        ranks=ranks,
        device=device,
        balanced=balanced,
        tracker=gradient_tracker(config, states, schedule, balanced, ranks),
        earlier_seconds=metadata.get("seconds", 0.0),
    )
    updated = default_update_unused(sizes) if config.update_unused is None else config.update_unused
    loss_factors = [task.lr * config.lr_scale / lr for task in tasks]
    multi_task_pass = MultiTaskPass([state.task_pass for state in states], loss_factors)
    engine = setup.engine(multi_task_pass, lr, HEAD_LR * config.lr_scale, updated)
    setup.begin_run(tokens)
    _describe(training, source)
    return Trainer(config, engine, training, metadata)


def _task_state(setup: RunSetup, opened: TrainingData, task_token: int | None) -> TaskState:
    """The state of one task. opened: its data."""
    config, task, data = setup.stored_flags, opened.task, opened.data
    settings = setup.collator_settings(task)
    return TaskState(
        task_pass=TaskPass(setup.model, task, setup.precision, task_token, config.contrastive),
        training=data.collator(opened.training, settings, config.seed),
        validation=validation_of(data, opened.validation, settings, config.validate_on, config.seed),
        schedule=BatchSchedule(
            samples=len(opened.training),
            batch_size=min(default_batch_size(task, setup.sizes), config.max_batch or task.batch_size),
            ranks=setup.ranks,
            accumulate=config.accumulate,
        ),
        taken=setup.metadata.get("taken", {}).get(task.name, 0),
    )


def _regime(config: MtConfig, states: list[TaskState], iterations: int) -> Regime:
    """The task scheduling strategy of --regime at its first iteration."""
    return find_regime(config.regime)(
        names=tuple(state.task.name for state in states),
        groups=tuple(state.task.group for state in states),
        sizes=tuple(state.schedule.samples for state in states),
        iterations=iterations,
        gap=config.gap,
        first_phase=config.first_phase,
        seed=config.seed,
    )


def balanced_step(config: MtConfig, model: TaskModel, tasks: int, ranks: Ranks) -> BalancedStep | None:
    """The optimizer step of --balance; None for one of each task. Logs how much memory the tasks' gradients need."""
    method = make_balance(config.balance, config.seed)
    if method is None:
        return None
    gradients = None
    if isinstance(method, GradientCombination):
        gradients = _kept_gradients(config, model, tasks)
        ranks.log(f"--balance {config.balance}: {_memory(gradients, tasks)}")
    return BalancedStep(method, gradients, config.contrastive)


def check_tracking(config: MtConfig, tasks: list[Task]) -> None:
    """Raises UserError if --track has nothing to compare, or its interval no effect."""
    if config.track and len(tasks) < 2:
        raise UserError(f"--track true: compares the gradients of tasks, and --tasks {config.tasks} is only one")
    if config.track_every and not config.track:
        raise UserError(f"--track_every {config.track_every}: has no effect without --track true")


def gradient_tracker(
    config: MtConfig, states: list[TaskState], schedule: IterationSchedule, balanced: BalancedStep | None, ranks: Ranks
) -> GradientTracker | None:
    """The tracker of --track, None without the flag. It uses the memory for gradients of `balanced`, if it has some."""
    if not config.track:
        return None
    counts = [fixed_size(state.training, TRACKED_EXAMPLES) for state in states]
    of_record, of_iteration = TRACKED_BATCHES * sum(counts), sum(state.schedule.batch_size for state in states)
    every = config.track_every or default_interval(of_record, of_iteration, schedule.total_steps)

    def read() -> list[list[TaskBatch]]:
        return [
            fixed_batches(state.training, config.seed, TRACKED_BATCHES, TRACKED_EXAMPLES, ranks) for state in states
        ]

    batches = on_every_rank(ranks, read)
    gradients = balanced.gradients if balanced else None
    if gradients is None:
        gradients = _kept_gradients(config, states[0].task_pass.model, len(states))
    ranks.log(
        f"--track: every {every} iterations {of_record} examples, {of_record / every / of_iteration:.1%} of those of "
        f"training with all tasks; {_memory(gradients, len(states))}"
    )
    return GradientTracker(every, batches, counts, gradients)


def _kept_gradients(config: MtConfig, model: TaskModel, tasks: int) -> TaskGradients:
    dtype = torch.bfloat16 if config.balance_dtype == "bf16" else None
    return TaskGradients(shared_parameters(model).values(), tasks, dtype)


def _memory(gradients: TaskGradients, tasks: int) -> str:
    return f"keeps the gradients of {counted(tasks, 'task')}, {gradients.bytes / 1e9:.2f} GB on each rank"


def task_tokens(tasks: list[Task], kind: str) -> dict[str, int]:
    """Task -> number of its task token.

    kind: dataset: each task has its own; head: tasks that share a head share the lowest of their tokens; none: empty.
    """
    if kind == "none":
        return {}
    if kind == "dataset":
        return {task.name: task.token for task in tasks}
    layers = {task.name: task.head.layer_name for task in tasks}
    return {name: min(task.token for task in tasks if layers[task.name] == layer) for name, layer in layers.items()}


def _vocabularies(
    config: MtConfig, data: list[TaskData], source: ModelSource, log, min_answer_count: int | None
) -> Vocabularies:
    """The answers of every answer head, from the first task that has it; Visual Genome QA shares those of VQA."""
    check_answer_files(config, [of_task.task for of_task in data])
    given, found = answer_files(config), {}
    for of_task in data:
        head = of_task.task.head
        if head.name in found or not head.has_vocabulary:
            continue
        file, flag = given.get(head.name), f"--{head.name}_answers"
        found[head.name] = choose_vocabulary(source, of_task, file, log, flag, min_answer_count)
    if min_answer_count and not found:
        raise UserError(f"--min_answer_count {min_answer_count}: none of the tasks has an answer vocabulary")
    return found


def _describe(training: MultiTask, source: ModelSource) -> None:
    log, schedule, config = training.ranks.log, training.schedule, training.config
    log(
        f"{counted(len(training.task_states), 'task')}, regime {config.regime}, from {source.path or 'scratch'}, "
        f"on {training.device}"
    )
    if not schedule.first_step and (note := random_weights_note(source, config.init, (PRETRAINING,))):
        log(note)
    for state in training.task_states:
        log(
            f"{state.task.title:<20} {state.schedule.samples} training examples, "
            f"{len(state.validation)} validation examples, "
            f"{counted(state.schedule.steps_per_epoch, 'step')} per epoch, batch size {state.schedule.batch_size}"
        )
    epochs = math.ceil(schedule.total_steps / schedule.steps_per_epoch)
    length = f"{counted(schedule.total_steps, 'iteration')}, {counted(epochs, 'epoch')} of the longest task"
    log(f"{length}; peak learning rate {training.peak_lr:g}")
    if schedule.first_step:
        log(f"resuming after iteration {schedule.first_step}")
