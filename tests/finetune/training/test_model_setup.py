"""The model of a run at its first step."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from finetune.annotations.answers import AnswerVocabulary
from finetune.config import BASE_SIZE, MtConfig, StConfig
from finetune.run_dirs.model_source import ModelSource
from finetune.tasks import find_task
from finetune.training.model_setup import TRUE_FOR_SMALL, make_model, make_task_engine, with_defaults
from pretrain.models.model_config import TINY
from pretrain.models.precision import Precision
from pretrain.pretrained.find_weights import RUN, Weights
from shards.common.dist_info import ALONE

ANSWERS = AnswerVocabulary([f"answer {number}" for number in range(300)])
FLOAT32 = Precision("float32", torch.device("cpu"))
SMALL = TINY.replace(vocab_size=30, v_feature_size=12, task_tokens=20)
BASE_WIDTH = SMALL.replace(hidden_size=BASE_SIZE, num_hidden_layers=1, t_biattention_id=(0,), v_biattention_id=(0,))


def first_probability(sizes, **flags) -> float:
    """The mean probability of an answer before the first step."""
    config, task = with_defaults(StConfig(**flags), sizes, None), find_task("vqa")
    model = make_model(config, [task], sizes, {task.head.name: ANSWERS}, None, FLOAT32)
    fused = torch.randn(64, sizes.bi_hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.heads[task.head.layer_name](fused).sigmoid().mean().item()


@pytest.mark.parametrize(
    ("sizes", "flags", "rare"),
    [
        (SMALL, {}, True),
        (SMALL, {"rare_choices": False}, False),
        (BASE_WIDTH, {}, False),
        (BASE_WIDTH, {"rare_choices": True}, True),
    ],
)
def test_answers_and_regions_are_rare_at_first_in_small_models(sizes, flags, rare):
    low, high = (0.2 / len(ANSWERS), 5 / len(ANSWERS)) if rare else (0.4, 0.6)
    assert low < first_probability(sizes, **flags) < high
    config, task = with_defaults(StConfig(**flags), sizes, None), find_task("refcoco")
    bias = make_model(config, [task], sizes, {}, None, FLOAT32).heads["pointing"].bias
    assert bias.sigmoid().item() == pytest.approx(1 / 37 if rare else 1 / 2)


def test_a_trained_answer_head_is_kept(tmp_path, monkeypatch):
    config, task = with_defaults(StConfig(), SMALL, None), find_task("vqa")
    of_run = make_model(config, [task], SMALL, {"vqa": ANSWERS}, None, FLOAT32)
    of_run.heads["vqa"].decoder.bias.data.normal_()
    source = ModelSource("AT->ST", Weights(RUN, str(tmp_path), tmp_path, SMALL, run_config={}, heads={}), SMALL, None)
    monkeypatch.setattr(Weights, "read", lambda self: (of_run.state_dict(), []))
    model = make_model(config, [task], SMALL, {"vqa": ANSWERS}, source, FLOAT32)
    assert torch.equal(model.heads["vqa"].decoder.bias, of_run.heads["vqa"].decoder.bias)


@pytest.mark.parametrize("config_type", [StConfig, MtConfig])
def test_a_run_of_an_earlier_version_is_resumed_as_it_began(tmp_path, config_type):
    """Its config.json lacks the flags, which it computed without."""
    config = config_type(out=str(tmp_path))

    def resumed(flags) -> list[bool]:
        (tmp_path / "config.json").write_text(json.dumps({"flags": flags}))
        found = with_defaults(config, SMALL, tmp_path / "checkpoints" / "1")
        return [getattr(found, name) for name in TRUE_FOR_SMALL]

    begun = dataclasses.asdict(config)
    earlier = {name: value for name, value in begun.items() if name not in TRUE_FOR_SMALL}
    assert resumed(begun) == [True, True]
    assert resumed(earlier) == [False, False]


class TinyPass(nn.Module):
    """What is trained: one weight."""

    precision = FLOAT32

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(1, 1, bias=False)


@pytest.mark.parametrize(("sizes", "factor"), [(SMALL, 1), (BASE_WIDTH, 0.1 / 0.001**0.5)])
def test_small_models_have_bias_correction(sizes, factor):
    """Adam's first update has the length of the learning rate with it, and over three times as much without it."""
    config, training_pass = with_defaults(StConfig(weight_decay=0.0), sizes, None), TinyPass()
    engine = make_task_engine(config, ALONE, training_pass, lr=1e-3, head_lr=1e-3, newest=None)
    before = training_pass.model.weight.item()
    training_pass.model.weight.grad = torch.ones(1, 1)
    engine.optimizer.step()
    assert before - training_pass.model.weight.item() == pytest.approx(1e-3 * factor, rel=1e-2)
