"""The flags of single-task fine-tuning, and what comes with the size of the model where they do not say otherwise."""

import os
from dataclasses import dataclass

from finetune.task import Task
from pretrain.config import ModelConfig
from pretrain.settings import PRECISIONS
from shards.flags import REQUIRED, flag
from shards.world import DEFAULT_WORLD

EPOCHS = 20
BETAS, EPSILON = (0.9, 0.999), 1e-6
HEAD_LR = 1e-4  # of the new heads; the one that points has the task's own
VALIDATED_CAPTIONS = 300  # of retrieval, where every caption is scored with every image; evaluate takes all of them
BASE_SIZE = 768  # of the text stream: table 8's settings are for this one
SMALL_LR, SMALL_BATCH = 4, 64  # a small model learns at this many times the rate, on batches no larger


@dataclass
class StConfig:
    """Flags of finetune.st. None: what the task and the size of the model bring along."""

    task: str = flag(REQUIRED, "the task, refcoco for one; a wrong name lists them")
    data: str = flag(DEFAULT_WORLD, "a folder with the tasks' official files and the regions of their images")
    init: str | None = flag(None, "a run to start from, or scratch (else runs/mt, runs/pretrain, or scratch)")
    out: str | None = flag(None, "the run directory (else runs/st-TASK)")
    config: str = flag("tiny", "sizes of a model from scratch: base, tiny, or a JSON file")
    answers: str | None = flag(None, "the answers to choose from, a JSON list (else from the training annotations)")
    train_split: str | None = flag(None, "the split to train on, else the task's own")
    validation_split: str | None = flag(None, "the split to validate on, else the task's own")
    validate_on: int | None = flag(None, "only so many examples, the first, of the validation split", low=1)
    missing: str = flag("stop", "what to do about examples whose image has no regions", choices=("stop", "skip"))
    regions: int | None = flag(None, "regions of an image at the most, else the task's", low=1)
    batch_size: int | None = flag(None, "examples a step, over all ranks", low=1)
    accumulate: int = flag(1, "parts that a rank works through one after another in a step, to save memory", low=1)
    epochs: int = flag(EPOCHS, "passes over the examples", low=1)
    patience: int = flag(0, "stop after so many epochs without a better score, 0: never", low=0)
    lr: float | None = flag(None, "peak learning rate", above=0)
    warmup: float = flag(0.1, "share of the steps in which the learning rate rises", low=0, high=1)
    weight_decay: float = flag(0.01, "of all weights but biases and LayerNorm", low=0)
    clip: float = flag(1.0, "largest gradient norm, 0 for no limit", low=0)
    dropout: float | None = flag(None, "probability of every dropout, else the configuration's", low=0, high=0.99)
    precision: str = flag("float32", "of matrix work; float64: of all", choices=PRECISIONS)
    activation_checkpointing: bool = flag(False, "work activations out again in the backward pass, to save memory")
    device: str = flag("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))
    workers: int = flag(min(4, max(1, (os.cpu_count() or 1) // 2)), "processes that make batches, 0: none", low=0)
    log_every: int = flag(20, "steps between two lines of the log", low=1)
    seed: int = flag(0, "of new weights, order and dropout")
    resume: bool = flag(False, "go on from the run's newest checkpoint, where there is one")


def batch_and_lr(config: StConfig, task: Task, sizes: ModelConfig) -> tuple[int, float, float]:
    """(examples a step, peak learning rate, that of the new heads): table 8's, scaled to the size of the model."""
    base = sizes.hidden_size >= BASE_SIZE
    batch_size = config.batch_size or (task.batch_size if base else min(task.batch_size, SMALL_BATCH))
    factor = 1 if base else SMALL_LR
    lr = config.lr or task.lr * factor
    return batch_size, lr, HEAD_LR * factor if config.lr is None else lr * HEAD_LR / task.lr


# Flags that may differ between a run and its continuation: they do not change what is computed.
FREE_FLAGS = {"resume", "out", "workers", "accumulate", "activation_checkpointing", "log_every"}
