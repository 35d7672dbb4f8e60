"""Experiment trackers (--log_to) that get a copy of a run's metrics: Weights & Biases, Trackio and MLflow.

RUN/metrics.jsonl is the complete record. Each tracker's own settings (server, project, offline mode) are those of its
package, from its environment variables. RUN/trackers.json has the identifiers of the trackers' runs, so that a resumed
run continues them.
"""

import contextlib
import os
import re
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from shards.common.errors import UserError
from shards.common.files import read_json, write_json

TENSORBOARD = "tensorboard"  # written by metrics_logger.RunLog, with a package that is always installed
IDENTIFIERS = "trackers.json"
PROJECT = "twelve-in-one"  # for trackers without a default project
# MLflow's settings while a run starts, if the environment has none: an unreachable server is reported after half a
# minute. By MLflow's own, it is waited for for minutes; during training, they let a server restart.
MLFLOW_START = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "8"}  # the latter in seconds


class Tracker(ABC):
    """A run of an experiment tracker, named by its package, which is imported on first use.

    Args:
        run: run directory.
        flags: of the run, stored by the tracker as its configuration.
        identifier: of the tracker's run to continue; None for a new one.

    Attributes:
        identifier: by which the tracker's run is continued.
    """

    identifier: str

    @abstractmethod
    def __init__(self, run: Path, flags: dict, identifier: str | None): ...

    @abstractmethod
    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a step."""

    @abstractmethod
    def close(self) -> None:
        """Waits until everything has been logged, and ends the tracker's run."""


class Wandb(Tracker):
    """Weights & Biases. The step is a metric, because its own steps cannot go back to that of a checkpoint."""

    def __init__(self, run: Path, flags: dict, identifier: str | None):
        import wandb

        self.identifier = identifier or uuid.uuid4().hex[:8]
        project = wandb.setup().settings.project or PROJECT
        name = run.resolve().name
        self.run = wandb.init(
            project=project, id=self.identifier, name=name, dir=str(run), config=flags, resume="allow"
        )
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values | {"step": step})

    def close(self) -> None:
        self.run.finish()


class Trackio(Tracker):
    """Trackio, whose runs are continued by name."""

    def __init__(self, run: Path, flags: dict, identifier: str | None):
        import trackio

        self.identifier = identifier or f"{run.resolve().name}-{uuid.uuid4().hex[:8]}"
        self.run = trackio.init(project=PROJECT, name=self.identifier, config=flags, resume="allow")

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class Mlflow(Tracker):
    """MLflow."""

    def __init__(self, run: Path, flags: dict, identifier: str | None):
        import mlflow

        self.mlflow = mlflow
        with _defaults(MLFLOW_START):
            self.identifier = mlflow.start_run(run_id=identifier, run_name=run.resolve().name).info.run_id
            if identifier is None:  # parameters cannot be changed later
                mlflow.log_params(flags)

    def write(self, step: int, values: dict[str, float]) -> None:
        self.mlflow.log_metrics({_allowed(name): value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


@contextlib.contextmanager
def _defaults(settings: dict[str, str]) -> Iterator[None]:
    """Context manager in which environment variables have these values, unless they are set."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _allowed(name: str) -> str:
    """The name of a metric with characters that MLflow allows: R@1 -> R_1, refcoco+ -> refcoco_."""
    return re.sub(r"[^\w\-. :/]", "_", name)


TRACKERS: dict[str, type[Tracker]] = {"wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow}  # by package


def tracker_names(log_to: str | None) -> list[str]:
    """The names in a value of --log_to.

    Raises:
        UserError: a name is unknown, or its package is not installed.
    """
    names = list(dict.fromkeys(name.strip() for name in log_to.split(","))) if log_to else []
    for name in names:
        if name != TENSORBOARD and name not in TRACKERS:
            known = ", ".join((TENSORBOARD, *TRACKERS))
            wrong = "none has to be the only one" if name == "none" else f"{name or 'an empty name'} is unknown"
            raise UserError(f"--log_to {log_to}: {wrong}; it should be none, or some of {known}")
        if name != TENSORBOARD and find_spec(name) is None:
            raise UserError(f"--log_to {log_to}: {name} is not installed; pip install {name}, or remove it")
    return names


class Trackers:
    """The trackers of a run.

    A tracker that fails while the run trains is closed with a warning, because metrics.jsonl has everything.

    Args:
        run: run directory.
        names: result of tracker_names.
        flags: of the run.

    Raises:
        UserError: a tracker cannot be started.
    """

    def __init__(self, run: Path, names: list[str], flags: dict):
        self._open: dict[str, Tracker] = {}
        path = run / IDENTIFIERS
        known = read_json(path, dict[str, str]) if path.exists() else {}
        for name in (name for name in names if name != TENSORBOARD):
            try:
                self._open[name] = TRACKERS[name](run, flags, known.get(name))
            except Exception as error:
                self.close()
                raise UserError(f"--log_to {name}: cannot be started ({_first_line(error)}); remove it") from None
            known[name] = self._open[name].identifier
        if self._open:
            write_json(path, known)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a step everywhere."""
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.write(step, values))

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close)
        self._open.clear()

    def _try(self, name: str, function) -> None:
        try:
            function()
        except Exception as error:
            print(
                f"warning: --log_to {name}: {_first_line(error)}; the run is no longer logged there, its metrics.jsonl "
                "is complete",
                file=sys.stderr,
                flush=True,
            )
            del self._open[name]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
