"""Logging of a run: metrics.jsonl, TensorBoard events and experiment trackers, and timers for throughput."""

import contextlib
import json
import os
import time
from pathlib import Path

import msgspec
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from pretrain.engine.experiment_trackers import TENSORBOARD, Trackers, tracker_names
from shards.common.errors import UserError
from shards.common.files import naming, whole_file
from shards.common.untrusted_input import check_fields, parse_json, refuse_special_file

METRICS = "metrics.jsonl"


def duration(seconds: float) -> str:
    """75 -> 1:15, 4000 -> 1:06:40."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class MetricsLine(msgspec.Struct):
    """The fields of a line of metrics.jsonl that are validated."""

    step: int
    kind: str


def read_metrics(path: Path) -> tuple[list[dict], int]:
    """Reads a run's metrics.jsonl; returns its lines and the number of invalid lines.

    A last line without a newline is ignored: the run may be writing it, or was killed while writing it.
    """
    refuse_special_file(path)
    lines, bad = [], 0
    *whole, _ = path.read_bytes().split(b"\n")
    for line in whole:
        try:
            lines.append(check_fields(parse_json(line, finite=False), MetricsLine, path))
        except (ValueError, UserError):
            bad += 1
    return lines, bad


class RunLog:
    """Writes a run's metrics. When a run is resumed, lines after the checkpoint's step are removed.

    Args:
        run: run directory.
        first_step: step of the checkpoint that is resumed, 0 for a new run.
        log_to: value of --log_to.
        flags: of the run, for experiment trackers.
    """

    def __init__(self, run, first_step: int, log_to: str | None = TENSORBOARD, flags: dict | None = None):
        self.path = Path(run) / METRICS
        names = tracker_names(log_to)
        self._cut(first_step)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  closed in close()
        # Not SummaryWriter: on a full disk its thread ends with a traceback, and the run waits for it forever.
        self.events = EventsWriter(str(Path(run) / "events")) if TENSORBOARD in names else None
        if first_step and self.events:
            restarted = SessionLog(status=SessionLog.START)  # TensorBoard drops later steps of earlier files
            self.events.write_event(Event(wall_time=time.time(), step=first_step, session_log=restarted))
        self.trackers = Trackers(Path(run), names, flags or {})

    def _cut(self, first_step: int) -> None:
        if not self.path.exists():
            return
        lines, _ = read_metrics(self.path)
        with whole_file(self.path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines if line["step"] <= first_step)

    def write(self, step: int, kind: str, values: dict) -> None:
        """Writes a line of metrics.jsonl; --log_to gets every number as `kind/name`."""
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        with naming(self.path):
            self.file.write(json.dumps({"step": step, "kind": kind} | values) + "\n")
            self.file.flush()
            if self.events:
                for name, value in numbers.items():
                    event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
                    self.events.write_event(event)
                self.events.flush()
        self.trackers.write(step, numbers)

    def close(self) -> None:
        self.trackers.close()
        with contextlib.suppress(OSError):  # everything has been flushed already, or its error has ended the run
            self.file.close()
        if self.events:
            with contextlib.suppress(OSError):
                self.events.close()


def run_directory_note(out: Path, log_to: str | None) -> str:
    """The last message of a run: its directory, and how to see its curves in TensorBoard."""
    curves = f"; curves: tensorboard --logdir {out.parent}" if TENSORBOARD in tracker_names(log_to) else ""
    return f"run directory: {out}{os.sep}{curves}"


class Clock:
    """Measures samples per second and the share of time spent waiting for data, since the last reading."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.began, self.waited, self.samples = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self):
        """Context manager that measures the time of a block as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def pop_rates(self) -> dict[str, float]:
        """samples_per_second and data_wait_share since the last call or restart, which begins anew."""
        elapsed = max(time.perf_counter() - self.began, 1e-9)
        values = {"samples_per_second": self.samples / elapsed, "data_wait_share": self.waited / elapsed}
        self.restart()
        return values
