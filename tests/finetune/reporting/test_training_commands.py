"""Training commands in subprocesses."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune.reporting.training_commands import Processes, TrainingCommand
from shards.common.dist_info import ALONE


@dataclass(frozen=True)
class ShowThreads(TrainingCommand):
    """Writes the environment of a run instead of training."""

    @property
    def argv(self) -> list[str]:
        code = f"import json, os; json.dump(os.environ.get('OMP_NUM_THREADS'), open({str(self.out)!r}, 'w'))"
        return ["-c", code]


@pytest.mark.parametrize("own", [None, "1"])
def test_runs_share_the_processors_unless_the_user_has_set_the_threads(own, tmp_path, monkeypatch):
    """Threads of OpenMP that wait for a busy processor spin: two on a shared machine are slower than one."""
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    else:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = ShowThreads("none", {}, Path(tmp_path / "threads"))
    Processes(2, ALONE).call(command)
    assert json.loads(command.out.read_text()) == (own or "3")
