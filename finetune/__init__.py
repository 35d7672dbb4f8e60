"""Fine-tuning on twelve tasks: their official files, heads, losses and scores.

`__all__` is the public interface; its names are loaded on first use, because commands that do not need them should
start without torch.
"""

from pathlib import Path
from runpy import run_path
from typing import TYPE_CHECKING

run_path(str(Path(__file__).parents[1] / "ops" / "own_packages.py"))["check_packages"]()

from shards.common.lazy_names import lazy_names

if TYPE_CHECKING:
    from finetune.annotations.example import Example
    from finetune.evaluation.scores import TaskScore, score_task
    from finetune.heads.base import Head
    from finetune.inference.decoding import Prediction
    from finetune.inference.embedder import Embedder, Embeddings
    from finetune.inference.predictor import Predictor
    from finetune.task_types.base import Task
    from finetune.tasks import all_tasks, find_task

__all__ = [
    "Embedder",
    "Embeddings",
    "Example",
    "Head",
    "Prediction",
    "Predictor",
    "Task",
    "TaskScore",
    "all_tasks",
    "find_task",
    "score_task",
]

_DEFINED_IN = {
    "Example": "finetune.annotations.example",
    **dict.fromkeys(("TaskScore", "score_task"), "finetune.evaluation.scores"),
    "Head": "finetune.heads.base",
    "Prediction": "finetune.inference.decoding",
    **dict.fromkeys(("Embedder", "Embeddings"), "finetune.inference.embedder"),
    "Predictor": "finetune.inference.predictor",
    "Task": "finetune.task_types.base",
    **dict.fromkeys(("all_tasks", "find_task"), "finetune.tasks"),
}

__getattr__ = lazy_names("finetune", _DEFINED_IN)
