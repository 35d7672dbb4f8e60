"""A run of multi-task training, from its flags to its result."""

from pathlib import Path

import torch

from finetune.balancing import check_balances
from finetune.config import FREE_FLAGS, MtConfig, chosen_tasks
from finetune.evaluation.scores import save_values
from finetune.run_dirs.result_files import VALUES, MultiResult
from finetune.training.multi_task_setup import build_multi_task, check_tracking, result_of
from finetune.training.task_schedulers import find_regime
from pretrain.engine.distributed import on_every_rank, on_first
from pretrain.engine.run_dir import RESULT, checkpoint_to_resume, finished_result
from shards.common.dist_info import Ranks
from shards.common.files import write_json
from shards.world import complete_world


def train_tasks(config: MtConfig, ranks: Ranks, device: torch.device) -> tuple[int, dict | None]:
    """One rank's part of a run in a locked folder, which --resume continues.

    Returns:
        The exit status, 0 or 128 + the signal that stopped the run, and the content of result.json of a finished run.
    """
    out = Path(config.out)
    tasks = chosen_tasks(config, config.out)

    def check() -> None:
        find_regime(config.regime).check([task.group for task in tasks])
        check_tracking(config, tasks)

    on_first(ranks, check)
    newest = checkpoint_to_resume(out, config.resume, ranks)
    finished = finished_result(out, newest, config, FREE_FLAGS, ranks, MultiResult)
    if finished is not None:
        return 0, finished
    on_every_rank(ranks, lambda: check_balances([config.balance]))
    on_first(ranks, lambda: complete_world(config.data))
    trainer = build_multi_task(config, tasks, ranks, device, newest)
    status, _ = trainer.run()
    if status:
        return status, None
    training = trainer.task
    for state in training.task_states:
        if state.score is None:  # the last process was stopped between its last checkpoint and its result
            training.score(state)
    finished = result_of(training)
    if ranks.first:
        save_values(out / VALUES, training.scores())
        write_json(out / RESULT, finished)
    return 0, finished
