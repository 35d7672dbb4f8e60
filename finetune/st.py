"""python -m finetune.st --task refcoco: single-task fine-tuning from a multi-task or pretraining run, or scratch."""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from finetune.annotations.answers import AnswerVocabulary
from finetune.build import make_model, make_task_engine
from finetune.config import FREE_FLAGS, StConfig, batch_and_lr, epochs
from finetune.data.task_data import TaskData, open_data, same_on_every_rank
from finetune.evaluation.scores import describe_scores
from finetune.objective.task_pass import TaskPass
from finetune.run_dirs.init_weights import Start, begin_run, choose_start, choose_vocabulary, random_start_note
from finetune.run_dirs.result_files import SingleResult
from finetune.task_types.base import Example, Task
from finetune.tasks import all_tasks, find_task
from finetune.training.single_task import SingleTask
from pretrain.data.batch_schedule import Plan
from pretrain.data.dataloader import Places
from pretrain.engine.checkpoint import best_checkpoint, newest_checkpoint, read_facts
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
from shards.world import complete_world


def run(config: StConfig) -> int:
    """Fine-tunes; returns the exit status, 0 or 128 + the signal that stopped the run."""
    ranks = launched()
    device = choose_device(config.device, ranks)
    task = _one_task(config.task)
    config = dataclasses.replace(config, out=config.out or default_out(task.name))
    with connected(ranks, device), locked_run(Path(config.out), "finetune.st", ranks):
        return finetune(config, task, ranks, device)


def finetune(config: StConfig, task: Task, ranks: Ranks, device: torch.device) -> int:
    """One rank's part of a run, from its flags to its result."""
    began, out = time.perf_counter(), Path(config.out)
    newest = checkpoint_to_resume(out, config.resume, ranks)
    result = finished_result(out, newest, config, FREE_FLAGS, ranks, SingleResult)
    if result is None:
        on_first(ranks, lambda: complete_world(config.data))
        training_run, kind = prepare(config, task, ranks, device, newest)
        status, _ = complete(training_run)
        if status:
            return status
        best = on_first(ranks, lambda: best_checkpoint(out))
        facts = read_facts(best)
        result = {
            "task": task.name,
            "kind": kind,
            "steps": read_facts(newest_checkpoint(out))["step"],
            "examples": len(training_run.training.examples),
            "validation": facts["scores"],
            "best_step": facts["step"],
            "best_checkpoint": best.name,
            "seconds": round(time.perf_counter() - began, 1),
        }
        if ranks.first:
            write_json(out / RESULT, result)
    scores, step = describe_scores(result["validation"]), result["best_step"]
    ranks.log(f"{task.title}, {result['kind']}: {scores}, best at step {step}")
    ranks.log(f"the run is in {out}{os.sep}; curves: tensorboard --logdir {out.parent}")
    return 0


def _one_task(name: str) -> Task:
    """The task of a name. Raises UserError for several tasks or a group, with the command that accepts them."""
    several = {"all", *(task.group.lower() for task in all_tasks().values())}
    if "," in name or name.lower() in several:
        raise UserError(f"--task {name}: takes one task; python -m finetune.mt --tasks {name} trains several together")
    return find_task(name)


def default_out(task: str | None) -> str:
    return f"runs/st-{task}"


def prepare(config: StConfig, task: Task, ranks: Ranks, device: torch.device, newest) -> tuple[SingleTask, str]:
    """Reads data and weights of a new or resumed run; returns it with its kind: AT->ST, ST, BERT or scratch.

    newest: the checkpoint to resume from, or None.
    """
    run = Path(config.out)
    if config.annotated_boxes and task.head != "regions":
        raise UserError(f"--annotated_boxes: applies to referring expressions only, not to {task.name}")
    train_split, validation_split = config.train_split or task.splits[0], config.validation_split or task.splits[1]

    def opened() -> tuple[TaskData, tuple[Sequence[Example], Sequence[Example]]]:
        data = open_data(task, config.data, config.missing, config.annotated_boxes, clean=config.clean)
        return data, data.splits(train_split, validation_split, config.validate_on, ranks.log)

    data, (examples, held_out) = on_every_rank(ranks, opened)
    same_on_every_rank(data, (examples, held_out), ranks)
    texts = (example.text for example in examples)
    asked = (str(run), None, None) if newest else (config.init, config.config, config.tokenizer)
    start = on_first(ranks, lambda: choose_start(*asked, texts, data.feature_size))
    kind = read_config(run)["start"]["kind"] if newest else start.kind
    sizes = start.sizes if config.dropout is None else start.sizes.with_dropout(config.dropout)
    batch_size, lr, head_lr = batch_and_lr(config, task, sizes)
    config = dataclasses.replace(config, batch_size=batch_size, lr=lr, epochs=config.epochs or epochs(sizes))
    if newest:
        check_flags(dataclasses.asdict(config), run, FREE_FLAGS)
    counted = None if newest else config.min_answer_count
    vocabulary = on_first(ranks, lambda: _vocabulary(config, data, start, counted, ranks.log))
    vocabularies = {task.head: vocabulary} if vocabulary else {}
    precision = Precision(config.precision, device)
    model = make_model(config, sizes, vocabularies, None if newest else start, precision, ranks)
    work = TaskPass(model, task, precision, start.token(task))
    facts = read_facts(newest) if newest else {}
    engine = make_task_engine(config, ranks, work, lr, head_lr, newest)
    plan = Plan(
        pairs=len(examples),
        batch_size=batch_size,
        epochs=config.epochs,
        first_step=facts.get("step", 0),
        ranks=ranks,
        workers=config.workers,
        accumulate=config.accumulate,
    )
    inputs = start.tokenizer, vocabulary, sizes.max_position_embeddings, config.regions
    best = facts.get("best_score")
    training_run = SingleTask(
        config=config,
        ranks=ranks,
        device=device,
        plan=plan,
        engine=engine,
        places=Places(config.workers, data.regions.dataset),
        bad_samples=0,
        unlogged=facts.get("unlogged", {}),
        work=work,
        training=data.collator(examples, *inputs, config.seed),
        validation=data.validation(held_out, *inputs, validate_on=config.validate_on, seed=config.seed),
        **({"best": best, "worse": facts["epochs_without_better"]} if best is not None else {}),
    )
    if not newest:
        begun = run, config, start, sizes, [task], {task.name: work.token}, vocabularies, device, data.regions
        on_first(ranks, lambda: begin_run(*begun))
    _describe(training_run, task, kind, start, examples, held_out)
    return training_run, kind


def _vocabulary(
    config: StConfig, data: TaskData, start: Start, min_answer_count: int | None, log
) -> AnswerVocabulary | None:
    """The answer vocabulary of the task, or None if it has none."""
    if not hasattr(data.task, "vocabulary"):
        for name in ("answers", "min_answer_count"):
            if value := getattr(config, name):
                raise UserError(f"--{name} {value}: {data.task.name} has no answer vocabulary")
        return None
    return choose_vocabulary(start, data, config.answers, log, min_answer_count=min_answer_count)


def _describe(
    training_run: SingleTask,
    task: Task,
    kind: str,
    start: Start,
    examples: Sequence[Example],
    held_out: Sequence[Example],
) -> None:
    log, plan, config = training_run.ranks.log, training_run.plan, training_run.config
    log(f"{task.title} ({kind}{f', from {start.path}' if start.path and not plan.first_step else ''})")
    if not plan.first_step and (note := random_start_note(start, config.init)):
        log(note)
    log(
        f"{len(examples)} training examples, {len(held_out)} validation examples, "
        f"{plan.steps_per_epoch} steps per epoch"
    )
    log(f"batch size {plan.batch_size}, peak learning rate {config.lr:g}, on {training_run.device}")
    if plan.first_step:
        log(f"resuming after step {plan.first_step}")


if __name__ == "__main__":
    with exiting():
        command(
            StConfig,
            run,
            "finetune.st",
            "Single-task fine-tuning.",
            inherit=lambda flags: stored_flags(flags, flags.get("out") or default_out(flags.get("task"))),
        )
