"""Builds the model and the training engine of one or more tasks from a run's flags."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from finetune.config import BETAS, EPSILON, TrainingConfig, is_small
from finetune.models.task_model import TaskModel
from finetune.run_dirs.answer_vocabularies import Vocabularies
from finetune.run_dirs.model_source import DEFAULT_RUNS, ModelSource, choose_source
from finetune.task_types.base import Task
from pretrain.engine.distributed import on_first
from pretrain.engine.optimizer import make_optimizer
from pretrain.engine.run_dir import read_flags
from pretrain.engine.step import Engine, make_engine
from pretrain.engine.trainer import restore_engine
from pretrain.models.execution import set_execution
from pretrain.models.model_config import ModelConfig
from pretrain.models.precision import Precision
from pretrain.pretrained.find_weights import describe_keys
from pretrain.pretrained.hf_bert import may_be_from_bert
from shards.common.dist_info import ALONE, Ranks
from shards.common.errors import UserError


def choose_model(
    config: TrainingConfig,
    newest: Path | None,
    texts: Iterable[str],
    feature_size: int,
    ranks: Ranks,
    runs: tuple[str, ...] = DEFAULT_RUNS,
) -> tuple[ModelSource, ModelConfig]:
    """Chooses the initial weights, or those of the run to resume.

    Args:
        config: flags.
        newest: the checkpoint to resume from, or None.
        texts: training texts, for a learned tokenizer.
        feature_size: feature size of the region shards.
        ranks: the processes of the run.
        runs: default run directories of --init.

    Returns:
        The weights, and their model configuration with the dropout of the flags.
    """

    def chosen() -> ModelSource:
        if newest:
            return choose_source(str(Path(config.out)), None, None, texts, feature_size, runs)
        return choose_source(config.init, config.config, config.tokenizer, texts, feature_size, runs)

    source = on_first(ranks, chosen)
    return source, source.sizes if config.dropout is None else source.sizes.with_dropout(config.dropout)


# Flags whose default depends on the size of the model: small ones are trained in few steps, in which Adam's moments
# without bias correction make updates several times as large, and a wrong initial probability is not unlearned.
TRUE_FOR_SMALL = ("rare_choices", "bias_correction")


def with_defaults(config: TrainingConfig, sizes: ModelConfig, newest: Path | None) -> TrainingConfig:
    """The flags with a value for each of TRUE_FOR_SMALL; the run keeps those that were given.

    newest: the checkpoint to resume from, or None. A run of an earlier version, whose config.json lacks these flags, is
    resumed as it began, with false.
    """
    stored = read_flags(Path(config.out), type(config)) if newest else {}
    unset = [name for name in TRUE_FOR_SMALL if getattr(config, name) is None]
    earlier = [name for name in unset if newest and name not in stored]
    return dataclasses.replace(config, **{name: is_small(sizes) and name not in earlier for name in unset})


def make_model(
    config: TrainingConfig,
    tasks: Sequence[Task],
    sizes: ModelConfig,
    vocabularies: Vocabularies,
    source: ModelSource | None,
    precision: Precision,
    ranks: Ranks = ALONE,
) -> TaskModel:
    """A model with one answer head per vocabulary, on its device.

    Args:
        config: flags.
        tasks: the tasks of the run.
        sizes: configuration of the model.
        vocabularies: answer head -> its answers.
        source: the initial weights, or None. Only the first rank reads them; make_task_engine broadcasts them.
        precision: dtype of the weights, and the device.
        ranks: the processes of the run.
    """
    if config.compile and sizes.contrastive_size:
        raise UserError("--compile true: cannot be used with a contrastive head; remove the flag")
    torch.manual_seed(config.seed)
    answers = {head: len(vocabulary) for head, vocabulary in vocabularies.items()}
    model = TaskModel(sizes, answers, [task.head for task in tasks])
    if config.rare_choices:
        for task in tasks:
            task.head.make_choices_rare(model.heads[task.head.layer_name])
    set_execution(model.encoder, config)
    if source is not None:
        sentence = on_first(ranks, lambda: describe_keys(*source.load(model)))
        if sentence:
            ranks.log(f"{source.path}: {sentence}")
    if not config.bert_lr_scale:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not may_be_from_bert(name))
    return model.to(precision.device, precision.weight_dtype)


def make_task_engine(
    config: TrainingConfig,
    ranks: Ranks,
    training_pass: nn.Module,
    lr: float,
    head_lr: float,
    newest: Path | None,
    update_unused: bool = False,
) -> Engine:
    """The optimizer and training step of a pass, restored from a checkpoint if given; weights are those of rank 0.

    Args:
        config: flags.
        ranks: the processes of the run.
        training_pass: TaskPass or MultiTaskPass.
        lr: peak learning rate of the encoder and of the pointing head.
        head_lr: peak learning rate of all other heads, which are newly initialised.
        newest: checkpoint directory, or None for a new run.
        update_unused: see optimizer.ZeroGradients.
    """

    def scale(name: str) -> float:
        if may_be_from_bert(name):
            return config.bert_lr_scale
        new = name.startswith("heads.") and not name.startswith("heads.pointing.")
        return head_lr / lr if new else 1.0

    optimizer = make_optimizer(
        training_pass.model,
        lr=lr,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=config.weight_decay,
        scale=scale,
        kind=config.optimizer,
        bias_correction=config.bias_correction,
    )
    engine = make_engine(training_pass, optimizer, ranks, config.clip, all_used=False, update_unused=update_unused)
    if newest:
        restore_engine(engine, newest)
    return engine
