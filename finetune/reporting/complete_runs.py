"""Finishes the runs of an ablation, or this machine's share of them."""

from finetune.balancing import STEPS, check_balances
from finetune.config import AblateConfig
from finetune.reporting.ablation_runs import AblationRun, calls_of, own_share, prepare_suite
from finetune.reporting.training_commands import Processes, TrainingCommand
from finetune.run_dirs.result_files import MultiResult
from pretrain.engine.distributed import on_every_rank, on_first
from pretrain.engine.run_dir import RESULT
from shards.common.counted import counted
from shards.common.dist_info import Ranks
from shards.common.files import read_json


def complete(config: AblateConfig, runs: list[AblationRun], ranks: Ranks) -> AblateConfig | None:
    """Finishes this machine's share of the runs that are not finished.

    Returns:
        The flags with which runs were started; None if runs of other shares are not finished.
    """
    config, plain, finished = on_first(ranks, lambda: prepare_suite(config, runs))
    own = own_share(config, len(runs))
    waiting = [runs[place] for place in own if not finished[place]]
    others = finished.count(False) - len(waiting)
    ranks.log(f"{config.suite}: {counted(len(runs), 'run')}, {finished.count(True)} of them already finished")
    if plain is not None:
        ranks.log(plain.text)
    on_every_rank(ranks, lambda: check_balances(one.row.flags.get("balance", STEPS) for one in waiting))
    processes = Processes(config.jobs, ranks)
    with processes.threads(config.jobs) as pool:
        done = pool.map(lambda one: _train(calls_of(one, config, plain), processes, ranks), waiting)
        for number, (one, _) in enumerate(zip(waiting, done, strict=True), 1):
            if ranks.first:
                score = read_json(one.out / RESULT, MultiResult)["mt_score"]
                ranks.log(f"{number} of {len(waiting)}: {one.name}, seed {one.seed}: MT score {score:.2%}")
    if others:
        missing = counted(others, "run of another share is", "runs of other shares are")
        ranks.log(f"{missing} not finished; copy the results here and repeat this command")
        return None
    return config


def _train(calls: list[TrainingCommand], processes: Processes, ranks: Ranks) -> None:
    """Runs the commands of one run, which resume if they were interrupted before."""
    for call in calls:
        on_every_rank(ranks, lambda call=call: processes.call(call))
