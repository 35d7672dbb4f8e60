"""Random image-caption pairs with the sizes of real ones, for the benchmarks of training."""

import numpy as np
import torch

from pretrain.data.batch import Batch
from pretrain.data.random_choices import misaligned, sample_keys
from pretrain.models.model_config import ModelConfig

WORDS, REGIONS, PER_REGION = 36, 36, 20
MEAN_LENGTH, LENGTH_DEVIATION = 12, 4.5  # of captions in Conceptual Captions, in tokens with [CLS] and [SEP]
SPECIAL = 5  # number of special tokens, which have the first ids; [MASK] is the last of them


def random_batch(
    size: int,
    sizes: ModelConfig,
    words: int = WORDS,
    regions: int = REGIONS,
    mean_length: float = MEAN_LENGTH,
    seed: int = 0,
) -> Batch:
    """`size` pairs: `regions` regions each, captions of at most `words` tokens with lengths around `mean_length`.

    Class ids and probabilities have the types of region shards: int16 and float16.
    """
    rng = np.random.default_rng(seed)
    keys = sample_keys(seed, 0, np.arange(size))
    deviation = LENGTH_DEVIATION / MEAN_LENGTH * mean_length
    lengths = rng.normal(mean_length, deviation, size).round().clip(5, words).astype(np.int64)
    ids = rng.integers(SPECIAL, sizes.vocab_size, (size, words)) * (np.arange(words) < lengths[:, None])
    corner = rng.random((size, regions, 2)) * 0.7
    class_ids = rng.integers(0, sizes.v_target_size, (size, regions, PER_REGION))
    return Batch(
        keys=torch.from_numpy(keys),
        input_ids=torch.from_numpy(ids),
        lengths=torch.from_numpy(lengths),
        features=torch.from_numpy(rng.random((size, regions, sizes.v_feature_size), np.float32).astype(np.float16)),
        boxes=torch.from_numpy(np.concatenate([corner, corner + 0.2], -1).astype(np.float32)),
        valid=torch.ones(size, regions, dtype=torch.bool),
        class_ids=torch.from_numpy(class_ids).to(torch.int16),
        class_probs=torch.full((size, regions, PER_REGION), 0.99 / PER_REGION, dtype=torch.float16),
        misaligned=torch.from_numpy(misaligned(keys)),
        total_tokens=int(lengths.sum()),
        total_regions=size * regions,
    )
