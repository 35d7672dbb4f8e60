"""The model of a run at its first step."""

import pytest
import torch

from finetune.annotations.answers import AnswerVocabulary
from finetune.build import make_model
from finetune.config import BASE_SIZE, StConfig
from finetune.run_dirs.init_weights import Start
from finetune.tasks import find_task
from pretrain.models.model_config import TINY
from pretrain.models.precision import Precision
from pretrain.pretrained.find_weights import RUN, Weights

ANSWERS = AnswerVocabulary([f"answer {number}" for number in range(300)])
FLOAT32 = Precision("float32", torch.device("cpu"))
SMALL = TINY.replace(vocab_size=30, v_feature_size=12, task_tokens=20)
BASE_WIDTH = SMALL.replace(hidden_size=BASE_SIZE, num_hidden_layers=1, t_biattention_id=(0,), v_biattention_id=(0,))


def first_probability(sizes, **flags) -> float:
    """The mean probability of an answer before the first step."""
    config, task = StConfig(task="vqa", **flags), find_task("vqa")
    model = make_model(config, [task], sizes, {task.head.name: ANSWERS}, None, FLOAT32)
    fused = torch.randn(64, sizes.bi_hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.heads[task.head.layer_name](fused).sigmoid().mean().item()


@pytest.mark.parametrize(
    ("sizes", "flags", "rare"),
    [
        (SMALL, {}, True),
        (SMALL, {"rare_answers": False}, False),
        (BASE_WIDTH, {}, False),
        (BASE_WIDTH, {"rare_answers": True}, True),
    ],
)
def test_answers_are_rare_at_first_in_small_models(sizes, flags, rare):
    low, high = (0.2 / len(ANSWERS), 5 / len(ANSWERS)) if rare else (0.4, 0.6)
    assert low < first_probability(sizes, **flags) < high


def test_a_trained_answer_head_is_kept(tmp_path, monkeypatch):
    config, task = StConfig(task="vqa"), find_task("vqa")
    of_run = make_model(config, [task], SMALL, {"vqa": ANSWERS}, None, FLOAT32)
    of_run.heads["vqa"].decoder.bias.data.normal_()
    start = Start("AT->ST", Weights(RUN, str(tmp_path), tmp_path, SMALL, facts={}, heads={}), SMALL, None)
    monkeypatch.setattr(Weights, "read", lambda self: (of_run.state_dict(), []))
    model = make_model(config, [task], SMALL, {"vqa": ANSWERS}, start, FLOAT32)
    assert torch.equal(model.heads["vqa"].decoder.bias, of_run.heads["vqa"].decoder.bias)
