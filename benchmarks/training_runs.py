"""Concurrent training runs for benchmarks."""

import sys
from collections.abc import Sequence

from finetune.reporting.training_commands import Processes, TrainingCommand
from shards.common.dist_info import ALONE


def complete(calls: Sequence[TrainingCommand], jobs: int) -> None:
    """Completes unfinished runs, `jobs` at a time; interrupted ones are resumed. SIGTERM stops all of them.

    Raises:
        UserError: a run failed; the message has the last line of its log.
    """
    waiting, processes = [call for call in calls if not call.finished], Processes(jobs, ALONE)
    with processes.threads(jobs) as pool:
        for number, (call, _) in enumerate(zip(waiting, pool.map(processes.call, waiting), strict=True), 1):
            print(f"{number} of {len(waiting)}: {call.out}", file=sys.stderr, flush=True)
