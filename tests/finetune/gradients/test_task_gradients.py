"""Scalar products and weighted sums of kept gradients, against the whole vectors."""

import pytest
import torch
from torch import nn

from finetune.gradients import task_gradients
from finetune.gradients.task_gradients import ALL_PARTS, TaskGradients, part_of, shared_parameters
from finetune.models.task_model import TaskModel
from pretrain.models.model_config import TINY


@pytest.fixture
def kept(monkeypatch):
    """(gradients of 3 tasks, of which the last does not use the second parameter; the same as vectors (3, 31))."""
    monkeypatch.setattr(task_gradients, "BLOCK", 7)
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((4, 5), (3,), (2, 4))]
    gradients, vectors = TaskGradients(parameters, 3), torch.zeros(3, 31, dtype=torch.float64)
    for row in range(3):
        for number, parameter in enumerate(parameters):
            parameter.grad = None if (row, number) == (2, 1) else torch.randn(parameter.shape, dtype=torch.float64)
        vectors[row] = torch.cat([torch.zeros(3) if p.grad is None else p.grad.flatten() for p in parameters])
        gradients.keep(row)
    return gradients, vectors


def test_scalar_products_are_those_of_the_vectors(kept):
    gradients, vectors = kept
    found = gradients.gramians([0, 2], ["text", "image", "text"])
    chosen = vectors[[0, 2]]
    image = chosen[:, 20:23]
    torch.testing.assert_close(found[ALL_PARTS], chosen @ chosen.T)
    torch.testing.assert_close(found["image"], image @ image.T)
    torch.testing.assert_close(found["text"], chosen @ chosen.T - image @ image.T)
    present = gradients.products_with(0, ["text", "image", "text"])  # with the gradients of the last task
    torch.testing.assert_close(present[ALL_PARTS], vectors[0] @ vectors[2])
    torch.testing.assert_close(present["image"], torch.zeros((), dtype=torch.float64))


def test_the_sum_has_no_gradient_where_no_chosen_task_has_one(kept):
    gradients, vectors = kept
    gradients.set_combined([0, 2], torch.tensor([0.5, -2.0], dtype=torch.float64))
    whole = torch.cat([p.grad.flatten() for p in gradients.parameters])
    torch.testing.assert_close(whole, 0.5 * vectors[0] - 2 * vectors[2])
    gradients.set_combined([2], torch.ones(1, dtype=torch.float64))
    assert [p.grad is None for p in gradients.parameters] == [False, True, False]


def test_gradients_in_bf16_need_half_the_memory(kept):
    exact = kept[0]
    rounded = TaskGradients([nn.Parameter(torch.zeros(1000))], 2, torch.bfloat16)
    assert exact.bytes == 3 * 31 * 8 and rounded.bytes == 2 * 1000 * 2
    rounded.parameters[0].grad = torch.ones(1000) * 1.001
    rounded.keep(1)
    # Summed in float32, rounded to 1 as they are kept.
    assert rounded.gramians([1])[ALL_PARTS].item() == pytest.approx(1000)


def test_the_shared_parameters_are_those_of_the_encoder():
    model = TaskModel(TINY.replace(vocab_size=30, task_tokens=20), {"vqa": 3})
    names = list(shared_parameters(model))
    assert names == [name for name, _ in model.named_parameters() if not name.startswith("heads.")]
    parts = {part: [name for name in names if part_of(name) == part] for part in ("text", "image", "co-attention")}
    assert any("text_pooler" in name for name in parts["text"]) and any("task" in name for name in parts["text"])
    assert any("image_layers.0" in name for name in parts["image"])
    assert all(name.startswith("encoder.connections.") for name in parts["co-attention"]) and parts["co-attention"]
    assert sum(map(len, parts.values())) == len(names)
