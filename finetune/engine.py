"""The model of one or more tasks and what trains it, put together from a run's flags."""

from pathlib import Path

import torch
from torch import nn

from finetune.heads import TaskModel
from finetune.settings import BETAS, EPSILON
from finetune.start import Start, Vocabularies
from pretrain.config import ModelConfig
from pretrain.distributed import on_first
from pretrain.optimizer import make_optimizer, without_bias_correction
from pretrain.step import Engine, Precision, make_engine
from pretrain.trainer import restore_engine
from pretrain.weights import describe
from shards.ranks import ALONE, Ranks


def make_model(
    config,
    sizes: ModelConfig,
    vocabularies: Vocabularies,
    start: Start | None,
    precision: Precision,
    ranks: Ranks = ALONE,
) -> TaskModel:
    """A model with answer heads of these vocabularies, on its device.

    start: whose weights it takes, or None. The first rank alone reads them; make_task_engine hands them to the others.
    """
    torch.manual_seed(config.seed)
    model = TaskModel(sizes, {head: len(vocabulary) for head, vocabulary in vocabularies.items()})
    model.encoder.recompute = config.activation_checkpointing
    if start is not None:
        sentence = on_first(ranks, lambda: describe(*start.load(model)))
        if sentence:
            ranks.say(f"{start.path}: {sentence}")
    return model.to(precision.device, precision.weights)


def make_task_engine(
    config,
    ranks: Ranks,
    work: nn.Module,
    lr: float,
    head_lr: float,
    newest: Path | None,
    update_unused: bool = False,
) -> Engine:
    """What trains `work`, as a checkpoint left it where one is given, with the first rank's weights on every rank.

    The head that points learns at lr too. update_unused: see optimizer.ZeroGradients.
    """

    def scale(name: str) -> float:
        new = name.startswith("heads.") and not name.startswith("heads.pointing.")
        return head_lr / lr if new else 1.0

    optimizer = make_optimizer(work.model, lr, BETAS, EPSILON, config.weight_decay, scale)
    without_bias_correction(optimizer)
    engine = make_engine(work, optimizer, ranks, config.clip, all_used=False, update_unused=update_unused)
    if newest:
        restore_engine(engine, newest)
    return engine
