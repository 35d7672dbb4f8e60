"""The flags of fine-tuning, and defaults that depend on the size of the model."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from finetune.balancing import STEPS, balance_names
from finetune.decontamination.hash_search import SEARCHES
from finetune.evaluation.grounding_consistency import MIN_ACCURACY
from finetune.evaluation.pos_tagger import DEFAULT_TAGGER
from finetune.reporting.ablation_suites import SUITES
from finetune.task_types.base import Task
from finetune.tasks import add_task_file, choose_tasks
from finetune.tasks.retrieval import RECALL_PLACES
from finetune.training.task_schedulers import regime_names
from pretrain.config import PRECISIONS, WORKERS
from pretrain.engine.experiment_trackers import TENSORBOARD
from pretrain.engine.optimizer import OPTIMIZERS
from pretrain.models.model_config import ModelConfig
from shards.common.cli import REQUIRED, flag
from shards.common.errors import UserError
from shards.common.files import split_paths
from shards.world import DEFAULT_WORLD

PRETRAINING = "runs/pretrain"  # default run directory of pretraining, whose weights others start from
TESTS = "tests"  # value of --split for a task's test, which may be several splits; also the name of their pooled score
EPOCHS, SMALL_EPOCHS = 20, 10  # epochs of single-task training; those of a small model
BETAS, EPSILON = (0.9, 0.999), 1e-6  # of Adam
HEAD_LR = 1e-4  # learning rate of the new heads; the pointing head has that of the task
RANKED_CAPTIONS = 200  # captions of retrieval validation, each scored with every image; evaluate ranks all captions
BASE_SIZE = 768  # hidden size of the text stream for which table 8's hyperparameters are
MT_EPOCHS = 4  # epochs of the longest task, which correspond to the paper's 40 K iterations
TASK_TOKEN_KINDS = ("dataset", "head", "none")  # one task token per task, one per head, or none
# Factor on table 8's learning rates for a small model, alone and together (docs/results.md).
SMALL_LR = 16
SMALL_BATCH = 64  # a small model has half of table 8's batch size, at most this
ALL = "all"  # value of --tasks: the paper's twelve


def tasks_flag(group: str | None = None) -> Any:
    """The flag --tasks of commands for several tasks. group: as for `flag`."""
    return flag(ALL, "comma-separated tasks or groups (g1 to g4, extra, own); all: the paper's twelve", group=group)


def task_file_flag() -> Any:
    """The flag --task_file of these commands."""
    text = "comma-separated TOML files that describe tasks of your own tables, for --tasks"
    return flag(None, text, unset="none")


def missing_flag() -> Any:
    """The flag --missing."""
    return flag("stop", "handling of examples whose image has no regions", choices=("stop", "skip"))


def workers_flag() -> Any:
    """The flag --workers."""
    return flag(WORKERS, "data worker processes, 0 for none", low=0)


def precision_flag(group: str | None = None) -> Any:
    """The flag --precision. group: as for `flag`."""
    return flag("float32", "precision of matrix products; float64: of everything", choices=PRECISIONS, group=group)


def device_flag() -> Any:
    """The flag --device."""
    return flag("auto", "device; auto: a GPU if available", choices=("auto", "cpu", "cuda"))


def add_task_files(names: str | None, run=None) -> list[Task]:
    """Makes the tasks of --task_file known. run: a run that is resumed, see add_task_file."""
    return [add_task_file(path, run) for path in split_paths(names or "") if path]


def chosen_tasks(config, run=None) -> list[Task]:
    """The tasks of --tasks, also those of --task_file. run: a run that is resumed, see add_task_file."""
    add_task_files(config.task_file, run)
    return choose_tasks(config.tasks)


@dataclass(kw_only=True)
class FinetuneConfig:
    """Flags that finetune.st and finetune.mt share. None: a default that depends on the tasks and the model's size."""

    data: str = flag(
        DEFAULT_WORLD, "data folder with the tasks' official files and the regions of their images", group="data"
    )
    clean: str | None = flag(
        None,
        "decontamination: remove test images of any task, by DATA/clean or another output folder of finetune.clean",
        unset="no removal",
    )
    missing: str = missing_flag()
    annotated_boxes: bool = flag(False, "referring expressions: add the annotated boxes to the regions in training")
    max_regions: int | None = flag(
        None, "maximum number of regions per image", unset="the task's", low=1, formerly="regions"
    )
    min_answer_count: int | None = flag(
        None,
        "minimum number of training questions with an answer for it to enter the vocabulary",
        unset="the task's, 9 for VQA",
        low=1,
    )
    workers: int = workers_flag()
    config: str | None = flag(
        None,
        "model configuration, from scratch or of the weights: base, tiny, or a JSON file",
        unset="tiny from scratch, else the configuration next to the weights",
        group="model",
    )
    tokenizer: str | None = flag(
        None,
        "tokenizer of weights that are not a run: a BERT directory, vocab.txt, or a hub name",
        unset="next to the weights, or bert-base-uncased; from scratch a learned one",
    )
    dropout: float | None = flag(
        None, "dropout probability of all layers", unset="the configuration's", low=0, high=0.99
    )
    rare_choices: bool | None = flag(
        None,
        "initial probability of every answer or region in a new head: true: about 1 / their number; false: one half, "
        "as in the reference implementation",
        unset="true for small models",
    )
    accumulate: int = flag(1, "gradient accumulation steps", low=1, group="optimisation")
    optimizer: str = flag(
        "adamw", "optimizer: torch's fused AdamW, or FusedAdam or FusedLAMB of NVIDIA apex", choices=tuple(OPTIMIZERS)
    )
    bias_correction: bool | None = flag(
        None,
        "bias correction of the optimizer's moments; false: none, as in the reference implementation",
        unset="true for small models",
    )
    contrastive: float = flag(
        1.0, "retrieval with a contrastive head: weight of its contrastive loss between the examples of a batch", low=0
    )
    bert_lr_scale: float = flag(
        1.0, "learning-rate factor of the weights of the text stream that a BERT has, 0 to freeze them", low=0
    )
    warmup: float = flag(0.1, "fraction of the steps with learning-rate warm-up", low=0, high=1)
    weight_decay: float = flag(0.01, "weight decay of all parameters except biases and LayerNorm", low=0)
    clip: float = flag(0.0, "maximum gradient norm, 0 for no clipping, as in the reference implementation", low=0)
    precision: str = precision_flag("speed and memory")
    tf32: bool = flag(False, "TF32 for float32 matrix products on a GPU")
    compile: bool = flag(False, "torch.compile for the two streams")
    activation_checkpointing: bool = flag(False, "recompute activations in the backward pass, to save memory")
    device: str = device_flag()
    log_every: int = flag(20, "steps between two log lines", low=1, group="run")
    log_to: str | None = flag(
        TENSORBOARD, "comma-separated experiment trackers: tensorboard, wandb, trackio, mlflow; none for none"
    )
    save_minutes: float = flag(10.0, "maximum minutes between two checkpoints, 0 for no limit", low=0)
    seed: int = flag(0, "random seed of new weights, data order and dropout")
    resume: bool = flag(False, "resume from the newest checkpoint of the run, if any")


@dataclass(kw_only=True)
class WeightsFlags:
    """Flags of commands that use trained weights for inference."""

    run: str = flag(
        REQUIRED,
        "run directory of finetune.st, finetune.mt or pretrain.run, published weights, or hf:OWNER/NAME",
        model=True,
        group="model",
    )
    config: str | None = flag(
        None, "JSON file of the model configuration of published weights", unset="next to them, or base"
    )
    tokenizer: str | None = flag(
        None,
        "tokenizer of published weights: a BERT directory, vocab.txt, or a hub name",
        unset="next to them, or bert-base-uncased",
    )
    vqa_answers: str | None = flag(None, "published weights: VQA's answers in label order", unset="from the data")
    gqa_answers: str | None = flag(None, "published weights: GQA's answers in label order", unset="from the data")
    data: str | None = flag(None, "data folder", unset="the run's", group="data")
    precision: str = precision_flag("speed and memory")
    device: str = device_flag()

    @property
    def of_weights(self) -> dict:
        """These flags alone, to pass them to another command."""
        return {one.name: getattr(self, one.name) for one in fields(WeightsFlags)}


@dataclass(kw_only=True)
class ModelFlags(WeightsFlags):
    """Flags of commands that predict for image files."""

    region_shards: str | None = flag(
        None,
        "region shards whose detector is applied to image files",
        unset="the run's detector, or that of --data",
        formerly="regions",
    )

    @property
    def of_model(self) -> dict:
        """These flags alone, to pass them to another class."""
        return {one.name: getattr(self, one.name) for one in fields(ModelFlags)}


def answer_files(config) -> dict[str, str | None]:
    """Answer head -> value of its answer-file flag."""
    return {"vqa": config.vqa_answers, "gqa": config.gqa_answers}


def check_answer_files(config, tasks: Iterable[Task]) -> None:
    """Raises UserError for an answer file whose head none of the tasks uses."""
    heads = {task.head.name for task in tasks}
    for head, file in answer_files(config).items():
        if file and head not in heads:
            raise UserError(f"--{head}_answers {file}: none of the tasks uses this answer vocabulary")


@dataclass(kw_only=True)
class StConfig(FinetuneConfig):
    """Flags of finetune.st."""

    task: str | None = flag(
        None, "task, such as refcoco; an unknown name prints the list", unset="that of --task_file", group="data"
    )
    task_file: str | None = flag(None, "TOML file that describes a task of your own tables", unset="none")
    train_split: str | None = flag(None, "training split", unset="the task's own")
    validation_split: str | None = flag(None, "validation split", unset="the task's own")
    validate_on: int | None = flag(
        None, "maximum number of validation examples, from the start of the split", unset="all", low=1
    )
    answers: str | None = flag(None, "file of the answer vocabulary, in label order", unset="from the annotations")
    init: str | None = flag(
        None,
        "initial weights: a run, weights, a BERT, hf:OWNER/NAME, or scratch",
        unset="runs/mt, or runs/pretrain, or scratch",
        model=True,
        group="model",
    )
    batch_size: int | None = flag(
        None,
        "examples per step, over all ranks",
        unset="the paper's, table 8; half of it, at most 64, for a small model",
        low=1,
        group="optimisation",
    )
    epochs: int | None = flag(None, "number of epochs", unset=f"{EPOCHS}, for a small model {SMALL_EPOCHS}", low=1)
    patience: int = flag(0, "early stopping: epochs without improvement, 0 to disable", low=0)
    lr: float | None = flag(
        None, "peak learning rate", unset=f"the paper's, table 8; times {SMALL_LR} for a small model", above=0
    )
    out: str | None = flag(None, "run directory", unset="runs/st-TASK", written=True, group="run")


@dataclass(kw_only=True)
class MtConfig(FinetuneConfig):
    """Flags of finetune.mt."""

    tasks: str = tasks_flag("data")
    task_file: str | None = task_file_flag()
    vqa_answers: str | None = flag(
        None, "file of the answers of VQA and VGQA, in label order", unset="from the annotations"
    )
    gqa_answers: str | None = flag(None, "file of GQA's answers, in label order", unset="from the annotations")
    validate_on: int | None = flag(
        None, "maximum number of validation examples per task, from the start of the split", unset="all", low=1
    )
    init: str | None = flag(
        None,
        "initial weights: a run, weights, a BERT, hf:OWNER/NAME, or scratch",
        unset="runs/pretrain, or scratch",
        model=True,
        group="model",
    )
    task_token: str = flag("dataset", "task tokens: one per data set, one per head, or none", choices=TASK_TOKEN_KINDS)
    groups: str | None = flag(
        None,
        "train sets of tasks in a run each: auto for those that the affinities of --together propose, or sets such as "
        "'g1,g2;g3;g4'",
        unset="all tasks in one run",
        group="sets of tasks",
    )
    together: str = flag("runs/mt", "with --groups: run of all tasks together, with which the sets are compared")
    regime: str = flag(
        "dsg", "task scheduling strategy; dsg: dynamic stop-and-go", choices=regime_names(), group="schedule"
    )
    gap: int = flag(4, "Δ: iterations between the task steps of a paused task", low=1)
    first_phase: float = flag(
        0.25, "fraction of the iterations in which a curriculum trains its first group alone", above=0, high=1
    )
    iterations: int | None = flag(None, "number of iterations", unset="--epochs of the longest task", low=1)
    epochs: int = flag(MT_EPOCHS, "number of epochs of the longest task", low=1)
    max_batch: int | None = flag(
        None, "maximum batch size of every task, over all ranks", unset="no limit", low=1, group="optimisation"
    )
    lr_scale: float | None = flag(
        None,
        "factor on all tasks' learning rates",
        unset=f"1, for a small model {SMALL_LR}",
        above=0,
    )
    balance: str = flag(
        STEPS,
        "combination of an iteration's tasks; steps: an optimizer step per task, as in the paper; others: one for all, "
        "with weights of the losses (sum, uncertainty, dwa, famo) or of the gradients",
        choices=balance_names(),
        formerly="one_step",
        former_values={True: "sum", False: STEPS},
    )
    balance_dtype: str = flag(
        "float32",
        "dtype in which --track and weights of the gradients keep every task's gradient",
        choices=("float32", "bf16"),
    )
    track: bool = flag(False, "log how similar the gradients of the tasks are during training")
    track_every: int | None = flag(
        None, "iterations between two such records", unset="as many as keep their cost below 3%", low=1
    )
    update_unused: bool | None = flag(
        None,
        "apply momentum and weight decay in every step also to parameters that its task does not use, as the "
        "reference implementation does",
        unset="true for base-sized models",
    )
    out: str = flag("runs/mt", "run directory; with --groups a folder for several", written=True, group="run")
    save_every: int | None = flag(
        None, "iterations between two checkpoints", unset="an epoch of the longest task", low=1
    )


TrainingConfig = StConfig | MtConfig  # flags of either training command


@dataclass(kw_only=True)
class EvaluateConfig(WeightsFlags):
    """Flags of finetune.evaluate."""

    task: str | None = flag(None, "comma-separated tasks or groups", unset="all tasks of the run", group="data")
    split: str | None = flag(
        None,
        "split to evaluate, or tests for the splits whose scores are reported",
        unset="the task's validation split",
    )
    missing: str = missing_flag()
    max_regions: int | None = flag(
        None, "maximum number of regions per image", unset="the task's", low=1, formerly="regions"
    )
    workers: int = workers_flag()
    submission: str | None = flag(
        None,
        "output file for the predictions of one task and split, in the official format",
        unset="not written",
        group="scores",
    )
    scores: str | None = flag(
        None,
        "output file for the scores of one task and split, as JSON",
        unset="RUN/scores/TASK-SPLIT.json; of hf:OWNER/NAME in runs/hub",
    )
    rerank: int | None = flag(
        None,
        "retrieval with a contrastive head: score only this many of the most similar images per caption and captions "
        "per image with the whole model",
        unset="all pairs",
        low=max(RECALL_PLACES),
    )
    batch_size: int = flag(256, "examples per batch", low=1, group="speed and memory")


@dataclass(kw_only=True)
class ExamplesConfig(WeightsFlags):
    """Flags of finetune.examples."""

    compare: str | None = flag(None, "a second run, B, with which --run, A, is compared", unset="none", model=True)
    task: str | None = flag(None, "comma-separated tasks or groups", unset="all tasks of the run, or of both runs")
    split: str | None = flag(None, "split to predict", unset="each task's validation split")
    examples: int = flag(1000, "number of examples that are predicted, the first of the split", low=1)
    count: int = flag(20, "examples per task of each kind: wrong (the most confident ones), correct", low=1)
    attention: bool = flag(True, "write a page of attention maps for every example, in a folder next to the page")
    out: str | None = flag(None, "the page to write", unset="examples.html, or comparison.html", written=True)
    batch_size: int = flag(64, "examples per batch", low=1)


HELD_OUT = ("tests", "validation")


@dataclass
class CleanConfig:
    """Flags of finetune.clean."""

    data: str | None = flag(
        None,
        "data folder with the tasks' official files",
        unset=f"{DEFAULT_WORLD}; none with --known or --test_images",
        group="tasks",
    )
    task_file: str | None = flag(
        None,
        "comma-separated TOML files that describe tasks of your own tables, to be decontaminated with the others",
        unset="none; for --check those of the lists",
    )
    images: str | None = flag(
        None,
        "folder with one folder of images per data set (such as coco), to find near-duplicate images too",
        unset="images are matched by their ids only",
    )
    corpus: str | None = flag(
        None,
        "training data to search for test images: folder or pattern of images, tars, region shards or parquet files",
        unset="the training data of the tasks",
        group="other data",
    )
    known: str | None = flag(None, "comma-separated fingerprint files of test sets", unset="none")
    collection: str | None = flag(
        None,
        "data set whose ids the names of the images of --corpus or --test_images are, such as coco, flickr or genome",
        unset="only names that state their data set are ids",
    )
    held_out: str = flag("tests", "splits of the tasks to search for in --corpus", choices=HELD_OUT)
    mirrored: bool = flag(False, "also search --corpus for mirrored copies, which takes up to twice as long")
    fingerprint: str | None = flag(
        None, "output file for the fingerprint of the known test sets", unset="not written", written=True
    )
    test_images: str | None = flag(
        None, "images of a test set of your own for --fingerprint: folder, or pattern of images or tars", unset="none"
    )
    test_name: str | None = flag(None, "name of the test set of --test_images", unset="required with it")
    out: str | None = flag(
        None,
        "output folder for the lists of removed images",
        unset="DATA/clean, runs/clean with --corpus",
        written=True,
        group="run",
    )
    check: bool = flag(False, "only check whether test images remain in training and validation; write nothing")
    search: str = flag("exact", "search for similar images: numpy, or the package faiss", choices=tuple(SEARCHES))
    processes: int = flag(os.cpu_count() or 1, "number of worker processes", low=1)


@dataclass
class AblateConfig:
    """Flags of finetune.ablate."""

    suite: str = flag(REQUIRED, "ablation", choices=tuple(SUITES))
    seeds: int = flag(3, "runs per row, with seeds from 0", low=1)
    jobs: int = flag(1, "number of parallel runs, which share the machine's cores (1 under torchrun)", low=1)
    share: str = flag("1/1", "part of the runs that this machine trains: K/N for the K-th of N machines")
    data: str = flag(DEFAULT_WORLD, "data folder with the tasks' official files and the regions of their images")
    tasks: str = tasks_flag()
    task_file: str | None = task_file_flag()
    init: str = flag(PRETRAINING, "pretraining run for all rows that do not define their own initial weights")
    out: str = flag("runs/ablate", "folder for the runs; finished runs in it are kept", written=True)
    iterations: int | None = flag(None, "iterations of each run", unset="finetune.mt's", low=1)
    epochs: int | None = flag(None, "epochs of each pretraining run", unset="pretrain.run's", low=1)
    lr_scale: float | None = flag(None, "factor on all tasks' learning rates", unset="finetune.mt's", above=0)
    rows: str | None = flag(None, "semicolon-separated rows of the suite", unset="all")
    lr_scales: str = flag("8,16,32", "factors on the learning rates that --suite interference compares for each method")
    config: str | None = flag(
        None,
        "model configuration of pretraining runs, or of published weights given by --init",
        unset="tiny, or the one next to the weights",
    )
    bert: str | None = flag(
        None,
        "Hugging Face BERT for pretraining runs and for rows without pretraining",
        unset="the one of --init's run",
    )
    clean: str | None = flag(
        None,
        "decontamination: DATA/clean or another output folder of finetune.clean",
        unset="no decontamination",
    )
    precision: str = precision_flag()
    device: str = device_flag()


@dataclass(kw_only=True)
class InterferenceConfig(WeightsFlags):
    """Flags of finetune.interference."""

    tasks: str | None = flag(None, "comma-separated tasks or groups", unset="all tasks of the run", group="data")
    clean: str | None = flag(
        None, "decontamination: DATA/clean or another output folder of finetune.clean", unset="the run's"
    )
    missing: str | None = flag(
        None, "handling of examples whose image has no regions", choices=("stop", "skip"), unset="the run's"
    )
    max_regions: int | None = flag(None, "maximum number of regions per image", unset="the run's", low=1)
    batches: int = flag(8, "batches per task, the sample of the intervals", low=2, group="measurement")
    batch_size: int = flag(32, "examples per batch", low=1)
    look_ahead: int = flag(4, "batches on which a step of every task is tried, 0 for none", low=0)
    step: float = flag(0.001, "length of such a step, as a fraction of the norm of the shared weights", above=0)
    max_sets: int = flag(4, "maximum number of sets of tasks that are proposed for training together", low=1)
    seed: int = flag(0, "random seed of the choice of the batches")


@dataclass
class ConsistencyConfig:
    """Flags of finetune.consistency."""

    run: str = flag(
        REQUIRED, "run trained on VQA: of finetune.mt, or of finetune.st on vqa, or hf:OWNER/NAME", model=True
    )
    grounding: str | None = flag(None, "comma-separated runs trained on referring expressions", unset="--run")
    data: str | None = flag(None, "data folder", unset="the run's")
    questions: str = flag("train,val", "comma-separated splits of VQA, which must have public answers")
    expressions: str = flag("testA,testB", "comma-separated splits of the referring expressions")
    threshold: float = flag(MIN_ACCURACY, "minimum VQA accuracy of a question that counts as answered", above=0, high=1)
    fractional: bool = flag(False, "VQA accuracy instead of 1 or 0 as y(q) of the main score")
    tagger: str = flag(DEFAULT_TAGGER, "part-of-speech tagger: hanta, or an installed spaCy model")
    out: str | None = flag(None, "folder for the numbers and the page", unset="RUN/consistency", written=True)
    missing: str = missing_flag()
    batch_size: int = flag(256, "examples per batch", low=1)
    precision: str = precision_flag()
    device: str = device_flag()
    workers: int = workers_flag()


def is_small(sizes: ModelConfig) -> bool:
    """Whether a model is smaller than BERT base, for which table 8's hyperparameters were chosen."""
    return sizes.hidden_size < BASE_SIZE


def default_epochs(sizes: ModelConfig) -> int:
    """Default number of epochs of single-task training: the paper's, or that of a small model."""
    return SMALL_EPOCHS if is_small(sizes) else EPOCHS


def default_lr_scale(sizes: ModelConfig) -> float:
    """Default factor on table 8's learning rates."""
    return SMALL_LR if is_small(sizes) else 1


def default_update_unused(sizes: ModelConfig) -> bool:
    """Default of --update_unused: whether parameters that a step's task does not use are updated in it too."""
    return not is_small(sizes)


def default_batch_size(task: Task, sizes: ModelConfig) -> int:
    """Default batch size: table 8's; for a small model half of it, at most SMALL_BATCH; for retrieval half of that
    again, because a retrieval example is four image-text pairs."""
    if not is_small(sizes):
        return task.batch_size
    return min(task.batch_size // 2, SMALL_BATCH) // (2 if task.head.ranks_images else 1)


def batch_and_lr(config: StConfig, task: Task, sizes: ModelConfig) -> tuple[int, float, float]:
    """(batch size, peak learning rate, peak learning rate of the new heads) of single-task training."""
    lr = config.lr or task.lr * default_lr_scale(sizes)
    return config.batch_size or default_batch_size(task, sizes), lr, lr / task.lr * HEAD_LR


# Flags that may change when a run is resumed: they do not change what is computed.
FREE_FLAGS = {
    *("resume", "out", "workers", "accumulate", "activation_checkpointing", "compile"),
    *("log_every", "log_to", "save_minutes", "track", "track_every"),
}
