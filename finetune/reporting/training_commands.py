"""Runs training commands in subprocesses."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.config import FREE_FLAGS, MtConfig, StConfig
from pretrain.config import FREE_FLAGS as PRETRAINING_FREE_FLAGS
from pretrain.config import PretrainConfig
from pretrain.engine.checkpoint import newest_checkpoint
from pretrain.engine.run_dir import RESULT, read_flags
from shards.common.dist_info import Ranks
from shards.common.errors import ErrorOnAnotherRank, UserError

CONFIGS = {"pretrain.run": PretrainConfig, "finetune.mt": MtConfig, "finetune.st": StConfig}


@dataclass(frozen=True)
class TrainingCommand:
    """One command of a run. flags: without --out and --resume, which are always given; out: its run directory."""

    module: str
    flags: dict
    out: Path

    @property
    def begun(self) -> bool:
        return bool(newest_checkpoint(self.out)) or self.finished

    @property
    def finished(self) -> bool:
        return (self.out / RESULT).exists()

    @property
    def settings(self) -> dict:
        """The flags that change what is computed, including defaults of flags that are not given."""
        config, free = CONFIGS[self.module](**self.flags), FREE_FLAGS
        if isinstance(config, PretrainConfig):
            config, free = config.with_size_defaults(), PRETRAINING_FREE_FLAGS
        found = {name: value for name, value in asdict(config).items() if name not in free}
        return {name: value for name, value in found.items() if value is not None or name in self.flags}

    @property
    def stored_flags(self) -> dict:
        """The flags in config.json of a run that was started."""
        return read_flags(self.out, CONFIGS[self.module])

    @property
    def argv(self) -> list[str]:
        given = {**self.flags, "out": self.out, "resume": True}
        return ["-m", self.module, *(f"--{name}={value}" for name, value in given.items() if value is not None)]

    def log(self, ranks: Ranks) -> Path:
        name = self.out.name if ranks.first else f"{self.out.name}-rank{ranks.rank}"
        return self.out.with_name(f"{name}.log")


class Processes:
    """Runs commands in subprocesses, which are stopped when this process is."""

    def __init__(self, jobs: int, ranks: Ranks):
        self.ranks, self.running, self.stopped = ranks, set(), False
        if ranks.count == 1:
            threads = str(max(1, (os.cpu_count() or 1) // jobs))
            self.environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        else:
            # The ranks of a run rendezvous in the store of this command's ranks (torchrun's own, or the first rank's),
            # each time under a new prefix (see pretrain.engine.distributed), so that a run needs no port of its own.
            count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self.environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": count}

    def call(self, call: TrainingCommand) -> None:
        """Runs a command to completion. Raises UserError with the path of its log if it fails."""
        log = call.log(self.ranks)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as file:
            argv, environment = [sys.executable, *call.argv], os.environ | self.environment
            process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, env=environment)
            self.running.add(process)
            if self.stopped:  # the signal arrived between two commands
                process.terminate()
            status = process.wait()
            self.running.discard(process)
        if status:
            lines = log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
            sentence = f"{log}: python -m {call.module} ended with status {status}: {(lines or [''])[-1]}"
            raise UserError(sentence) if lines or self.ranks.first else ErrorOnAnotherRank(sentence)

    @contextlib.contextmanager
    def threads(self, jobs: int) -> Iterator[ThreadPoolExecutor]:
        """A thread pool for `call`. In the block, SIGTERM stops the commands; after an error, no more are started."""
        with ThreadPoolExecutor(jobs) as pool:
            before = signal.signal(signal.SIGTERM, self.stop)
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)
                signal.signal(signal.SIGTERM, before)

    def stop(self, number: int, _) -> None:
        """Forwards SIGTERM to the runs, which save a checkpoint and stop, and exits."""
        self.stopped = True
        for process in list(self.running):
            process.send_signal(number)
        raise SystemExit(128 + number)
