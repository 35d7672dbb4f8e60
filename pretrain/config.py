"""The flags of pretraining and the default hyperparameters of each model configuration."""

import os
from dataclasses import dataclass, replace

from pretrain.engine.experiment_trackers import TENSORBOARD
from pretrain.engine.optimizer import OPTIMIZERS
from pretrain.objective.alignment_term import AlignmentTerm
from pretrain.objective.contrastive_term import ContrastiveTerm
from pretrain.objective.loss_term import LossTerm
from pretrain.objective.region_term import FeatureTerm, RegionTerm
from pretrain.objective.token_term import TokenTerm
from shards.common.cli import REQUIRED, flag
from shards.common.errors import UserError
from shards.world import DEFAULT_WORLD

FORMS = ("run", "published")
CAPTIONS_PER_IMAGE = ("all", "one")
REGION_TARGETS = {"classes": RegionTerm(), "features": FeatureTerm(), "none": None}
NEGATIVES = ("random", "hard")
RESIDUALS = ("float32", "precision")
PRECISIONS = ("float32", "bf16", "fp16", "float64")
WORKERS = min(4, max(1, (os.cpu_count() or 1) // 2))  # default number of data worker processes

# Defaults that depend on --config. Those of base are the hyperparameters of the paper.
BATCH_SIZE = {"base": 512, "tiny": 32}
EPOCHS = {"base": 10, "tiny": 20}
LR = {"base": 1e-4, "tiny": 1e-3}
CLIP = {"base": 0.0, "tiny": 1.0}


def _by_size(values: dict) -> str:
    return ", ".join(f"{value:g} ({name})" for name, value in values.items())


@dataclass
class PretrainConfig:
    """Flags of pretrain.run. None: the default of the model configuration (see above)."""

    data: str | None = flag(
        None,
        "region shards with captions: a folder or a glob pattern",
        unset=f"{DEFAULT_WORLD}, created if missing",
        group="data",
    )
    exclude: str | None = flag(
        None,
        "file with the ids of images to exclude, one per line, or an output folder of finetune.clean --corpus",
        unset="none",
    )
    captions_per_image: str = flag(
        "all", "captions per image and epoch: all, or one sampled in each epoch", choices=CAPTIONS_PER_IMAGE
    )
    max_tokens: int = flag(
        36, "maximum number of tokens per caption, including [CLS] and [SEP]", low=3, formerly="words"
    )
    max_regions: int = flag(
        36, "maximum number of regions per image, in the order of their scores", low=1, formerly="regions"
    )
    validation_pairs: int = flag(2000, "validation pairs, split by caption text (at most a tenth), 0 for none", low=0)
    workers: int = flag(WORKERS, "data loading processes, 0 to load in the main process", low=0)
    on_bad_shard: str = flag("stop", "action for samples that cannot be read", choices=("stop", "skip"))
    config: str = flag("tiny", "model configuration: base (that of the paper), tiny, or a JSON file", group="model")
    bert: str | None = flag(
        None,
        "Hugging Face BERT (directory or hub name) for the tokenizer and the text stream",
        unset="none: learned vocabulary, random weights",
    )
    vocabulary: int = flag(8000, "size of the WordPiece vocabulary learned from the captions without --bert", low=100)
    dropout: float | None = flag(
        None, "probability of all dropout layers", unset="that of the configuration", low=0, high=0.99
    )
    region_target: str = flag(
        "classes", "prediction target of masked regions", choices=tuple(REGION_TARGETS), group="loss"
    )
    overlap: float = flag(
        0.4, "IoU with a masked region from which other regions are masked too; above 1: no overlap masking", above=0
    )
    aligned_only: bool = flag(True, "masked-token and masked-region losses on aligned pairs only, as in the paper")
    predict_overlapped: bool = flag(False, "also predict the regions masked because of overlap")
    contrastive: float = flag(
        0.0, "weight of a contrastive loss before the first co-attention layer, 0 for none (the paper)", low=0
    )
    negatives: str = flag(
        "random", "misaligned pairs: random captions (the paper), or hard negatives in the batch", choices=NEGATIVES
    )
    batch_size: int | None = flag(
        None, "pairs per step, over all ranks", unset=_by_size(BATCH_SIZE), low=1, group="optimisation"
    )
    accumulate: int = flag(1, "gradient accumulation steps", low=1)
    epochs: int | None = flag(None, "training epochs", unset=_by_size(EPOCHS), low=1)
    steps: int | None = flag(None, "training steps, instead of --epochs", unset="those of the epochs", low=1)
    optimizer: str = flag(
        "adamw", "optimizer: torch's fused AdamW, or FusedAdam or FusedLAMB of NVIDIA apex", choices=tuple(OPTIMIZERS)
    )
    lr: float | None = flag(None, "peak learning rate", unset=_by_size(LR), above=0)
    bert_lr_scale: float = flag(1.0, "learning-rate factor of weights from --bert, 0 to freeze them", low=0)
    warmup: float = flag(0.1, "share of the steps used for learning-rate warm-up", low=0, high=1)
    weight_decay: float = flag(0.01, "weight decay, not applied to biases and LayerNorm", low=0)
    clip: float | None = flag(None, "maximum gradient norm, 0 for no clipping", unset=_by_size(CLIP), low=0)
    precision: str = flag(
        "float32", "precision of matrix products; float64: of everything", choices=PRECISIONS, group="speed and memory"
    )
    tf32: bool = flag(False, "TF32 for float32 matrix products on a GPU")
    residual: str = flag(
        "float32", "dtype of hidden states between the layers: float32, or that of --precision", choices=RESIDUALS
    )
    compile: bool = flag(False, "torch.compile for the two streams")
    cuda_graph: bool = flag(False, "forward and backward pass as one CUDA graph (with --accumulate 1)")
    activation_checkpointing: bool = flag(False, "recompute activations in the backward pass, to save memory")
    device: str = flag("auto", "device; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    out: str = flag("runs/pretrain", "run directory", written=True, group="run")
    log_every: int = flag(50, "steps between log lines", low=1)
    log_to: str | None = flag(
        TENSORBOARD, "comma-separated experiment trackers: tensorboard, wandb, trackio, mlflow; none for none"
    )
    save_every: int = flag(1000, "steps between validations, each with a checkpoint", low=1)
    save_minutes: float = flag(10.0, "maximum number of minutes between checkpoints, 0 for no maximum", low=0)
    seed: int = flag(0, "random seed for weight initialisation, data order, masking and misaligned captions")
    resume: bool = flag(False, "resume from the newest checkpoint of the run, if there is one")

    def with_size_defaults(self) -> "PretrainConfig":
        """The flags with the defaults of the model configuration filled in; epochs is None with --steps."""
        if self.steps and self.epochs:
            raise UserError(f"--steps {self.steps}: cannot be combined with --epochs {self.epochs}; use one of them")
        kind = self.config if self.config in LR else "base"
        return replace(
            self,
            batch_size=self.batch_size or BATCH_SIZE[kind],
            epochs=None if self.steps else self.epochs or EPOCHS[kind],
            lr=self.lr or LR[kind],
            clip=CLIP[kind] if self.clip is None else self.clip,
        )


# Flags that may change when a run is resumed, because they do not affect the results.
FREE_FLAGS = {
    *("resume", "out", "workers", "accumulate", "activation_checkpointing", "compile", "cuda_graph"),
    *("on_bad_shard", "log_every", "log_to", "save_minutes"),
}


def loss_terms(config: PretrainConfig) -> tuple[LossTerm, ...]:
    """The terms of the loss that the flags choose, in the order of the log."""
    regions = REGION_TARGETS[config.region_target]
    terms = [TokenTerm(), *([regions] if regions else []), AlignmentTerm(hard_negatives=config.negatives == "hard")]
    if config.contrastive:
        terms.append(ContrastiveTerm(config.contrastive))
    return tuple(terms)


def check_contrastive(config: PretrainConfig) -> None:
    """Raises UserError for flags that require, or are incompatible with, a contrastive loss."""
    if config.negatives == "hard" and not config.contrastive:
        raise UserError("--negatives hard: requires the contrastive loss; set its weight, for example --contrastive 1")
    for name in ("compile", "cuda_graph"):
        if config.contrastive and getattr(config, name):
            raise UserError(f"--contrastive {config.contrastive:g}: cannot be combined with --{name} true; remove one")


@dataclass
class ConvertConfig:
    """Flags of pretrain.convert."""

    source: str = flag(REQUIRED, "published weights, or a run directory", first=True)
    out: str = flag(REQUIRED, "new run directory, or (--to published) output file, .bin or .safetensors", written=True)
    to: str = flag("run", "output format", choices=FORMS)
    config: str | None = flag(
        None,
        "model configuration of published weights: a JSON file, base or tiny",
        unset="the JSON file next to the weights, or base",
    )
    tokenizer: str | None = flag(
        None,
        "tokenizer of published weights: directory of a BERT, vocab.txt, or a hub name",
        unset="the tokenizer next to the weights, or bert-base-uncased",
    )
