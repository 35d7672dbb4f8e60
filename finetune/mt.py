"""python -m finetune.mt: multi-task training of one model, with dynamic stop-and-go."""

import dataclasses
import math
import os
import time
from pathlib import Path

import torch

from finetune.build import make_model, make_task_engine
from finetune.config import (
    FREE_FLAGS,
    HEAD_LR,
    MtConfig,
    answer_files,
    batch_size,
    check_answer_files,
    lr_scale,
    update_unused,
)
from finetune.data.task_data import TaskData, check_same_width, open_data, same_on_every_rank
from finetune.decontamination.manifest import NOT_CLEANED, is_cleaned
from finetune.evaluation.paper_results import paper_row
from finetune.evaluation.scores import mean_score, ranking_note, render_rows, save_values, table_row
from finetune.models.task_model import layer_of
from finetune.objective.task_pass import MultiTaskPass, TaskPass
from finetune.run_dirs.init_weights import (
    PRETRAINING,
    TASK_TOKENS,
    Start,
    Vocabularies,
    begin_run,
    choose_start,
    choose_vocabulary,
    random_start_note,
)
from finetune.run_dirs.result_files import MultiResult
from finetune.task_types.base import Task
from finetune.tasks import choose_tasks, find_task
from finetune.training.multi_task import Iterations, MultiTask, TaskState
from finetune.training.task_schedulers import REGIMES
from pretrain.data.batch_schedule import Plan
from pretrain.data.dataloader import Places
from pretrain.engine.checkpoint import FACTS, read_facts
from pretrain.engine.distributed import choose_device, connected, exiting, on_every_rank, on_first
from pretrain.engine.run_dir import (
    RESULT,
    check_flags,
    checkpoint_to_resume,
    finished_result,
    locked_run,
    read_config,
    stored_flags,
)
from pretrain.engine.step import Precision
from pretrain.engine.trainer import complete
from shards.common.cli import command
from shards.common.dist_info import Ranks, launched
from shards.common.errors import UserError
from shards.common.files import write_json
from shards.common.untrusted_input import reading
from shards.world import complete_world

VALUES = "values.npz"  # per-example scores of the last validation, by task
ENDLESS = 1 << 30  # epochs of a task's plan: the number of iterations ends a run, not the epochs


def run(config: MtConfig) -> int:
    """Trains; returns the exit status, 0 or 128 + the signal that stopped the run."""
    ranks = launched()
    device = choose_device(config.device, ranks)
    with connected(ranks, device), locked_run(Path(config.out), "finetune.mt", ranks):
        return train_tasks(config, ranks, device)


def train_tasks(config: MtConfig, ranks: Ranks, device: torch.device) -> int:
    """One rank's part of a run, from its flags to its result."""
    began, out = time.perf_counter(), Path(config.out)
    tasks = choose_tasks(config.tasks)
    on_first(ranks, lambda: REGIMES[config.regime].check([task.group for task in tasks]))
    newest = checkpoint_to_resume(out, config.resume, ranks)
    finished = finished_result(out, newest, config, FREE_FLAGS, ranks, MultiResult)
    if finished is None:
        on_first(ranks, lambda: complete_world(config.data))
        training_run = prepare(config, tasks, ranks, device, newest)
        status, _ = complete(training_run)
        if status:
            return status
        for state in training_run.task_states:
            if state.score is None:  # the last process was stopped between its last checkpoint and its result
                training_run.score(state)
        finished = result(training_run, time.perf_counter() - began)
        if ranks.first:
            save_values(out / VALUES, training_run.scores())
            write_json(out / RESULT, finished)
    if ranks.first:
        describe_result(finished, is_cleaned(read_config(out)))
    ranks.log(f"the run is in {out}{os.sep}; curves: tensorboard --logdir {out.parent}")
    return 0


def result(training_run: MultiTask, seconds: float) -> dict:
    """The contents of result.json of a finished run. seconds: wall time of the process that finished it."""
    scores = training_run.scores()
    mean, interval = mean_score(scores)
    return {
        "regime": training_run.config.regime,
        "iterations": training_run.plan.total_steps,
        "tasks": {
            state.task.name: state.score.summary | {"trained_on": state.plan.pairs, "steps": state.taken}
            for state in training_run.task_states
        },
        "groups": {g: mean_score(scores, g)[0] for g in sorted({score.group for score in scores.values()})},
        "mt_score": mean,
        "mt_interval": interval,
        "seconds": round(seconds, 1),
    }


def describe_result(result: dict, cleaned: bool) -> None:
    """Prints the tasks' validation scores with their intervals, and the row of table 10 next to the paper's."""
    for name, of_task in result["tasks"].items():
        scored = _score_text(of_task["score"], of_task.get("interval"))
        print(f"{find_task(name).title:<20} {scored}, {of_task['steps']} steps")
    print(f"{'MT score':<20} {_score_text(result['mt_score'], result.get('mt_interval'))}")
    paper = paper_row("table10_ablations", "token per dataset")
    print(render_rows({"this run, validation": table_row(result["tasks"]), "the paper, test": paper}))
    if not cleaned:
        print(f"{NOT_CLEANED}: this run was trained without --clean; the paper's model was trained on cleaned data")
    if note := ranking_note(result["tasks"]):
        print(note)


def _score_text(score: float, interval: tuple[float, float] | None) -> str:
    """A score in percent with its interval; runs of earlier versions have no interval."""
    return f"{score:6.1%}" + (f"  ({interval[0]:.1%} to {interval[1]:.1%})" if interval else "")


def prepare(config: MtConfig, tasks: list[Task], ranks: Ranks, device: torch.device, newest) -> MultiTask:
    """Reads data and weights of a new or resumed run. newest: the checkpoint to resume from, or None."""
    run, shared = Path(config.out), {}

    def opened() -> tuple[list[TaskData], list]:
        data = [open_data(t, config.data, config.missing, config.annotated_boxes, shared, config.clean) for t in tasks]
        check_same_width(*(of_task.regions for of_task in data))
        return data, [of_task.splits(*of_task.task.splits[:2], config.validate_on, ranks.log) for of_task in data]

    data, splits = on_every_rank(ranks, opened)
    for of_task, of_splits in zip(data, splits, strict=True):
        same_on_every_rank(of_task, of_splits, ranks)
    texts = (example.text for training, _ in splits for example in training)
    asked = (str(run), None, None) if newest else (config.init, config.config, config.tokenizer)
    start = on_first(ranks, lambda: choose_start(*asked, texts, data[0].feature_size, runs=(PRETRAINING,)))
    sizes = start.sizes if config.dropout is None else start.sizes.with_dropout(config.dropout)
    sizes = sizes.replace(task_tokens=0 if config.task_token == "none" else TASK_TOKENS)
    config = dataclasses.replace(config, lr_scale=config.lr_scale or lr_scale(sizes, len(tasks)))
    if newest:
        check_flags(dataclasses.asdict(config), run, FREE_FLAGS)
    counted = None if newest else config.min_answer_count
    vocabularies = on_first(ranks, lambda: _vocabularies(config, data, start, counted, ranks.log))
    precision, tokens = Precision(config.precision, device), task_tokens(tasks, config.task_token)
    model = make_model(config, sizes, vocabularies, None if newest else start, precision, ranks)
    facts = read_facts(newest) if newest else {}
    states = []
    for of_task, (training, held_out) in zip(data, splits, strict=True):
        task = of_task.task
        inputs = start.tokenizer, vocabularies.get(task.head), sizes.max_position_embeddings, config.regions
        size = min(batch_size(task, sizes), config.max_batch or task.batch_size)
        states.append(
            TaskState(
                work=TaskPass(model, task, precision, tokens.get(task.name)),
                training=of_task.collator(training, *inputs, config.seed),
                validation=of_task.validation(held_out, *inputs, validate_on=config.validate_on, seed=config.seed),
                plan=Plan(len(training), size, ENDLESS, ranks=ranks, accumulate=config.accumulate),
                taken=facts.get("taken", {}).get(task.name, 0),
            )
        )
    longest = max(state.plan.steps_per_epoch for state in states)
    updated = update_unused(sizes) if config.update_unused is None else config.update_unused
    plan = Iterations(facts.get("step", 0), config.iterations or config.epochs * longest, longest)
    lr = min(task.lr for task in tasks) * config.lr_scale
    work = MultiTaskPass([state.work for state in states], [t.lr * config.lr_scale / lr for t in tasks])
    regime = REGIMES[config.regime](
        names=tuple(task.name for task in tasks),
        groups=tuple(task.group for task in tasks),
        sizes=tuple(state.plan.pairs for state in states),
        iterations=plan.total_steps,
        gap=config.gap,
        first_phase=config.first_phase,
        seed=config.seed,
    )
    if newest:
        with reading(newest / FACTS):
            regime.restore(facts["regime"])
    training_run = MultiTask(
        config=config,
        ranks=ranks,
        device=device,
        plan=plan,
        engine=make_task_engine(config, ranks, work, lr, HEAD_LR * config.lr_scale, newest, updated),
        places=Places(config.workers, *(of_task.regions.dataset for of_task in data)),
        bad_samples=0,
        unlogged=facts.get("unlogged", {}),
        task_states=states,
        regime=regime,
        lr=lr,
        trained=facts.get("trained", 0),
    )
    if not newest:
        begun = run, config, start, sizes, tasks, tokens, vocabularies, device, data[0].regions
        on_first(ranks, lambda: begin_run(*begun))
    _describe(training_run, start)
    return training_run


def task_tokens(tasks: list[Task], kind: str) -> dict[str, int]:
    """Task -> number of its task token.

    kind: dataset: each task has its own; head: tasks that share a head share the lowest of their tokens; none: empty.
    """
    if kind == "none":
        return {}
    if kind == "dataset":
        return {task.name: task.token for task in tasks}
    layers = {task.name: layer_of(task.head) for task in tasks}
    return {name: min(task.token for task in tasks if layers[task.name] == layer) for name, layer in layers.items()}


def _vocabularies(
    config: MtConfig, data: list[TaskData], start: Start, min_answer_count: int | None, log
) -> Vocabularies:
    """The answers of every answer head, from the first task that has it; Visual Genome QA shares those of VQA."""
    check_answer_files(config, [of_task.task for of_task in data])
    given, found = answer_files(config), {}
    for of_task in data:
        head = of_task.task.head
        if head in found or not hasattr(of_task.task, "vocabulary"):
            continue
        found[head] = choose_vocabulary(start, of_task, given.get(head), log, f"--{head}_answers", min_answer_count)
    if min_answer_count and not found:
        raise UserError(f"--min_answer_count {min_answer_count}: none of the tasks has an answer vocabulary")
    return found


def _describe(training_run: MultiTask, start: Start) -> None:
    log, plan, config = training_run.ranks.log, training_run.plan, training_run.config
    log(
        f"{len(training_run.task_states)} tasks, regime {config.regime}, from {start.path or 'scratch'}, "
        f"on {training_run.device}"
    )
    if not plan.first_step and (note := random_start_note(start, config.init, (PRETRAINING,))):
        log(note)
    for state in training_run.task_states:
        log(
            f"{state.task.title:<20} {state.plan.pairs} training examples, "
            f"{len(state.validation)} validation examples, "
            f"{state.plan.steps_per_epoch} steps per epoch, batch size {state.plan.batch_size}"
        )
    epochs = math.ceil(plan.total_steps / plan.steps_per_epoch)
    log(f"{plan.total_steps} iterations, {epochs} epochs of the longest task; peak learning rate {training_run.lr:g}")
    if plan.first_step:
        log(f"resuming after iteration {plan.first_step}")


if __name__ == "__main__":
    with exiting():
        command(
            MtConfig,
            run,
            "finetune.mt",
            "Multi-task training of one model.",
            inherit=lambda flags: stored_flags(flags, flags.get("out", MtConfig.out)),
        )
