"""Random image-caption pairs with the sizes of real ones, for the benchmarks of training."""

import numpy as np
import torch

from pretrain.batch import Batch
from pretrain.config import ModelConfig
from pretrain.masking import sample_keys, swapped

WORDS, REGIONS, PER_REGION = 36, 36, 20
SPECIAL = 5  # word pieces that are not words come first, [MASK] the last of them


def random_batch(size: int, sizes: ModelConfig) -> Batch:
    """36 regions each, captions with the lengths of Conceptual Captions' (12 pieces on average), at most 36."""
    rng = np.random.default_rng(0)
    keys = sample_keys(0, 0, np.arange(size))
    lengths = rng.normal(12, 4.5, size).round().clip(5, WORDS).astype(np.int64)
    ids = rng.integers(SPECIAL, sizes.vocab_size, (size, WORDS)) * (np.arange(WORDS) < lengths[:, None])
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
        pieces=int(lengths.sum()),
        regions=size * REGIONS,
    )
