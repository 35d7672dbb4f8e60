"""Batches of the twelve tasks as the model takes them."""

import numpy as np
import pytest
import torch

from finetune.answers import AnswerVocabulary
from finetune.data import open_data
from finetune.tasks import all_tasks
from pretrain.tokenizer import learn_pieces

TASKS = all_tasks()


@pytest.mark.parametrize("name", TASKS)
def test_what_is_counted_is_what_the_masks_have(world, name):
    """Counted while a batch is made, so that no device is asked; a wrong count would lose words or regions."""
    task = TASKS[name]
    data = open_data(task, str(world), "stop")
    examples = data.examples(task.splits[0])
    pieces = learn_pieces([example.text for example in examples], 300)
    vocabulary = AnswerVocabulary(["yes", "no"]) if task.head in ("vqa", "gqa") else None
    batch = data.collator(examples, pieces, vocabulary, 256, 10)(0, np.arange(7))
    inputs = batch.inputs(task.token, torch.float32)
    assert inputs.text_count == inputs.text_mask.sum() == batch.rows.lengths.sum()
    assert inputs.image_count == inputs.image_mask.sum() > len(batch.rows) * 2
    assert (inputs.candidates > 0) == (batch.candidates is not None) == (task.head == "candidates")
