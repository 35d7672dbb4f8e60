"""The time of a pretraining step of the published configuration: as published, then with each of our changes.

    python benchmarks/train_step.py [--config base] [--batch_size 16] [--repeats 3]

Forward and backward on one random batch with caption lengths like Conceptual Captions' (12 pieces on average).
Every line adds one change to the line before it; the ratio is to the first line. How much trimming gives
depends on the batch: the more captions, the longer the longest.
"""

import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np
import torch
import torch.nn.functional as F

import pretrain.layers
from benchmarks.timing import print_table, time_in_turn
from pretrain.attention import attend
from pretrain.batch import Batch
from pretrain.config import read_model_config
from pretrain.heads import PretrainingModel
from pretrain.masking import sample_keys, swapped
from pretrain.objective import Objective, class_distribution
from shards.flags import command, flag

WORDS, REGIONS, PER_REGION = 36, 36, 20


@dataclass
class Config:
    """Flags of this benchmark."""

    config: str = flag("base", "sizes of the model")
    batch_size: int = flag(16, "pairs a step", low=1)
    repeats: int = flag(3, "timed steps of each variant", low=1)


def random_batch(config: Config, sizes) -> Batch:
    rng = np.random.default_rng(0)
    size = config.batch_size
    keys = sample_keys(0, 0, np.arange(size))
    lengths = rng.normal(12, 4.5, size).round().clip(5, WORDS).astype(np.int64)
    ids = rng.integers(1000, sizes.vocab_size, (size, WORDS)) * (np.arange(WORDS) < lengths[:, None])
    corner = rng.random((size, REGIONS, 2)) * 0.7
    return Batch(
        keys=torch.from_numpy(keys),
        input_ids=torch.from_numpy(ids),
        lengths=torch.from_numpy(lengths),
        features=torch.from_numpy(rng.random((size, REGIONS, sizes.v_feature_size)).astype(np.float16)),
        boxes=torch.from_numpy(np.concatenate([corner, corner + 0.2], -1).astype(np.float32)),
        valid=torch.ones(size, REGIONS, dtype=torch.bool),
        class_ids=torch.from_numpy(rng.integers(0, sizes.v_target_size, (size, REGIONS, PER_REGION))),
        class_probs=torch.full((size, REGIONS, PER_REGION), 0.99 / PER_REGION),
        misaligned=torch.from_numpy(swapped(keys)),
    )


def all_positions_loss(objective: Objective, model: PretrainingModel, batch: Batch) -> torch.Tensor:
    """The published way: every position goes through the heads, and the loss picks out those that count."""
    inputs = objective.mask(batch)
    encoded = model.encoder(inputs.input_ids, inputs.text_mask, inputs.features, inputs.locations, inputs.image_mask)
    labels = torch.full_like(batch.input_ids, -1).flatten()
    labels[inputs.word_positions] = inputs.word_labels
    words = F.cross_entropy(model.word_scores(encoded.text).flatten(0, 1).float(), labels, ignore_index=-1)
    scores = model.regions(encoded.image[:, 1:]).float()
    target = class_distribution(batch.class_ids.flatten(0, 1), batch.class_probs.flatten(0, 1), scores.shape[-1])
    per_region = F.kl_div(scores.log_softmax(-1).flatten(0, 1), target, reduction="none").sum(-1)
    chosen = torch.zeros_like(per_region)
    chosen[inputs.region_positions] = 1
    alignment = F.cross_entropy(model.alignment(model.encoder.fuse(encoded)).float(), batch.misaligned.long())
    return words + (per_region * chosen).sum() / chosen.sum() + alignment


def masked_positions_loss(objective: Objective, model: PretrainingModel, batch: Batch) -> torch.Tensor:
    losses = objective.losses(model, batch, objective.mask(batch))
    return losses.total(losses.word_count, losses.region_count, losses.pair_count)


@contextlib.contextmanager
def unfused():
    """Attention through an explicit matrix of probabilities."""
    pretrain.layers.attend = lambda q, k, v, mask, dropout, maps=None: attend(q, k, v, mask, dropout, [])
    try:
        yield
    finally:
        pretrain.layers.attend = attend


def run(config: Config) -> None:
    torch.manual_seed(0)
    sizes = read_model_config(config.config)
    model = PretrainingModel(sizes).train()
    objective = Objective(mask_id=103, ordinary_ids=torch.arange(1000, sizes.vocab_size))
    padded = random_batch(config, sizes)
    trimmed = replace(padded, input_ids=padded.input_ids[:, : int(padded.lengths.max())])
    for batch in (padded, trimmed):
        batch.word_count, batch.region_count = objective.count(batch)

    def step(loss, batch, fused, precision=contextlib.nullcontext):
        with contextlib.nullcontext() if fused else unfused(), precision():
            value = loss(objective, model, batch)
        value.backward()
        model.zero_grad(set_to_none=True)

    def bf16():
        return torch.autocast("cpu", torch.bfloat16)

    variants = {
        "as published": lambda: step(all_positions_loss, padded, False),
        "+ text trimmed": lambda: step(all_positions_loss, trimmed, False),
        "+ heads at masked positions only": lambda: step(masked_positions_loss, trimmed, False),
        "+ fused attention": lambda: step(masked_positions_loss, trimmed, True),
        "+ bf16": lambda: step(masked_positions_loss, trimmed, True, bf16),
    }
    pieces = padded.lengths.float()
    print(
        f"{config.config}, batch {config.batch_size}, captions of {pieces.mean():.1f} pieces, the longest "
        f"{int(pieces.max())}; {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    print_table(time_in_turn(variants, config.repeats), "as published", unit="s/step")


if __name__ == "__main__":
    command(Config, run, "benchmarks/train_step.py", __doc__.splitlines()[0], sys.argv[1:])
