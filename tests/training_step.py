"""Small batches, and what takes steps on them, for tests of a training step."""

import numpy as np
import torch
from data_sets import make_samples

from pretrain.data.collate import Limits, stack
from pretrain.data.random_choices import sample_keys
from pretrain.engine.optimizer import make_optimizer
from pretrain.engine.step import Engine
from pretrain.models.model_config import TINY
from pretrain.models.precision import Precision
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.objective.pretraining_loss import Objective
from pretrain.objective.pretraining_pass import PretrainingPass
from shards.common.dist_info import ALONE

BETAS, EPSILON, SIZES = (0.9, 0.98), 1e-8, TINY.replace(vocab_size=40, v_feature_size=12, v_target_size=9)


def make_batch(count=12):
    samples = make_samples(count, regions=(3, 8))
    ids = [[2, *np.random.default_rng(n).integers(5, 40, 4 + n % 5).tolist(), 3] for n in range(count)]
    batch = stack(
        samples, ids, sample_keys(0, 0, np.arange(count)), np.arange(count) % 2 == 1, Limits(20, 36, 12, 9, 3)
    )
    batch.predicted_tokens, batch.predicted_regions = OBJECTIVE.count_predictions(batch)
    return batch


OBJECTIVE = Objective(mask_id=4, ordinary_ids=torch.arange(5, 40))


def make_engine(precision="float32", dropout=0.1, kind="adamw", prepare=lambda model: None, sizes=SIZES) -> Engine:
    torch.manual_seed(0)
    model = PretrainingModel(sizes.with_dropout(dropout)).train()
    how = Precision(precision, torch.device("cpu"))
    model.to(torch.float64 if precision == "float64" else torch.float32)
    prepare(model)
    optimizer = make_optimizer(model, 1e-3, BETAS, EPSILON, 0.01, kind=kind)
    # A scale that fits from the first step on; torch's own begins too high and skips a few steps to find it.
    scaler = torch.amp.GradScaler("cpu", init_scale=64) if precision == "fp16" else how.scaler()
    return Engine(PretrainingPass(model, OBJECTIVE, how), model, optimizer, how, scaler, ALONE, 1.0)


def part_of(batch, rows):
    part = batch._map(lambda x: x[rows])
    part.predicted_tokens, part.predicted_regions = OBJECTIVE.count_predictions(part)
    part.total_tokens, part.total_regions = int(part.lengths.sum()), int(part.valid.sum())
    return part
