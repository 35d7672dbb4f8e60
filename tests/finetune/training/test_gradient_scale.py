"""A task's share of the training: its learning rate as a factor on the loss, which no clipping cancels by default.

And the learning rates of parts of the model.
"""

import pytest
import torch
from torch import nn

from finetune.config import MtConfig, StConfig
from finetune.objective.task_pass import MultiTaskPass, TaskPass
from finetune.tasks import find_task
from finetune.training.model_setup import make_model, make_task_engine
from pretrain.config import PretrainConfig
from pretrain.engine.step import MetricSums
from pretrain.models.model_config import TINY
from pretrain.models.precision import Precision
from shards.common.dist_info import ALONE


class Part:
    """One task's part of a step."""

    def __init__(self, task: int):
        self.task, self.task_step, self.batch = task, 0, torch.ones(2, 3, dtype=torch.float64)

    def __len__(self):
        return len(self.batch)


class OneTask(nn.Module):
    """A task whose gradients are far above a norm of 1. The task's data is the same for all."""

    precision = Precision("float64", torch.device("cpu"))

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.task = model, self
        self.name = name

    def forward(self, batch, denominators):
        return 1e3 * self.model(batch).square().sum() / denominators[-1], {}


def update_of(task: int, scales: list[float], **flags) -> torch.Tensor:
    """The update of plain gradient descent by a step of a task."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()
    training_pass = MultiTaskPass([OneTask(model, "first"), OneTask(model, "second")], scales)
    engine = make_task_engine(MtConfig(**flags), ALONE, training_pass, 1e-3, 1e-3, None)
    engine.optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    before = model.weight.detach().clone()
    engine.step(0, [Part(task)], MetricSums(), [2])
    return model.weight.detach() - before


def test_updates_of_tasks_are_in_the_ratio_of_their_learning_rates():
    """VQA's 4e-5 against the others' 2e-5."""
    torch.testing.assert_close(update_of(0, [2.0, 1.0]), 2 * update_of(1, [2.0, 1.0]), rtol=1e-12, atol=0)
    clipped = update_of(0, [2.0, 1.0], clip=1.0), update_of(1, [2.0, 1.0], clip=1.0)
    torch.testing.assert_close(*clipped, rtol=1e-12, atol=0)  # what clipping by default did


@pytest.mark.parametrize(("config", "clip"), [("base", 0.0), ("model.json", 0.0), ("tiny", 1.0)])
def test_pretraining_clips_gradients_of_the_small_model_alone(config, clip):
    assert PretrainConfig(config=config).with_size_defaults().clip == clip
    assert PretrainConfig(config=config, clip=0.5).with_size_defaults().clip == 0.5
    assert PretrainConfig(config=config, clip=0.0).with_size_defaults().clip == 0.0
    assert StConfig(task="vqa").clip == MtConfig().clip == 0.0


@pytest.mark.parametrize("factor", [0.25, 0.0])
def test_the_learning_rate_of_the_weights_that_a_bert_has(factor):
    """Not of task tokens, which no BERT has; 0 freezes them."""
    config, precision = StConfig(task="snli_ve", bert_lr_scale=factor), Precision("float32", torch.device("cpu"))
    task, sizes = find_task("snli_ve"), TINY.replace(vocab_size=50, v_feature_size=8, task_tokens=20)
    model = make_model(config, [task], sizes, {}, None, precision)
    engine = make_task_engine(config, ALONE, TaskPass(model, task, precision, task.token), 1e-3, 2e-3, None)
    scales = {id(p): group["scale"] for group in engine.optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        of_bert = name.startswith(("encoder.text_embedding.", "encoder.text_layers.")) and ".task." not in name
        of_head = name.startswith("heads.") and not name.startswith("heads.pointing.")
        expected = factor if of_bert else 2.0 if of_head else 1.0
        assert scales.get(id(parameter), 0.0) == expected and parameter.requires_grad == bool(expected), name
