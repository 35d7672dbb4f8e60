"""The flags of fine-tuning, and what comes with the size of the model where they do not say otherwise."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields

from finetune.regimes import REGIMES
from finetune.task import Task
from pretrain.config import ModelConfig
from pretrain.settings import PRECISIONS
from shards.errors import UserError
from shards.flags import REQUIRED, flag
from shards.world import DEFAULT_WORLD

EPOCHS, SMALL_EPOCHS = 20, 10  # of a single task; a small model's
BETAS, EPSILON = (0.9, 0.999), 1e-6
HEAD_LR = 1e-4  # of the new heads; the one that points has the task's own
RANKED_CAPTIONS = 200  # in validation, where every caption is scored with every image; evaluate takes all of them
BASE_SIZE = 768  # of the text stream: table 8's settings are for this one
MT_EPOCHS = 4  # of the longest task, as the paper's 40 K iterations are
TASK_TOKEN_KINDS = ("dataset", "head", "none")  # a token for each task, for each head, or for none
# A small model learns one task, or several together, at so many times the rate (docs/results.md),
SMALL_LR, SMALL_LR_TOGETHER = 4, 8
SMALL_BATCH = 64  # on batches of half the size, no larger than this


@dataclass(kw_only=True)
class FinetuneConfig:
    """Flags that finetune.st and finetune.mt share. None: what the tasks and the size of the model bring along."""

    data: str = flag(DEFAULT_WORLD, "a folder with the tasks' official files and the regions of their images")
    config: str | None = flag(
        None,
        "sizes of a model from scratch or of weights: base, tiny, or a JSON file",
        unset="from scratch tiny, of weights those next to them",
    )
    tokenizer: str | None = flag(
        None,
        "of weights that are no run's: a BERT's directory, vocab.txt, or a hub name",
        unset="next to the weights, or bert-base-uncased; from scratch learned",
    )
    missing: str = flag("stop", "what to do about examples whose image has no regions", choices=("stop", "skip"))
    annotated_boxes: bool = flag(False, "referring expressions: add the annotated boxes to the regions in training")
    clean: str | None = flag(
        None,
        "leave any task's test images out, by DATA/clean or another folder of finetune.clean",
        unset="nothing is left out",
    )
    min_answer_count: int | None = flag(
        None,
        "training questions with an answer, from which it is in the vocabulary",
        unset="the task's, VQA's 9",
        low=1,
    )
    regions: int | None = flag(None, "regions of an image at the most", unset="the task's", low=1)
    accumulate: int = flag(1, "parts that a rank works through one after another in a step, to save memory", low=1)
    warmup: float = flag(0.1, "share of the steps in which the learning rate rises", low=0, high=1)
    weight_decay: float = flag(0.01, "of all weights but biases and LayerNorm", low=0)
    clip: float = flag(0.0, "largest gradient norm, 0 for no limit, as in the reference implementation", low=0)
    dropout: float | None = flag(None, "probability of every dropout", unset="the configuration's", low=0, high=0.99)
    precision: str = flag("float32", "of matrix work; float64: of all", choices=PRECISIONS)
    activation_checkpointing: bool = flag(False, "work activations out again in the backward pass, to save memory")
    device: str = flag("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))
    workers: int = flag(min(4, max(1, (os.cpu_count() or 1) // 2)), "processes that make batches, 0: none", low=0)
    log_every: int = flag(20, "steps between two lines of the log", low=1)
    save_minutes: float = flag(10.0, "minutes without a checkpoint after which one is written, 0 for none", low=0)
    seed: int = flag(0, "of new weights, order and dropout")
    resume: bool = flag(False, "go on from the run's newest checkpoint, where there is one")


@dataclass(kw_only=True)
class WeightsFlags:
    """Flags that commands share which ask trained weights."""

    run: str = flag(REQUIRED, "a run directory of finetune.st, finetune.mt or pretrain.run, or published weights")
    data: str | None = flag(None, "the data folder", unset="the run's own")
    config: str | None = flag(None, "JSON file of the sizes of published weights", unset="next to them, or base")
    tokenizer: str | None = flag(
        None,
        "of published weights: a BERT's directory, vocab.txt, or a hub name",
        unset="next to them, or bert-base-uncased",
    )
    vqa_answers: str | None = flag(None, "of published weights: VQA's answers, in order", unset="from the data")
    gqa_answers: str | None = flag(None, "of published weights: GQA's answers, in order", unset="from the data")
    precision: str = flag("float32", "of matrix work; float64: of all", choices=PRECISIONS)
    device: str = flag("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))

    @property
    def of_weights(self) -> dict:
        """These flags alone, for a command that asks another."""
        return {one.name: getattr(self, one.name) for one in fields(WeightsFlags)}


def answer_files(config) -> dict[str, str | None]:
    """Answer head -> the file of its answers that a flag names."""
    return {"vqa": config.vqa_answers, "gqa": config.gqa_answers}


def check_answer_files(config, tasks: Iterable[Task]) -> None:
    """Refuses a file of answers that none of the tasks has a use for."""
    heads = {task.head for task in tasks}
    for head, file in answer_files(config).items():
        if file and head not in heads:
            raise UserError(f"--{head}_answers {file}: none of the tasks has answers of this kind to choose from")


@dataclass(kw_only=True)
class StConfig(FinetuneConfig):
    """Flags of finetune.st."""

    task: str = flag(REQUIRED, "the task, refcoco for one; a wrong name lists them")
    init: str | None = flag(None, "a run, weights, a BERT, or scratch", unset="runs/mt, or runs/pretrain, or scratch")
    out: str | None = flag(None, "the run directory", unset="runs/st-TASK", written=True)
    answers: str | None = flag(None, "a file of the answers to choose from, in order", unset="from the annotations")
    train_split: str | None = flag(None, "the split to train on", unset="the task's own")
    validation_split: str | None = flag(None, "the split to validate on", unset="the task's own")
    validate_on: int | None = flag(
        None, "only so many examples, the first, of the validation split", unset="all", low=1
    )
    batch_size: int | None = flag(
        None,
        "examples a step, over all ranks",
        unset="the paper's, table 8; of a small model half of it, 64 at most",
        low=1,
    )
    epochs: int | None = flag(
        None, "passes over the examples", unset=f"{EPOCHS}, of a small model {SMALL_EPOCHS}", low=1
    )
    patience: int = flag(0, "stop after so many epochs without a better score, 0: never", low=0)
    lr: float | None = flag(
        None, "peak learning rate", unset=f"the paper's, table 8; of a small model times {SMALL_LR}", above=0
    )


@dataclass(kw_only=True)
class MtConfig(FinetuneConfig):
    """Flags of finetune.mt."""

    tasks: str = flag("all", "names or groups (g1 to g4, extra) with commas between them; all: the paper's twelve")
    init: str | None = flag(None, "a run, weights, a BERT, or scratch", unset="runs/pretrain, or scratch")
    out: str = flag("runs/mt", "the run directory", written=True)
    vqa_answers: str | None = flag(None, "a file of VQA's and VGQA's answers, in order", unset="from the annotations")
    gqa_answers: str | None = flag(None, "a file of GQA's answers, in order", unset="from the annotations")
    regime: str = flag("dsg", "which tasks train in an iteration; dsg: dynamic stop-and-go", choices=tuple(REGIMES))
    gap: int = flag(4, "a stopped task trains in one of so many iterations", low=1)
    first_phase: float = flag(
        0.25, "share of the iterations in which a curriculum trains its first group alone", above=0, high=1
    )
    task_token: str = flag("dataset", "what tells the model its task", choices=TASK_TOKEN_KINDS)
    update_unused: bool | None = flag(
        None,
        "apply momentum and weight decay in every step to the parameters that its task does not use too, as the "
        "reference implementation does",
        unset="at base only",
    )
    one_step: bool = flag(False, "sum the gradients of an iteration's tasks into one step")
    iterations: int | None = flag(None, "of the run", unset="as many as make --epochs of the longest task", low=1)
    epochs: int = flag(MT_EPOCHS, "passes over the longest task", low=1)
    validate_on: int | None = flag(
        None, "only so many examples, the first, of each validation split", unset="all", low=1
    )
    max_batch: int | None = flag(None, "no task's batch larger than this, over all ranks", unset="no limit", low=1)
    lr_scale: float | None = flag(
        None,
        "factor on all tasks' learning rates",
        unset=f"1, of a small model {SMALL_LR_TOGETHER}, or {SMALL_LR} of one task",
        above=0,
    )
    save_every: int | None = flag(
        None, "iterations between two checkpoints", unset="an epoch of the longest task", low=1
    )


def small(sizes: ModelConfig) -> bool:
    """Whether a model is so small that table 8's settings, which are of BERT's size, are not for it."""
    return sizes.hidden_size < BASE_SIZE


def epochs(sizes: ModelConfig) -> int:
    """Passes over the examples of single-task training: as published, or a small model's."""
    return SMALL_EPOCHS if small(sizes) else EPOCHS


def lr_scale(sizes: ModelConfig, tasks: int = 1) -> float:
    """The factor on table 8's learning rates where so many tasks are trained together."""
    if not small(sizes):
        return 1
    return SMALL_LR_TOGETHER if tasks > 1 else SMALL_LR


def update_unused(sizes: ModelConfig) -> bool:
    """Whether parameters that a step's task does not use are updated in it all the same."""
    return not small(sizes)


def batch_size(task: Task, sizes: ModelConfig) -> int:
    """Examples a step: table 8's; for a small model half of it, at most SMALL_BATCH, of retrieval half of that again,
    because an example there is four."""
    if not small(sizes):
        return task.batch_size
    return min(task.batch_size // 2, SMALL_BATCH) // (2 if task.head == "retrieval" else 1)


def batch_and_lr(config: StConfig, task: Task, sizes: ModelConfig) -> tuple[int, float, float]:
    """(examples a step, peak learning rate, that of the new heads) of single-task training."""
    lr = config.lr or task.lr * lr_scale(sizes)
    return config.batch_size or batch_size(task, sizes), lr, lr / task.lr * HEAD_LR


# Flags that may differ between a run and its continuation: they do not change what is computed.
FREE_FLAGS = {"resume", "out", "workers", "accumulate", "activation_checkpointing", "log_every", "save_minutes"}
