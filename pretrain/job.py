"""Everything that a pretraining run is made of, put together from its flags."""

import contextlib
import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.bert import from_bert, load_bert
from pretrain.checkpoint import newest_checkpoint, restore
from pretrain.collate import Collator, Limits
from pretrain.config import CONFIGS, ModelConfig, read_model_config
from pretrain.heads import PretrainingModel
from pretrain.objective import Objective
from pretrain.optimizer import make_optimizer
from pretrain.pairs import Swaps
from pretrain.settings import FREE_FLAGS, PretrainConfig
from pretrain.sources import Pairs, ValidationBatches, open_pairs
from pretrain.tokenizer import WordPieces, bert_pieces, learn_pieces, load_pieces
from pretrain.validate import most_frequent_word
from shards.dataset import Dataset
from shards.errors import UserError
from shards.files import read_json, write_json

BETAS, EPSILON = (0.9, 0.98), 1e-8


@dataclass
class Job:
    """A run that is ready to go on from `first_step`."""

    config: PretrainConfig
    pairs: Pairs
    collator: Collator
    validation: ValidationBatches
    model: PretrainingModel
    optimizer: torch.optim.Optimizer
    objective: Objective
    frequent_word: int
    device: torch.device
    first_step: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.pairs.training) // self.config.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def autocast(self):
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def prepare(config: PretrainConfig) -> Job:
    """Opens the data, makes or restores the model, and puts the run directory in order."""
    run = Path(config.out)
    newest = newest_checkpoint(run)
    if newest and not config.resume:
        raise UserError(f"{run}: holds a run already; --resume goes on with it, or give another --out")
    device = choose_device(config.device)
    pairs = open_pairs(config.data, config.validation_pairs)
    if newest:
        _check_resume(config, run, pairs)
        pieces = load_pieces(run)
    elif config.bert:
        pieces = bert_pieces(config.bert)
    else:
        texts = (pairs.captions[number] for number in pairs.training.tolist())
        pieces = learn_pieces(texts, config.vocabulary)
    sizes = model_config(config, pairs.shards, pieces)
    torch.manual_seed(config.seed)
    model = PretrainingModel(sizes, sizes.v_feature_size if config.region_target == "features" else None)
    if config.bert and not newest:
        print(f"{len(load_bert(model, config.bert))} weights of the text stream come from {config.bert}")
    model.to(device)

    def scale(name: str) -> float:
        return config.bert_lr_scale if config.bert and from_bert(name) else 1.0

    optimizer = make_optimizer(model, config.lr, BETAS, EPSILON, config.weight_decay, scale)
    objective = Objective(
        mask_id=pieces.mask_id,
        ordinary_ids=pieces.ordinary_ids(),
        region_target=config.region_target,
        overlap=config.overlap if config.overlap <= 1 else None,
        aligned_only=config.aligned_only,
        predict_overlapped=config.predict_overlapped,
    )
    classes = (pairs.shards.num_classes, pairs.shards.classes_per_region) if config.region_target == "classes" else ()
    limits = Limits(config.words, config.regions, sizes.v_feature_size, *classes)

    def collator(numbers) -> Collator:
        return Collator(pairs.captions, Swaps(pairs.captions, numbers), pieces, objective, config.seed, limits)

    job = Job(
        config=config,
        pairs=pairs,
        collator=collator(pairs.training),
        validation=ValidationBatches(pairs, collator(pairs.validation), config.batch_size),
        model=model,
        optimizer=optimizer,
        objective=objective.to(device),
        frequent_word=most_frequent_word(pairs.captions, pairs.training, pieces, config.words),
        device=device,
        first_step=restore(newest, model, optimizer)["step"] if newest else 0,
    )
    if not newest:
        _begin_run(run, config, pairs, sizes, pieces)
    _describe(job, len(pieces))
    return job


def choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this torch sees no GPU; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def model_config(config: PretrainConfig, shards: Dataset, pieces: WordPieces) -> ModelConfig:
    """The model's sizes: a named configuration takes vocabulary and widths from the data, a file must fit them."""
    sizes = read_model_config(config.config)
    fitting = {"v_feature_size": shards.feature_size}
    if config.region_target == "classes":
        if not shards.num_classes:
            raise UserError(
                f"{config.data}: its regions have no class distribution; --region_target features predicts the "
                "features themselves, --region_target none leaves regions out"
            )
        fitting["v_target_size"] = shards.num_classes
    if config.config in CONFIGS:
        sizes = sizes.replace(vocab_size=len(pieces), **fitting)
    for name, value in fitting.items():
        if getattr(sizes, name) != value:
            raise UserError(f"{config.config}: {name} is {getattr(sizes, name)} and that of {config.data} is {value}")
    if sizes.vocab_size < len(pieces):
        raise UserError(f"{config.config}: vocab_size is {sizes.vocab_size} and the tokenizer has {len(pieces)}")
    if sizes.max_position_embeddings < config.words:
        raise UserError(f"--words {config.words}: the model has {sizes.max_position_embeddings} positions")
    return sizes


def _facts(pairs: Pairs) -> dict:
    shards = pairs.shards
    return {
        "samples": len(shards),
        "feature_size": shards.feature_size,
        "num_classes": shards.num_classes,
        "detector": shards.detector,
        "shards": {Path(shard.path).name: shard.sha256 for shard in shards.shards},
    }


def _check_resume(config: PretrainConfig, run: Path, pairs: Pairs) -> None:
    """Refuses to go on with flags or data that would make it another run."""
    stored = read_json(run / "config.json")
    free = FREE_FLAGS - ({"workers"} if pairs.streamed else set())  # a stream is divided among its readers
    for name, value in dataclasses.asdict(config).items():
        if name not in free and stored["flags"].get(name, value) != value:
            raise UserError(
                f"--{name} {value}: the run in {run} has {stored['flags'][name]}; "
                "leave the flag out, or begin another run with another --out"
            )
    if stored["data"] != _facts(pairs):
        raise UserError(f"{config.data}: is not the data set that the run in {run} was begun with")


def _begin_run(run: Path, config: PretrainConfig, pairs: Pairs, sizes: ModelConfig, pieces: WordPieces) -> None:
    """A run directory with its configuration; what an earlier run without a checkpoint left there is removed."""
    for path in (run / "checkpoints", run / "metrics.jsonl", run / "result.json", *run.glob("events.out.tfevents.*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    pieces.save(run)
    flags = dataclasses.asdict(config)
    write_json(run / "config.json", {"flags": flags, "model": sizes.to_dict(), "data": _facts(pairs)})


def _describe(job: Job, pieces: int) -> None:
    pairs, total = job.pairs, len(job.pairs.shards)
    left_out = total - len(pairs.training) - len(pairs.validation)
    print(
        f"{job.config.data}: {len(pairs.training)} pairs to train on, {len(pairs.validation)} held out"
        + (f", {left_out} without a caption or with a held-out one left out" if left_out else "")
    )
    parameters = sum(parameter.numel() for parameter in job.model.parameters())
    print(f"{job.config.config} model, {parameters / 1e6:.1f} M parameters, {pieces} word pieces, on {job.device}")
    if job.first_step:
        print(f"going on after step {job.first_step}")
