"""Batches of the twelve tasks as the model takes them."""

import numpy as np
import pytest
import torch
from without_content import nothing_is_asked, without_content

from finetune.annotations.answers import AnswerVocabulary
from finetune.data.task_data import CollatorSettings, open_data
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import TaskPass
from finetune.tasks import paper_tasks
from pretrain.models.model_config import TINY
from pretrain.models.precision import Precision
from pretrain.tokenizer.tokenizer import learn_tokenizer

TASKS = paper_tasks()
VOCABULARY = AnswerVocabulary(["yes", "no"])


def make_batch(task, world, train: bool):
    """Seven examples of a task; train: of its training, as training takes them."""
    data = open_data(task, str(world), "stop")
    examples = data.examples(task.splits[0 if train else 1])
    tokenizer = learn_tokenizer([example.text for example in examples], 300)
    vocabulary = VOCABULARY if task.head.has_vocabulary else None
    settings = CollatorSettings(tokenizer, vocabulary, positions=256, max_regions=10)
    return data.collator(examples, settings, 0 if train else None)(0, np.arange(7))


@pytest.mark.parametrize("name", TASKS)
def test_what_is_counted_is_what_the_masks_have(world, name):
    """Counted while a batch is made, so that no device is asked; a wrong count would lose words or regions."""
    task = TASKS[name]
    batch = make_batch(task, world, train=False)
    inputs = batch.inputs(task.token, torch.float32)
    assert inputs.text_count == inputs.text_mask.sum() == batch.pairs.lengths.sum()
    assert inputs.image_count == inputs.image_mask.sum() > len(batch.pairs) * 2
    assert (inputs.candidates > 0) == (batch.candidates is not None) == task.head.has_candidates


@pytest.mark.parametrize("name", TASKS)
def test_a_pass_asks_for_no_number(world, name):
    task = TASKS[name]
    train, held_out = make_batch(task, world, train=True), make_batch(task, world, train=False)
    sizes = TINY.replace(v_feature_size=train.pairs.features.shape[-1], task_tokens=20).with_dropout(0.1)
    model = TaskModel(sizes, {task.head.name: len(VOCABULARY)} if task.head.has_vocabulary else {})
    task_pass = TaskPass(model, task, Precision("bf16", torch.device("cpu")), task.token)
    with nothing_is_asked() as mode:
        loss, _ = task_pass(without_content(train, mode), [7])
        loss.backward()
        scores = task_pass.logits(without_content(held_out, mode))
    assert loss.shape == () and len(scores) >= 7
