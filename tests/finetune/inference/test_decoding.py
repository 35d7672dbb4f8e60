"""Decoding of scores to predictions."""

import numpy as np
import torch

from finetune.heads.base import Scene
from finetune.inference.decoding import prediction
from finetune.tasks import all_tasks


def test_choices_are_in_the_order_of_the_scores_also_where_their_confidence_is_equal():
    """From about 17 on, a sigmoid is 1 in float32: the first of these choices was shown, and the best one scored."""
    task = all_tasks()["nlvr2"]
    found = prediction(task, torch.tensor([20.0, 30.0]), Scene([], np.empty((0, 4)), (1, 1)), None, top=2)
    assert found.confidence == [1.0, 1.0] and found.numbers == [1, 0]
    assert found.choices == [task.head.labels[1], task.head.labels[0]]
