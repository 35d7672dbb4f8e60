"""Builds the components of a pretraining run from its flags."""

import dataclasses
import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pretrain.config import FREE_FLAGS, PretrainConfig, loss_terms
from pretrain.data.batch_schedule import BatchSchedule, Stage
from pretrain.data.caption_pairs import MisalignedCaptions
from pretrain.data.collate import Collator, Limits
from pretrain.data.dataloader import WorkerStatus
from pretrain.data.pair_batches import Pairs, ValidationBatches, open_pairs
from pretrain.engine.checkpoint import best_checkpoint
from pretrain.engine.distributed import DIFFERENT_DATA, on_every_rank, on_first, same_everywhere
from pretrain.engine.optimizer import make_optimizer
from pretrain.engine.run_dir import CONFIG, DETECTOR, check_flags, clear_run, read_config, stored_form
from pretrain.engine.run_metadata import run_metadata
from pretrain.engine.step import Engine, make_engine
from pretrain.engine.trainer import Trainer, restore_engine
from pretrain.models.execution import set_execution
from pretrain.models.layers import narrow_hidden_states
from pretrain.models.model_config import CONFIGS, ModelConfig, read_model_config
from pretrain.models.precision import Precision
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.objective.pretraining_loss import Objective
from pretrain.objective.pretraining_pass import PretrainingPass
from pretrain.objective.pretraining_task import PretrainingTask
from pretrain.objective.validation import most_frequent_word
from pretrain.pretrained.hf_bert import load_bert, may_be_from_bert
from pretrain.tokenizer.tokenizer import WordPieceTokenizer, learn_tokenizer, load_bert_tokenizer, load_tokenizer
from shards.common.counted import counted
from shards.common.dist_info import Ranks
from shards.common.errors import UserError
from shards.common.excluded_ids import read_excluded
from shards.common.files import write_json
from shards.detectors import keep_detector
from shards.storage.dataset import Dataset, fingerprint
from shards.world import DEFAULT_WORLD, complete_world, is_world, pairs_folder

BETAS, EPSILON = (0.9, 0.98), 1e-8
FROM_BERT = "from_bert"  # key of config.json: the names of the parameters initialised from --bert


def build_pretraining(config: PretrainConfig, ranks: Ranks, device: torch.device, newest: Path | None) -> Trainer:
    """Opens the data, builds or restores the model, and prepares the run directory.

    Args:
        newest: the checkpoint to resume from; None for a new run.
    """
    run = Path(config.out)
    pairs = _open_pairs(config, ranks)
    if newest:
        _check_resume(config, run, pairs)
    tokenizer = _tokenizer(config, ranks, pairs, run if newest else None)
    sizes = model_config(config, pairs.shards, tokenizer)
    pretraining_pass, from_bert = _pretraining_pass(config, ranks, device, sizes, tokenizer, newest)
    engine = _engine(config, ranks, pretraining_pass, from_bert)
    metadata = restore_engine(engine, newest) if newest else {}
    task = _training_task(config, ranks, device, pairs, tokenizer, pretraining_pass, sizes, metadata)
    if not newest:
        on_first(ranks, lambda: _begin_run(run, config, pairs, sizes, tokenizer, device, from_bert))
    _describe(config, task, engine, len(tokenizer))
    return Trainer(config, engine, task, metadata)


def _training_task(
    config: PretrainConfig,
    ranks: Ranks,
    device: torch.device,
    pairs: Pairs,
    tokenizer: WordPieceTokenizer,
    pretraining_pass: PretrainingPass,
    sizes: ModelConfig,
    metadata: dict,
) -> PretrainingTask:
    """The batches, schedule and validation of a run. metadata: checkpoint.json of the run to resume, or {}."""
    limits = Limits(config.max_tokens, config.max_regions, sizes.v_feature_size)
    if config.region_target == "classes":
        shards = pairs.shards
        limits = dataclasses.replace(limits, num_classes=shards.num_classes, per_region=shards.classes_per_region)
    make_collator = partial(
        Collator,
        captions=pairs.captions,
        tokenizer=tokenizer,
        objective=pretraining_pass.objective.to("cpu"),
        seed=config.seed,
        limits=limits,
        skip_bad=config.on_bad_shard == "skip",
    )
    schedule = BatchSchedule(
        samples=len(pairs.training),
        batch_size=config.batch_size,
        epochs=config.epochs,
        steps=config.steps,
        first_step=metadata.get("step", 0),
        ranks=ranks,
        workers=config.workers,
        accumulate=config.accumulate,
        stages=tuple(map(Stage.from_dict, metadata.get("stages", ()))),
    )
    hard = config.negatives == "hard"
    batch_per_rank = -(-config.batch_size // (ranks.count * config.accumulate))
    return PretrainingTask(
        schedule=schedule,
        peak_lr=config.lr,
        save_every=config.save_every,
        pretraining_pass=pretraining_pass,
        pairs=pairs,
        collator=make_collator(
            negatives=None if hard else MisalignedCaptions(pairs.captions, pairs.trained),
            draw_captions=pairs.one_caption,
        ),
        worker_status=WorkerStatus(config.workers, pairs.shards),
        validation=ValidationBatches(
            pairs, make_collator(negatives=MisalignedCaptions(pairs.captions, pairs.validation)), batch_per_rank, ranks
        ),
        frequent_word=on_first(
            ranks, lambda: most_frequent_word(pairs.captions, pairs.trained, tokenizer, config.max_tokens)
        ),
        device=device,
    )


def _open_pairs(config: PretrainConfig, ranks: Ranks) -> Pairs:
    """Opens the pairs: streams on the first rank only, local shards on every rank, with a comparison."""
    excluded = read_excluded(config.exclude) if config.exclude else frozenset()
    opened = partial(open_pairs, config.data, config.validation_pairs, config.captions_per_image, excluded)
    pairs = on_first(ranks, opened)
    if not pairs.streamed:
        pairs = on_every_rank(ranks, lambda: pairs if ranks.first else opened())
        same_everywhere(ranks, lambda: _content(pairs), DIFFERENT_DATA.format(data=config.data))
    if excluded:
        found = f"{counted(pairs.excluded, 'image')} skipped, of {len(excluded)} in the list"
        hint = "" if pairs.excluded else "; if it is a list for this data, its ids have another form than the data's"
        ranks.log(f"--exclude {config.exclude}: {found}{hint}")
    readers = ranks.count * max(config.workers, 1)
    if pairs.streamed and len(pairs.shards.shards) < readers:
        ranks.log(
            f"{counted(len(pairs.shards.shards), 'shard')} for {counted(readers, 'reader')} (ranks x workers): "
            "several readers will open the same shard; use more, smaller shards or fewer --workers to reduce traffic"
        )
    return pairs


def _tokenizer(config: PretrainConfig, ranks: Ranks, pairs: Pairs, run: Path | None) -> WordPieceTokenizer:
    """The tokenizer of a resumed run, of the given BERT, or one learned from the captions."""
    if run:
        return load_tokenizer(run)
    if config.bert:
        return load_bert_tokenizer(config.bert)
    texts = (pairs.captions[number] for number in pairs.trained.tolist())
    return on_first(ranks, lambda: learn_tokenizer(texts, config.vocabulary))


def _pretraining_pass(
    config: PretrainConfig,
    ranks: Ranks,
    device: torch.device,
    sizes: ModelConfig,
    tokenizer: WordPieceTokenizer,
    newest: Path | None,
) -> tuple[PretrainingPass, list[str]]:
    """Builds the model, with its loss, on the device; returns also the names of parameters initialised from BERT."""
    torch.manual_seed(config.seed)
    terms = loss_terms(config)
    extra = {term.name: layer for term in terms if (layer := term.layer(sizes)) is not None}
    model = PretrainingModel(sizes, sizes.v_feature_size if config.region_target == "features" else None, extra)
    if config.region_target == "none":
        model.regions.requires_grad_(False)
    from_bert = _initialise_from_bert(model, config, ranks, newest) if config.bert else []
    if not config.bert_lr_scale:
        for name in from_bert:
            model.get_parameter(name).requires_grad_(False)
    precision = Precision(config.precision, device)
    model.to(device, precision.weight_dtype)
    set_execution(model.encoder, config)
    if config.residual == "precision":
        narrow_hidden_states(model)
    objective = Objective(
        mask_id=tokenizer.mask_id,
        ordinary_ids=tokenizer.ordinary_ids().to(device),
        overlap=config.overlap if config.overlap <= 1 else None,
        aligned_only=config.aligned_only,
        predict_overlapped=config.predict_overlapped,
        terms=terms,
    )
    return PretrainingPass(model, objective, precision), from_bert


def _initialise_from_bert(
    model: PretrainingModel, config: PretrainConfig, ranks: Ranks, newest: Path | None
) -> list[str]:
    """Loads --bert into a new model; returns the names of its parameters, also for a run that is resumed."""
    if newest:
        stored = read_config(config.out).get(FROM_BERT)  # missing in runs of older versions
        return stored or [name for name, _ in model.named_parameters() if may_be_from_bert(name)]
    from_bert, layers = on_first(ranks, lambda: load_bert(model, config.bert))  # make_engine broadcasts the weights
    own = model.encoder.config.num_hidden_layers
    part = f", from the first {own} of its {layers} layers" if layers > own else ""
    ranks.log(f"{counted(len(from_bert), 'parameter')} of the text stream initialised from {config.bert}{part}")
    return from_bert


def _engine(config: PretrainConfig, ranks: Ranks, pretraining_pass: PretrainingPass, from_bert: list[str]) -> Engine:
    """The optimizer and the training step."""
    names = set(from_bert)

    def scale(name: str) -> float:
        return config.bert_lr_scale if name in names else 1.0

    optimizer = make_optimizer(
        pretraining_pass.model,
        lr=config.lr,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=config.weight_decay,
        scale=scale,
        kind=config.optimizer,
    )
    graph = (-(-config.batch_size // ranks.count), config.max_tokens) if config.cuda_graph else None
    return make_engine(pretraining_pass, optimizer, ranks, config.clip, graph=graph)


def model_config(config: PretrainConfig, shards: Dataset, tokenizer: WordPieceTokenizer) -> ModelConfig:
    """The model configuration.

    A named configuration gets vocabulary and feature size from the data; those of a file must match the data.
    """
    sizes = read_model_config(config.config)
    if config.dropout is not None:
        sizes = sizes.with_dropout(config.dropout)
    fitting = {"v_feature_size": shards.feature_size}
    if config.region_target == "classes":
        if not shards.num_classes:
            raise UserError(
                f"{config.data}: regions have no class distribution; use --region_target features to predict region "
                "features, or --region_target none to predict no regions"
            )
        fitting["v_target_size"] = shards.num_classes
    if config.config in CONFIGS:
        sizes = sizes.replace(vocab_size=len(tokenizer), **fitting)
    if config.contrastive and not sizes.contrastive_size:
        sizes = sizes.replace(contrastive_size=sizes.bi_hidden_size)
    for name, value in fitting.items():
        if getattr(sizes, name) != value:
            raise UserError(f"{config.config}: {name} is {getattr(sizes, name)}, but {value} in {config.data}")
    if sizes.vocab_size < len(tokenizer) or (config.bert and sizes.vocab_size != len(tokenizer)):
        raise UserError(
            f"{config.config}: vocab_size is {sizes.vocab_size}, but that of the tokenizer {len(tokenizer)}"
        )
    if sizes.max_position_embeddings < config.max_tokens:
        limit = sizes.max_position_embeddings
        raise UserError(f"--max_tokens {config.max_tokens}: exceeds max_position_embeddings, {limit}")
    return sizes


def _data_metadata(pairs: Pairs) -> dict:
    """What config.json stores of the data, to refuse a resume with other data."""
    shards = pairs.shards
    content = {} if pairs.streamed else {"content": list(_content(pairs))}
    return content | {
        "samples": len(shards),
        "feature_size": shards.feature_size,
        "num_classes": shards.num_classes,
        "detector": shards.detector,
        "shards": {Path(shard.path).name: shard.sha256 for shard in shards.shards},
    }


def _content(pairs: Pairs) -> tuple[str, str]:
    """Fingerprints of the shards and captions of local pairs, which must be equal on all ranks."""
    texts = pairs.captions.texts
    captions = hashlib.sha256(pairs.captions.begins.tobytes() + texts.ends.tobytes())
    captions.update(np.ascontiguousarray(texts.data))
    return fingerprint(pairs.shards), captions.hexdigest()


def _check_resume(config: PretrainConfig, run: Path, pairs: Pairs) -> None:
    check_flags(config, run, FREE_FLAGS)
    stored, present = read_config(run).get("data") or {}, _data_metadata(pairs)
    if "content" not in stored:  # runs of earlier versions
        present.pop("content", None)
    if stored != present:
        raise UserError(f"{config.data}: differs from the data set of the run in {run}; resume with the same data")


def _begin_run(
    run: Path,
    config: PretrainConfig,
    pairs: Pairs,
    sizes: ModelConfig,
    tokenizer: WordPieceTokenizer,
    device: torch.device,
    from_bert: list[str],
) -> None:
    """Creates the run directory with its configuration."""
    clear_run(run)
    tokenizer.save(run)
    if not pairs.streamed:
        keep_detector(pairs.shards.folder, run / DETECTOR)
    flags = stored_form(dataclasses.asdict(config))
    contents = {"flags": flags, "model": sizes.to_dict(), "data": _data_metadata(pairs), "made": run_metadata(device)}
    if from_bert:
        contents[FROM_BERT] = from_bert
    write_json(run / CONFIG, contents)


def _describe(config: PretrainConfig, task: PretrainingTask, engine: Engine, vocabulary_size: int) -> None:
    pairs, schedule, ranks = task.pairs, task.schedule, engine.ranks
    log = ranks.log
    images = [len(np.unique(pairs.captions.images_of(side))) for side in (pairs.trained, pairs.validation)]
    skipped = len(pairs.shards) - sum(images)
    trained, held_out = f"{len(pairs.training)} training pairs", f"{len(pairs.validation)} validation pairs"
    if pairs.shards.has_several_captions:
        trained += f" per epoch ({counted(len(pairs.trained), 'caption')} of {counted(images[0], 'image')})"
        held_out += f" ({counted(images[1], 'image')})"
    if skipped:
        held_out += f", {counted(skipped, 'image')} skipped (no caption, a caption of a validation image, or excluded)"
    log(f"{config.data}: {trained}, {held_out}")
    if config.validation_pairs and not len(pairs.validation):
        log(
            "no validation: it needs at least 20 pairs that share neither image nor caption"
            f"{' in the first shard' if pairs.streamed else ''}; the newest checkpoint is used as the best"
        )
    parameters = sum(parameter.numel() for parameter in engine.model.parameters())
    log(
        f"{config.config} model, {parameters / 1e6:.1f} M parameters, "
        f"vocabulary size {vocabulary_size}, on {task.device}"
    )
    if ranks.count > 1 or schedule.accumulate > 1:
        accumulated = counted(schedule.accumulate, "accumulation step")
        log(f"{schedule.batch_size} pairs per step: {counted(ranks.count, 'rank')} x {accumulated}")
    if schedule.first_step:
        log(f"resuming after step {schedule.first_step}")


def region_shards(data: str | None) -> str:
    """The region shards to train on; without --data, those of the miniature world, which is created if missing."""
    if data is None:
        complete_world(DEFAULT_WORLD, tasks=False)
    data = data or DEFAULT_WORLD
    return str(pairs_folder(data)) if is_world(data) else data


def result_of(trainer: Trainer, scores: dict, seconds: float) -> dict:
    """The content of result.json of a finished run.

    Args:
        trainer: what `build_pretraining` returned.
        scores: the last validation scores.
        seconds: wall time of the process that finished it.
    """
    config, schedule = trainer.config, trainer.task.schedule
    return {
        "steps": schedule.total_steps,
        "epochs": config.epochs or round(schedule.total_steps / schedule.steps_per_epoch, 3),
        "pairs": len(trainer.task.pairs.training),
        "validation": scores,
        "skipped_steps": trainer.engine.skipped.count,
        "bad_samples": trainer.bad_samples,
        "best_checkpoint": best_checkpoint(config.out).name,
        "seconds": round(seconds, 1),
    }
