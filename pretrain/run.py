"""python -m pretrain.run: pretraining on image-caption pairs, from region shards to a run directory."""

import dataclasses
import os
import shutil
import time
from pathlib import Path

import torch

from pretrain import settings
from pretrain.batches import Limits, PairBatches
from pretrain.bert import from_bert, load_bert
from pretrain.checkpoint import best_checkpoint, newest_checkpoint, restore
from pretrain.config import CONFIGS, ModelConfig, read_model_config
from pretrain.heads import PretrainingModel
from pretrain.logs import RunLog, duration
from pretrain.objective import Objective
from pretrain.optimizer import make_optimizer
from pretrain.pairs import Captions, split_pairs
from pretrain.settings import PretrainConfig
from pretrain.tokenizer import WordPieces, bert_pieces, learn_pieces, load_pieces
from pretrain.trainer import Job, describe_scores, train
from pretrain.validate import most_frequent_word
from shards import world
from shards.dataset import Dataset, open_dataset, read_captions
from shards.errors import UserError
from shards.files import read_json, write_json
from shards.flags import command
from shards.reader import RegionReader

BETAS, EPSILON = (0.9, 0.98), 1e-8


def stored_flags(flags: dict) -> dict:
    """The flags of the run that --resume goes on with, so that they need not be typed again."""
    path = Path(flags.get("out", PretrainConfig.out)) / "config.json"
    if str(flags.get("resume", "")).lower() != "true" or not path.exists():
        return {}
    return read_json(path).get("flags", {})


def model_config(config: PretrainConfig, dataset: Dataset, pieces: WordPieces) -> ModelConfig:
    """The model's sizes: a named configuration takes vocabulary and widths from the data, a file must fit them."""
    sizes = read_model_config(config.config)
    fitting = {"v_feature_size": dataset.feature_size}
    if config.region_target == "classes":
        fitting["v_target_size"] = dataset.num_classes
    if config.config in CONFIGS:
        return sizes.replace(vocab_size=len(pieces), **fitting)
    for name, value in fitting.items():
        if getattr(sizes, name) != value:
            raise UserError(f"{config.config}: {name} is {getattr(sizes, name)} and that of {config.data} is {value}")
    if sizes.vocab_size < len(pieces):
        raise UserError(f"{config.config}: vocab_size is {sizes.vocab_size} and the tokenizer has {len(pieces)}")
    return sizes


def check_data(config: PretrainConfig, dataset: Dataset) -> None:
    if not dataset.captions:
        raise UserError(f"{config.data}: has no captions; pretraining needs image-caption pairs (KEY.txt)")
    if config.region_target == "classes" and not dataset.num_classes:
        raise UserError(
            f"{config.data}: its regions have no class distribution; --region_target features predicts the "
            "features themselves, --region_target none leaves regions out"
        )


def choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this torch sees no GPU; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def prepare(config: PretrainConfig, log=print) -> Job:
    """Opens the data, makes or restores the model, and puts the run directory in order."""
    run = Path(config.out)
    newest = newest_checkpoint(run)
    if newest and not config.resume:
        raise UserError(f"{run}: holds a run already; --resume goes on with it, or give another --out")
    device = choose_device(config.device)
    dataset = open_dataset(config.data)
    check_data(config, dataset)
    reader = RegionReader(dataset)
    captions = Captions(read_captions(dataset))
    training, validation = split_pairs(captions, config.validation_pairs)
    pieces = _pieces(config, run, captions, training, newest is not None)
    sizes = model_config(config, dataset, pieces)
    if sizes.max_position_embeddings < config.words:
        raise UserError(f"--words {config.words}: the model has {sizes.max_position_embeddings} positions")
    torch.manual_seed(config.seed)
    outputs = sizes.v_feature_size if config.region_target == "features" else sizes.v_target_size
    model = PretrainingModel(sizes, outputs)
    if config.bert and not newest:
        log(f"{len(load_bert(model, config.bert))} weights of the text stream come from {config.bert}")
    model.to(device)

    def scale(name: str) -> float:
        return config.bert_lr_scale if config.bert and from_bert(name) else 1.0

    optimizer = make_optimizer(model, config.lr, BETAS, EPSILON, config.weight_decay, scale)
    first_step = restore(newest, model, optimizer)["step"] if newest else 0
    objective = Objective(
        mask_id=pieces.mask_id,
        ordinary_ids=pieces.ordinary_ids(),
        region_target=config.region_target,
        overlap=config.overlap if config.overlap <= 1 else None,
        predict_overlapped=config.predict_overlapped,
    )
    limits = Limits(config.words, config.regions, sizes.v_feature_size)

    def batches(numbers):
        return PairBatches(reader, captions, numbers, pieces, objective, config.seed, limits)

    job = Job(
        config=config,
        model=model,
        optimizer=optimizer,
        objective=objective,
        batches=batches(training),
        validation_batches=batches(validation),
        counts=dataset.counts,
        training=training,
        validation=validation,
        frequent_word=most_frequent_word(captions, training, pieces, config.words),
        device=device,
        first_step=first_step,
    )
    _write_config(config, run, sizes, dataset, pieces, newest is not None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log(
        f"{config.data}: {len(training)} pairs to train on, {len(validation)} held out"
        + (f" ({len(dataset) - len(training) - len(validation)} images without caption)" if dataset.captions < len(dataset) else "")
    )
    log(f"{config.config} model, {parameters / 1e6:.1f} M parameters, {len(pieces)} word pieces, on {device}")
    if first_step:
        log(f"going on from {newest}")
    return job


def _pieces(config: PretrainConfig, run: Path, captions: Captions, training, resumed: bool) -> WordPieces:
    if resumed:
        return load_pieces(run)
    if config.bert:
        return bert_pieces(config.bert)
    return learn_pieces((captions[number] for number in training.tolist()), config.vocabulary)


def _write_config(config, run: Path, sizes: ModelConfig, dataset: Dataset, pieces: WordPieces, resumed: bool) -> None:
    facts = {
        "samples": len(dataset),
        "feature_size": dataset.feature_size,
        "num_classes": dataset.num_classes,
        "detector": dataset.detector,
        "shards": {Path(shard.path).name: shard.sha256 for shard in dataset.shards},
    }
    flags = dataclasses.asdict(config)
    if resumed:
        stored = read_json(run / "config.json")
        for name, value in flags.items():
            if name not in settings.FREE_FLAGS and stored["flags"].get(name, value) != value:
                raise UserError(
                    f"--{name} {value}: the run in {run} has {stored['flags'][name]}; "
                    "leave the flag out, or begin another run with another --out"
                )
        if stored["data"] != facts:
            raise UserError(f"{config.data}: is not the data set that the run in {run} was begun with")
        return
    if run.exists():
        for name in ("checkpoints", "metrics.jsonl", "result.json"):
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for path in run.glob("events.out.tfevents.*"):
            path.unlink()
    run.mkdir(parents=True, exist_ok=True)
    pieces.save(run)
    write_json(run / "config.json", {"flags": flags, "model": sizes.to_dict(), "data": facts})


def run(config: PretrainConfig) -> int:
    """Pretrains; the exit status is 0, or 128 + the signal that stopped the run."""
    began = time.perf_counter()
    if config.data is None:
        config = dataclasses.replace(config, data=str(world.pairs(settings.DEFAULT_DATA)))
    config = config.settled()
    job = prepare(config)
    out = Path(config.out)
    if job.first_step >= job.total_steps:
        result = read_json(out / "result.json") if (out / "result.json").exists() else {}
        scores = result.get("validation") or {}
        print(f"{out}: finished before, at step {job.total_steps}")
    else:
        log = RunLog(out, job.first_step)
        try:
            stopped, scores = train(job, log)
        finally:
            log.close()
        if stopped is not None:
            print(f"stopped at step {newest_checkpoint(out).name[5:].lstrip('0')}; --resume goes on: {out}")
            return 128 + stopped
        result = {
            "steps": job.total_steps,
            "epochs": config.epochs,
            "pairs": len(job.training),
            "validation": scores,
            "best_checkpoint": best_checkpoint(out).name,
            "seconds": round(time.perf_counter() - began, 1),
        }
        write_json(out / "result.json", result)
        print(f"done in {duration(time.perf_counter() - began)}")
    if scores:
        print(f"held out: {describe_scores(scores)}")
    print(f"the run is in {out}{os.sep}; curves: tensorboard --logdir {out.parent}")
    return 0


if __name__ == "__main__":
    command(
        PretrainConfig,
        run,
        "pretrain.run",
        "Pretraining of the two-stream model on image-caption pairs.",
        inherit=stored_flags,
    )
