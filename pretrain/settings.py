"""The flags of pretraining, and the settings that come with a model configuration."""

import os
from dataclasses import dataclass, replace

from pretrain.objective import NEGATIVES, REGION_TARGETS
from pretrain.optimizer import OPTIMIZERS
from shards.errors import UserError
from shards.flags import flag
from shards.world import DEFAULT_WORLD

CAPTIONS_PER_IMAGE = ("all", "one")
RESIDUALS = ("float32", "precision")
PRECISIONS = ("float32", "bf16", "fp16", "float64")

# What --config brings along where the flags do not say otherwise. Base is the published run.
BATCH_SIZE = {"base": 512, "tiny": 32}
EPOCHS = {"base": 10, "tiny": 20}
LR = {"base": 1e-4, "tiny": 1e-3}
CLIP = {"base": 0.0, "tiny": 1.0}


def _by_size(values: dict) -> str:
    return ", ".join(f"{value:g} ({name})" for name, value in values.items())


@dataclass
class PretrainConfig:
    """Flags of pretrain.run. None: what the model configuration brings along (settings.py)."""

    data: str | None = flag(None, "region shards with captions: a folder or a pattern", unset=f"{DEFAULT_WORLD}, made")
    captions_per_image: str = flag(
        "all", "captions of an image in an epoch: all, or one, drawn anew in each", choices=CAPTIONS_PER_IMAGE
    )
    out: str = flag("runs/pretrain", "the run directory", written=True)
    config: str = flag("tiny", "sizes of the model: base (as published), tiny, or a JSON file")
    bert: str | None = flag(
        None,
        "a Hugging Face BERT (a directory, or a hub name): tokenizer and text stream",
        unset="none: a vocabulary and weights of its own",
    )
    vocabulary: int = flag(8000, "word pieces to learn from the captions where there is no --bert", low=100)
    dropout: float | None = flag(None, "probability of every dropout", unset="the configuration's", low=0, high=0.99)
    batch_size: int | None = flag(None, "pairs a step, over all ranks", unset=_by_size(BATCH_SIZE), low=1)
    accumulate: int = flag(1, "parts that a rank works through one after another in a step, to save memory", low=1)
    epochs: int | None = flag(None, "passes over the pairs", unset=_by_size(EPOCHS), low=1)
    steps: int | None = flag(None, "training steps, in place of --epochs", unset="as many as the epochs have", low=1)
    lr: float | None = flag(None, "peak learning rate", unset=_by_size(LR), above=0)
    warmup: float = flag(0.1, "share of the steps in which the learning rate rises", low=0, high=1)
    weight_decay: float = flag(0.01, "of all weights but biases and LayerNorm", low=0)
    clip: float | None = flag(None, "largest gradient norm, 0 for no limit", unset=_by_size(CLIP), low=0)
    bert_lr_scale: float = flag(1.0, "factor on the learning rate of weights from --bert, 0 to freeze them", low=0)
    words: int = flag(36, "word pieces of a caption at the most, with [CLS] and [SEP]", low=3)
    regions: int = flag(36, "regions of an image at the most, the best first", low=1)
    region_target: str = flag("classes", "what masked regions are to be told", choices=REGION_TARGETS)
    overlap: float = flag(
        0.4, "IoU from which regions are hidden with a chosen one; above 1: the chosen alone", above=0
    )
    aligned_only: bool = flag(True, "predict words and regions on aligned pairs alone, as the paper does")
    predict_overlapped: bool = flag(False, "predict the regions hidden by overlap too")
    contrastive: float = flag(
        0.0, "weight of a contrastive loss of the two streams before they meet, 0 for none (the paper)", low=0
    )
    negatives: str = flag(
        "random", "misaligned pairs: random captions (the paper), or hard ones of the batch", choices=NEGATIVES
    )
    validation_pairs: int = flag(2000, "pairs held out by caption text (a tenth at the most), 0 for none", low=0)
    precision: str = flag("float32", "of matrix work; float64: of all", choices=PRECISIONS)
    tf32: bool = flag(False, "let a GPU do float32 matrix work in TF32")
    optimizer: str = flag("adamw", "torch's fused AdamW, or NVIDIA apex's FusedAdam or FusedLAMB", choices=OPTIMIZERS)
    activation_checkpointing: bool = flag(False, "work activations out again in the backward pass, to save memory")
    compile: bool = flag(False, "torch.compile the two streams")
    cuda_graph: bool = flag(False, "forward and backward pass as one CUDA graph (with --accumulate 1)")
    residual: str = flag(
        "float32", "type of the hidden states between the layers: float32, or as --precision", choices=RESIDUALS
    )
    device: str = flag("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))
    workers: int = flag(min(4, max(1, (os.cpu_count() or 1) // 2)), "processes that read batches, 0: none", low=0)
    on_bad_shard: str = flag("stop", "what to do about samples that cannot be read", choices=("stop", "skip"))
    log_every: int = flag(50, "steps between two lines of the log", low=1)
    save_every: int = flag(1000, "steps between two validations with a checkpoint", low=1)
    save_minutes: float = flag(10.0, "minutes without a checkpoint after which one is written, 0 for none", low=0)
    seed: int = flag(0, "of weights, order, masks and swaps")
    resume: bool = flag(False, "go on from the run's newest checkpoint, where there is one")

    def settled(self) -> "PretrainConfig":
        """The same flags with every None that the model configuration answers filled in; with --steps no --epochs."""
        if self.steps and self.epochs:
            raise UserError(f"--steps {self.steps}: takes the place of --epochs {self.epochs}; give one of them")
        kind = self.config if self.config in LR else "base"
        return replace(
            self,
            batch_size=self.batch_size or BATCH_SIZE[kind],
            epochs=None if self.steps else self.epochs or EPOCHS[kind],
            lr=self.lr or LR[kind],
            clip=CLIP[kind] if self.clip is None else self.clip,
        )


# Flags that may differ between a run and its continuation: they do not change what is computed.
FREE_FLAGS = {
    *("resume", "out", "workers", "accumulate", "activation_checkpointing", "compile", "cuda_graph"),
    *("on_bad_shard", "log_every", "save_minutes"),
}
