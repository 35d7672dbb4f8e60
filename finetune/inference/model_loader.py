"""Loads a run or other weights for inference on a task."""

from collections.abc import Sequence

from finetune.annotations.example import Example
from finetune.config import EvaluateConfig, answer_files
from finetune.data.task_collate import TaskCollator
from finetune.data.task_data import TaskData, open_data, same_on_every_rank
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import TaskPass
from finetune.run_dirs.init_weights import Start, choose_vocabulary, trained_start
from finetune.run_dirs.run_data_folder import choose_data
from finetune.task_types.base import Task
from pretrain.engine.distributed import choose_device, on_every_rank
from pretrain.models.precision import Precision
from pretrain.pretrained.find_weights import RUN, describe
from shards.common.dist_info import ALONE, Ranks
from shards.common.errors import UserError


def load(config: EvaluateConfig, task: Task, choose=None, ranks: Ranks = ALONE) -> tuple[TaskPass, TaskCollator]:
    """The run's model on its device, and the collator of the examples; for the arguments see open_run."""
    return open_run(config, task, choose, ranks)[1:]


def open_run(
    config: EvaluateConfig, task: Task, choose=None, ranks: Ranks = ALONE
) -> tuple[Start, TaskPass, TaskCollator]:
    """Loads a run for inference on a task.

    Args:
        config: flags.
        task: the task.
        choose: function from the task's data to the examples; None for the examples of the split.
        ranks: the processes.

    Returns:
        (description of the weights, model on its device, collator of the examples).
    """
    device = choose_device(config.device, ranks)

    def opened() -> tuple[TaskData, Sequence[Example]]:
        data = open_data(task, choose_data(config.run, config.data), config.missing)
        return data, choose(data) if choose else data.examples(config.split or task.splits[1], ranks.log)

    data, examples = on_every_rank(ranks, opened)
    same_on_every_rank(data, (examples,), ranks)
    start = trained_start(config.run, config.config, config.tokenizer, data.feature_size)
    check_trained(start, task)
    vocabulary = None
    if task.head.has_vocabulary:
        file = answer_files(config).get(task.head.name)
        vocabulary = start.vocabularies.get(task.head.name) or choose_vocabulary(start, data, file)
    model = TaskModel(start.sizes, {task.head.name: len(vocabulary)} if vocabulary else {}, [task.head])
    sentence = describe(*start.load(model))
    if start.weights.kind != RUN:
        ranks.log(f"{config.run}: {sentence}")
    precision = Precision(config.precision, device)
    model.to(device, precision.weights)
    positions = start.sizes.max_position_embeddings
    collator = data.collator(examples, start.tokenizer, vocabulary, positions, config.regions)
    return start, TaskPass(model, task, precision, start.token(task)), collator


def check_trained(start: Start, task: Task) -> None:
    """Raises UserError if the head of the task was not trained."""
    if start.has_head(task):
        return
    names = ", ".join(known.name for known in start.tasks)
    what = f"was trained on {names}" if names else "has no task heads"
    if start.zero_shot:
        what = f"contains pretraining weights, which only support {names} (zero-shot, by the alignment head)"
    raise UserError(f"--run {start.path or 'scratch'}: {what}; fine-tune it on {task.name} first")
